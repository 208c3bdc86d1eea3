"""Label selectors as text."""

from __future__ import annotations

from typing import Any

import pytest

from krelay.cluster.selectors import selector_text


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
def test_a_selector(selector: dict[str, Any] | None, text: str) -> None:
    assert selector_text(selector) == text
