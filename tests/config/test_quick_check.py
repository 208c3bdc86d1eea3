"""The quick check against jsonschema, on files as people write them and on mutations of them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.config import validation
from krelay.config.quick_check import UnknownKeywordError, matches
from krelay.config.schema import load_schema
from krelay.config.yaml_reader import read

SCHEMA = load_schema()
JUDGE = validation._validator()
FILES = sorted(Path(__file__).parent.glob("data/*/*.yaml"))


def value_of(file: Path) -> Any:
    document, _ = read(file.read_bytes().decode(errors="replace"), {})
    return None if document is None else document.plain()


VALUES = [value for file in FILES if (value := value_of(file)) is not None]
LEAVES = st.sampled_from(
    [None, True, False, 0, 1, -1, 1.0, 0.5, 80, 65_536, 1e99, "", "x", "1s", "9MiB", "a\n", "8080"]
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab", max_size=1), inner),
    max_leaves=3,
)


def test_the_schema_has_only_known_keywords() -> None:
    for value in VALUES:
        assert matches(SCHEMA, value, SCHEMA) is JUDGE.is_valid(value)


def spots(value: Any) -> list[tuple[Any, Any]]:
    """Return each container in `value` with each of its keys or indices."""
    found: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        found = [(value, key) for key in value]
    elif isinstance(value, list):
        found = [(value, index) for index in range(len(value))]
    for container, key in list(found):
        found += spots(container[key])
    return found


@given(st.data())
def test_mutated_files_are_judged_alike(data: st.DataObject) -> None:
    value = copy.deepcopy(data.draw(st.sampled_from(VALUES)))
    for _ in range(data.draw(st.integers(1, 3))):
        if places := spots(value):
            container, key = places[data.draw(st.integers(0, len(places) - 1))]
            if isinstance(container, dict) and data.draw(st.booleans()):
                container[data.draw(st.sampled_from(["new", "port", "type", "", "listen"]))] = (
                    container.pop(key)
                )
            else:
                container[key] = data.draw(JSON)
    assert matches(SCHEMA, value, SCHEMA) is JUDGE.is_valid(value)


@pytest.mark.parametrize(
    ("rules", "value"),
    [
        ({"format": "uri"}, "x"),
        ({"enum": [1, None]}, 1),
        ({"items": [{}]}, []),
        ({"patternProperties": {}, "additionalProperties": False}, {}),
    ],
)
def test_an_unknown_keyword_is_left_to_jsonschema(rules: dict[str, Any], value: Any) -> None:
    with pytest.raises(UnknownKeywordError):
        matches(rules, value, rules)


@pytest.mark.parametrize("rules", [True, False])
def test_a_schema_may_be_a_boolean(rules: bool) -> None:
    assert matches(rules, 1, {}) is rules


def test_needed_keys_and_schemas_of_other_keys() -> None:
    rules = {"dependencies": {"a": ["b"], "c": {"required": ["d"]}}}
    for value, valid in (
        ({"a": 1}, False),
        ({"a": 1, "b": 1}, True),
        ({"c": 1}, False),
        ([], True),
    ):
        assert matches(rules, value, rules) is valid
