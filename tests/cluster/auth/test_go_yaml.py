"""YAML as Go reads it; the table of odd kubeconfigs has kubectl beside it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.cluster.auth.go_yaml import NotYamlError, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing", None),
        ("---\n---\na: b", None),
        ("a: b\n---\n{[", {"a": "b"}),
        ('{\n\t"a":\t[1]}', {"a": [1]}),
        ("[y, Yes, ON, n, no, Off, true, FALSE]", [True] * 3 + [False] * 3 + [True, False]),
        ("[yEs, ~, null, nUll]", ["yEs", None, None, "nUll"]),
        ("[1, -2, +3, 1_000, 0x1f, 0b11, 007, 0o7, 08]", [1, -2, 3, 1000, 31, 3, 7, 7, 8.0]),
        ("[1e3, .5, 1., 1.2.3, 1e, -, 0o, 0x]", [1000.0, 0.5, 1.0, "1.2.3", "1e", "-", "0o", "0x"]),
        (
            "[12:30, 2024-01-02, 2024-01-02T00:00:00Z]",
            ["12:30", "2024-01-02", "2024-01-02T00:00:00Z"],
        ),
        ("[!!str 1, !!float 1, !x 1, !!binary dA==]", ["1", 1.0, "1", "t"]),
        ("{1: a, true: b, 1.5: c}", {"1": "a", "true": "b", "1.5": "c"}),
        ("{a: 1, a: 2}", {"a": 2}),
        (
            "x: &x {a: 1}\nw: {a: 2, <<: *x}\nz: {<<: *x, a: 3}",
            {"x": {"a": 1}, "w": {"a": 1}, "z": {"a": 3}},
        ),
        ("x: &x {a: 1}\nw: {<<: [*x, {a: 2, b: 3}]}", {"x": {"a": 1}, "w": {"a": 1, "b": 3}}),
        ("'<<': 1", {"<<": 1}),
        ("x: &a 1\nw: *a", {"x": 1, "w": 1}),
    ],
)
def test_a_document_has_the_values_that_go_reads(text: str, value: Any) -> None:
    assert read_yaml(text.encode()) == value
    assert repr(read_yaml(text.encode())) == repr(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {b", "not YAML at line 2, column 1"),
        ("a: *b", "line 1, column 4: no such anchor"),
        ("a: &a [*a]", "contains itself"),
        ("a: !!int x", "not what its tag says"),
        ("a: !!binary '?'", "not base64"),
        ("a: .inf", "a number that JSON does not have"),
        ("? [a]\n: b", "not the name of a field"),
        ("~: b", "not the name of a field"),
        ("a: {<<: 5}", "not an object to merge"),
        ("a: \x01", "a bad character at position 3"),
        ("[" * 500_000, "nested too deep"),
        ("- " * 5_000, "nested too deep"),
        ("a: " + "{a: " * 5_000, "nested too deep"),
    ],
)
def test_what_is_not_yaml_is_an_error_with_its_place(text: str, message: str) -> None:
    with pytest.raises(NotYamlError) as caught:
        read_yaml(text.encode())
    assert message in str(caught.value)
    assert caught.value.__cause__ is None


def test_aliases_are_bounded() -> None:
    """A program that compares or writes such values would never end."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    assert len(read_yaml("\n".join(lines[:5]).encode())) == 5
    with pytest.raises(NotYamlError, match="line 7, .*: too many values by aliases"):
        read_yaml("\n".join(lines).encode())


TEXT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**9), 10**9) | TEXT,
        lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    )
)
def test_json_is_read_as_json(value: Any) -> None:
    text = json.dumps(value, indent="\t")
    if isinstance(value, dict | list):
        assert read_yaml(text.encode()) == value


@given(st.binary())
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        json.dumps(read_yaml(data), allow_nan=False)
    except NotYamlError as exc:
        assert str(exc).isprintable()
