"""Selectors as query parameters and as predicates."""

from __future__ import annotations

from typing import Any

import pytest

from krelay.cluster.selectors import Selector, anchors
from krelay.errors import ClusterError


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        (None, ""),
        ({}, ""),
        ({"matchLabels": {"b": "2", "a": "1"}}, "a=1,b=2"),
        (
            {"matchExpressions": [{"key": "tier", "operator": "In", "values": ["x", "y"]}]},
            "tier in (x,y)",
        ),
        (
            {"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["x"]}]},
            "tier notin (x)",
        ),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, "a"),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, "!a"),
        (
            {
                "matchLabels": {"app": "web"},
                "matchExpressions": [{"key": "a", "operator": "Exists"}],
            },
            "app=web,a",
        ),
    ],
)
def test_a_label_selector_becomes_a_query(selector: dict[str, Any] | None, text: str) -> None:
    found = Selector.of_workload(selector)
    assert (found.label_selector, found.field_selector) == (text, "")
    assert found.empty is not bool(text)


def test_a_name_becomes_a_field_selector() -> None:
    assert Selector("web").field_selector == "metadata.name=web"
    assert Selector("web").label_selector == ""


LABELS = [{}, {"a": "1"}, {"a": "2"}, {"a": "3", "b": "1"}, {"b": "1"}]


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ({}, [True] * 5),
        ({"matchLabels": {"a": "1"}}, [False, True, False, False, False]),
        ({"matchLabels": {"a": "3", "b": "1"}}, [False, False, False, True, False]),
        (
            {"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]},
            [False, True, True, False, False],
        ),
        (
            {"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1", "2"]}]},
            [True, False, False, True, True],
        ),
        (
            {"matchExpressions": [{"key": "a", "operator": "Exists"}]},
            [False, True, True, True, False],
        ),
        (
            {"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]},
            [True, False, False, False, True],
        ),
    ],
)
def test_a_label_selector_matches_as_the_api_server_does(
    selector: dict[str, Any], matches: list[bool]
) -> None:
    found = Selector.of_workload(selector)
    items = [{"metadata": {"name": "x", "labels": labels}} for labels in LABELS]
    assert [found.matches(item) for item in items] == matches
    for item, match in zip(items, matches, strict=True):
        assert not match or found.anchor in {None, *anchors(item)}


def test_a_name_matches_one_object() -> None:
    items = [{"metadata": {"name": name}} for name in ("web", "other")]
    assert [Selector("web").matches(item) for item in items] == [True, False]
    assert Selector("web").anchor in list(anchors(items[0]))


@pytest.mark.parametrize(
    "term",
    [
        {"key": "a", "operator": "Gt", "values": ["1"]},
        {"key": "a", "operator": "In"},
        {"key": "a", "operator": "Exists", "values": ["1"]},
    ],
)
def test_an_unknown_operator_or_a_wrong_number_of_values_is_an_error(term: Any) -> None:
    with pytest.raises(ClusterError, match="not a LabelSelector: a "):
        Selector.of_workload({"matchExpressions": [term]})
