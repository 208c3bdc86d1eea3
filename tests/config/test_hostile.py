"""A file of any content is read in time that grows with its size.

At the largest size that a file may have, anything else takes minutes or hours, which the suite's
own deadline ends."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import krelay.config
import krelay.importers
from krelay.config import yaml_reader
from krelay.config.diff import diff
from krelay.config.files import MAX_BYTES, is_targets_txt
from krelay.config.grammar import ParseError, parse_duration
from krelay.config.load import load
from krelay.config.parsed_file import MAX_FORWARDS
from krelay.config.schema import load_schema
from krelay.errors import ConfigError
from krelay.model import Config, Kind, Port, Target

HEAD = "apiVersion: krelay/v1\n"
ONE = HEAD + "targets: {a: ip/10.0.0.1 :1}\n"
ENVIRON = {"A": "x", "BIG": "b" * 120_000}


def filled(head: str, unit: str, tail: str = "\n") -> str:
    return head + unit * ((MAX_BYTES - len(head) - len(tail)) // len(unit)) + tail


def numbered(head: str, unit: str, tail: str = "\n") -> str:
    size = len(unit.format(10_000))
    count = (MAX_BYTES - len(head) - len(tail)) // size
    return (head + "".join(unit.format(n) for n in range(count)))[: MAX_BYTES - len(tail)] + tail


FILES: dict[str, Callable[[], str]] = {
    "digits-for-a-target": lambda: filled("a ", "1", "x\n"),
    "spaces": lambda: filled("a", " ", "b\n"),
    "dashes": lambda: filled("", "-"),
    "tabs": lambda: filled("", "\t", "a: b\n"),
    "line-ends": lambda: filled("", "\r"),
    "brackets": lambda: filled("x: ", "["),
    "empty-lists": lambda: filled("x: [", "[],", "]\n"),
    "same-keys": lambda: filled("", "a: 1\n"),
    "unknown-keys": lambda: numbered(HEAD, "k{}: 1\n"),
    "unknown-alias": lambda: filled("x: [", "*a,", "]\n"),
    "long-alias": lambda: filled("x: *", "a"),
    "keys-that-are-lists": lambda: filled("x: {", "[a]: 1,", "}\n"),
    "octals": lambda: filled("x: [", "01,", "]\n"),
    "digits": lambda: filled("x: ", "9"),
    "one-merge-again": lambda: (
        "a: &a {"
        + ",".join(f"k{n}: 1" for n in range(45_000))
        + "}\nb: {"
        + ",".join(["<<: *a"] * 45_000)
        + "}\n"
    ),
    "a-list-of-merges": lambda: filled(
        "a: &a {" + ",".join(f"k{n}: 1" for n in range(200)) + "}\nb: {<<: [", "*a,", "]}\n"
    ),
    "merges": lambda: filled(
        "a: &a {" + ",".join(f"k{n}: 1" for n in range(40)) + "}\nb: [", "{<<: *a},", "]\n"
    ),
    "aliases-of-a-text": lambda: numbered(
        HEAD + "x: &a '" + "y" * (MAX_BYTES // 2) + "'\ntargets: {", "a{}: *a,", "}\n"
    ),
    "aliases-of-ports": lambda: (
        HEAD
        + f"x: &a 'ip/10.0.0.1{' :1' * 1_000}'\ntargets: {{"
        + ",".join(f"a{n}: *a" for n in range(1_000))
        + "}\n"
    ),
    "variables": lambda: filled("x: '", "${A}", "'\n"),
    "a-long-variable": lambda: filled("x: '", "${BIG}", "'\n"),
    "long-variables": lambda: filled("x: [", "'${BIG}',", "]\n"),
    "open-variables": lambda: filled("x: '", "${", "'\n"),
    "a-duration": lambda: filled(ONE + "tunnel: {openTimeout: '", "1", "'}\n"),
    "a-check": lambda: filled(
        HEAD + "targets: {a: {target: ip/10.0.0.1, port: 1, check: 'http ", "->", "x y'}}\n"
    ),
    "a-name": lambda: filled(HEAD + "targets: {a: {target: ip/10.0.0.1, check: 'dns ", "a.", "'}}"),
    "a-host": lambda: filled(HEAD + "targets: {a: 'host/", "a", "! 1'}\n"),
    "a-type": lambda: filled(HEAD + "targets: {a: '", "svc", "/a 1'}\n"),
    "an-image": lambda: filled(ONE + "agent: {image: '", "a", " '}\n"),
    "labels": lambda: numbered(ONE + "agent: {labels: {", "l{}: 1,", "}}\n"),
    "patches": lambda: filled(ONE + "agent: {patches: [", "{},", "]}\n"),
    "operations": lambda: filled(
        ONE + "agent: {patches: [{type: json, patch: [", "{op: add, path: /a},", "]}]}\n"
    ),
    "targets": lambda: numbered(HEAD + "targets:\n", " a{}: ip/10.0.0.1 :1\n"),
    "wrong-targets": lambda: numbered(HEAD + "targets:\n", " a{}: ip/10.0.0 :1\n"),
    "ports": lambda: filled(HEAD + "targets: {a: {target: ip/10.0.0.1, ports: [", "1,", "]}}\n"),
    "proxies": lambda: numbered(HEAD + "proxies: {", "a{}: {{port: 0}},", "}\n"),
    "free-ports": lambda: filled("ip/10.0.0.1", " :1"),
    "lines": lambda: numbered("", "svc/a{0} {0}:80\n"),
    "lines-of-ports": lambda: "".join(
        f"ip/10.0.0.{n}" + " 1" * 30_000 + "\n" for n in range(1, 18)
    ),
    "options": lambda: filled("ip/10.0.0.1 1", " -n a"),
    "documents": lambda: filled("", "--- {}\n...\n"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_largest_size_is_read_in_time(name: str) -> None:
    data = FILES[name]().encode()
    assert len(data) <= MAX_BYTES
    try:
        config = load("krelay.yaml", environ=ENVIRON, text=data)
    except ConfigError as exc:
        assert all(len(line) < 2_000 for line in exc.report())
        assert len(exc.problems) <= 101
    else:
        assert sum(len(target.ports) for target in config.targets) <= MAX_FORWARDS


def expressions() -> Iterator[tuple[str, re.Pattern[str]]]:
    for package in (krelay.config, krelay.importers):
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            for name, value in vars(importlib.import_module(found.name)).items():
                if isinstance(value, re.Pattern):
                    yield f"{found.name}.{name}", value


def patterns(rules: Any) -> Iterator[str]:
    if isinstance(rules, dict):
        if isinstance(rules.get("pattern"), str):
            yield rules["pattern"]
        for child in rules.values():
            yield from patterns(child)
    elif isinstance(rules, list):
        for child in rules:
            yield from patterns(child)


PATTERNS = sorted(set(patterns(load_schema())))
UNITS = ("a", "A", "1", "-", ".", " ", "/", "_", "1.", "a.", "a-", "a ", "- ", "1h", "$", "${", "ä")


SEARCHED = {"_CONTROL", "_SURROGATE", "_WORD", "_REFERENCE", "_PART", "_NAME"}
"""Those that are looked for at each place of a text, and not at its start alone."""


@pytest.mark.parametrize(
    ("name", "expression"),
    [*expressions(), *((pattern, re.compile(pattern)) for pattern in PATTERNS)],
    ids=str,
)
def test_each_regular_expression_takes_linear_time(name: str, expression: re.Pattern[str]) -> None:
    for unit in UNITS:
        for head in ("", "a ", "0", "http ", "/"):
            text = head + unit * (MAX_BYTES // len(unit) // 8) + "\n!"
            expression.match(text)
            expression.fullmatch(text)
    if name.rpartition(".")[2] in SEARCHED:
        for unit in UNITS:
            expression.sub("", unit * (MAX_BYTES // len(unit) // 8))


def test_each_pattern_of_the_schema_is_anchored() -> None:
    """A validator must not try a pattern at each position of a text."""
    assert PATTERNS
    for pattern in PATTERNS:
        branches = pattern.split("|^")
        assert branches[0].startswith("^")
        assert "|" not in re.sub(r"\([^()]*\)", "", pattern.replace("$|^", ""))


@pytest.mark.parametrize("size", [MAX_BYTES >> n for n in range(6, -1, -1)])
def test_what_a_file_is_shows_in_time(size: int) -> None:
    assert not is_targets_txt("a " + "1" * size + "x\n", "krelay.yaml")
    assert is_targets_txt("a " + "1" * size + "\n", "krelay.yaml")


@pytest.mark.parametrize("size", [MAX_BYTES >> n for n in range(6, -1, -1)])
def test_a_long_text_is_no_duration_in_bounded_time(size: int) -> None:
    for unit in ("1", "1h", "1.", "."):
        with pytest.raises(ParseError):
            parse_duration(unit * size)


@pytest.mark.parametrize("ports", [1_250, 2_500, 5_000, MAX_FORWARDS])
@pytest.mark.parametrize("local", [0, None], ids=["free", "same"])
def test_what_an_edit_changes_is_found_in_time(ports: int, local: int | None) -> None:
    def config(resource: str, shift: int) -> Config:
        numbers = range(1 + shift, ports + 1 + shift)
        forwards = tuple(Port(1 if local == 0 else n, n if local is None else 0) for n in numbers)
        return Config((Target("a", Kind.IP, resource, forwards),))

    before, after = config("10.0.0.1", 0), config("10.0.0.2", 1)
    assert len(diff(None, before).pairs) == ports
    assert not diff(before, config("10.0.0.1", 0))
    assert len(diff(before, after).pairs) == ports + (local is None)


def test_merged_keys_are_counted_also_where_they_are_dropped() -> None:
    text = "a: &a {" + ",".join(f"k{n}: 1" for n in range(1_000)) + "}\nb: {" + "<<: *a,"
    node, problems = yaml_reader.read(text + "<<: *a}\n", {})
    assert node is not None
    assert not problems
    node, problems = yaml_reader.read(text + "<<: *a," * 100 + "}\n", {})
    assert node is None
    assert [problem.message for problem in problems] == ["more than 50000 values or 40 levels"]
