from __future__ import annotations

from typing import Any

import pytest

from krelay.config.validation import check
from krelay.config.yaml_reader import Node, read

HEAD = "apiVersion: krelay/v1\ntargets: {a: ip/10.0.0.1 1}\n"


def settled(text: str, **environ: str) -> tuple[Any, list[str]]:
    root, problems = read(HEAD + text, environ)
    assert problems == []
    assert isinstance(root, Node)
    left, found = check(root)
    assert left is not None
    plain = left.plain()
    del plain["apiVersion"], plain["targets"]
    return plain, [problem.message for problem in found]


DIGITS = "8273645510293847"


@pytest.mark.parametrize(
    "value", [DIGITS, "0123456789", "0x1F", "1e3", "true", "null", "~", "1.50"]
)
def test_a_variable_is_text_where_text_is_wanted(value: str) -> None:
    text = "status:\n  token: ${V}\nagent:\n  labels:\n    a: ${V}\n    b: '${V}'\n"
    found, _ = settled(text, V=value)
    assert found["agent"]["labels"] == {"a": value, "b": value}
    assert found["status"].get("token", value) == value


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("tunnel:\n  sessions: ${V}\n", "3", {"tunnel": {"sessions": 3}}),
        ("tunnel:\n  openTimeout: ${V}\n", "30", {"tunnel": {"openTimeout": 30}}),
        ("agent:\n  embedded: ${V}\n", "true", {"agent": {"embedded": True}}),
        ("context: ${V}\n", "", {"context": None}),
        ("status:\n  listen: ${V}\n", "9527", {"status": {"listen": 9527}}),
        ("status:\n  token: ${V}\n", "", {"status": {"token": None}}),
        ("tunnel:\n  sessions: 1${V}\n", "2", {"tunnel": {"sessions": 12}}),
    ],
)
def test_and_else_what_yaml_makes_of_it(text: str, value: str, expected: Any) -> None:
    assert settled(text, V=value) == (expected, [])


def test_a_port_of_a_variable() -> None:
    block = "apiVersion: krelay/v1\ntargets:\n  a:\n    target: ip/10.0.0.1\n    port: ${V}\n"
    for value, expected in (("80", 80), ("8080:80", "8080:80")):
        root, _ = read(block, {"V": value})
        assert isinstance(root, Node)
        left, found = check(root)
        assert found == []
        assert left is not None
        assert left.plain()["targets"]["a"]["port"] == expected


def test_an_old_octal_is_told_where_it_may_be_a_number() -> None:
    message = "`0644` is octal in YAML 1.1 and decimal in YAML 1.2"
    assert settled("tunnel:\n  sessions: ${V}\n", V="0644") == ({"tunnel": {}}, [message])
    patch = "agent:\n  patches:\n    - patch:\n        mode: ${V}\n"
    assert settled(patch, V="0644")[1] == [message]
