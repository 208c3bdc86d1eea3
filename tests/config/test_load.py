from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.config import load, parse, parse_target
from krelay.errors import ConfigError, UsageError
from krelay.model import Config, Kind, Port, Protocol, Target

YAML = b"apiVersion: krelay/v1\ntargets: {web: 'svc/web ${PORT:-80}'}\n"


def test_the_file_of_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no krelay.yaml"):
        load(None, environ={})
    Path("krelay.yaml").write_bytes(YAML)
    made = load(None, environ={"PORT": "81"})
    assert made.path == "krelay.yaml"
    assert made.targets == (Target("web", Kind.SERVICE, "web", (Port(81, 81),)),)


def test_standard_input() -> None:
    assert load("-", environ={}, text=YAML).path == "<stdin>"
    assert load("-", environ={}, text=b"svc/a 80\n").targets[0].name == "svc/a 80"
    with pytest.raises(ConfigError, match="<stdin>: 1 problem$"):
        load("-", environ={}, text=b"")


def test_a_text_may_come_with_its_mark_and_line_ends() -> None:
    text = "\ufeff" + YAML.decode().replace("\n", "\r\n")
    assert parse(text, "x", {}).targets[0].ports == (Port(80, 80),)


def test_problems_of_all_stages_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(
            "apiVersion: krelay/v1\nnope: ${X}\ncontext: ${X}\ntargets:\n"
            "  a: svc/a 80\n  b: svc/b 80\n  c: svc/c http/x\n",
            "x.yaml",
            {},
        )
    assert [(p.line, p.column) for p in caught.value.problems] == [
        (2, 1), (2, 7), (3, 10), (6, 12), (7, 17)
    ]  # fmt: skip
    assert str(caught.value) == "x.yaml: 5 problems"


def test_what_an_alias_repeats_is_told_once() -> None:
    text = "apiVersion: krelay/v1\ntargets:\n  a: &a {x: 1, target: svc/a, port: ':1'}\n  b: *a\n"
    with pytest.raises(ConfigError) as caught:
        parse(text, "x.yaml", {})
    assert [problem.message for problem in caught.value.problems] == ["unknown key `x`"]


def test_overlaps() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("svc/a 80\nsvc/b 80/tcp\nsvc/c 80/tcp -l 0.0.0.0\n", "t.txt", {})
    first, second = caught.value.problems
    assert first.message == "`127.0.0.1:80/tcp` is taken by target `svc/a 80`, line 1"
    assert "/udp" in str(first.hint)
    assert "overlaps `127.0.0.1:80/tcp`" in second.message
    with pytest.raises(ConfigError) as caught:
        parse("svc/a 80/udp\nsvc/b 80/udp\n", "t.txt", {})
    assert caught.value.problems[0].hint == "give one of them another local port"


def test_there_is_an_end_to_problems() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("".join(f"svc/A{n} 80\n" for n in range(300)), "t.txt", {})
    assert len(caught.value.problems) == 101
    last = caught.value.problems[-1]
    assert (last.line, last.message) == (
        101,
        "more problems from here on; only the first 100 are shown",
    )


@pytest.mark.parametrize("text", ["- a: 1\n", "apiVersion\n", "5"])
def test_a_yaml_that_is_no_mapping(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "x.yaml", {})
    assert "neither a krelay.yaml nor a targets.txt" in caught.value.problems[0].message


def test_a_file_that_is_broken_at_its_root() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("[a]: 1\napiVersion: krelay/v1\n", "x.yaml", {})
    assert [problem.message for problem in caught.value.problems] == ["a key must be plain text"]


def test_a_target_of_the_command_line() -> None:
    target = parse_target(["-n", "dns", "svc/dns", ":53@udp", "http"], listen="::1", context="c")
    assert target == Target(
        "svc/dns :53/udp http -n dns",
        Kind.SERVICE,
        "dns",
        (Port(53, 0, Protocol.UDP), Port("http")),
        "dns",
        "c",
        "::1",
    )
    assert parse_target(["web", "80", "-l", "localhost"], namespace="n").namespace == "n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no target"),
        (["svc/a"], "`svc/a` has no port"),
        (["svc/a", "80", "80"], "`127.0.0.1:80/tcp` is used twice"),
        (["svc/a", "80 81"], "`80 81` is neither a port nor a port's name"),
    ],
)
def test_a_command_line_that_is_no_target(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_target(words)
    assert caught.value.message == message
    assert caught.value.hint


LINE = """apiVersion: krelay/v1 targets: agent: tunnel: defaults: web: svc/a 80 8080:http - { } [
] , ${X} ${X:-1} *a &a << : port: ports: listen: ::1 -n -l # !!str ' " | > null true 1e9"""
WORDS = st.sampled_from([*LINE.split(), "\n", "\n  ", "\n    ", " "])
TEXTS = st.lists(WORDS, max_size=40).map("".join) | st.lists(WORDS, max_size=40).map(" ".join)


def outcome_of(text: str, path: str) -> Config | ConfigError:
    try:
        return parse(text, path, {"X": "1"})
    except ConfigError as error:
        return error


@given(TEXTS | st.text(max_size=200))
def test_any_text_is_a_config_or_its_problems(text: str) -> None:
    for path in ("x.yaml", "x.txt"):
        outcome = outcome_of(text, path)
        if isinstance(outcome, ConfigError):
            assert outcome.problems
            for problem in outcome.problems:
                assert problem.message
                assert "\n" not in problem.message + str(problem.hint)


@given(TEXTS)
def test_any_targets_mapping_is_a_config_or_its_problems(text: str) -> None:
    body = text.replace("\n", "\n  ")
    with contextlib.suppress(ConfigError):
        parse(f"apiVersion: krelay/v1\ntargets:\n  {body}\n", "x.yaml", {})


@given(st.binary(max_size=200))
def test_any_bytes_are_a_config_or_an_error(data: bytes) -> None:
    with contextlib.suppress(ConfigError):
        load("-", environ={}, text=data)


@pytest.mark.parametrize(
    "text",
    [
        "apiVersion: krelay/v1\n" + "".join(f"key{n}: 1\n" for n in range(60_000)),
        "apiVersion: krelay/v1\ntargets:\n" + "".join(f"  t{n}: 1\n" for n in range(40_000)),
        "apiVersion: krelay/v1\ntargets:\n" + "".join(f"  t{n}: svc/a 80\n" for n in range(40_000)),
        "".join(f"svc/a 80 -l ::{n:x}\n" for n in range(40_000)),
        "svc/a " + "80 " * 300_000,
        "[" * 1_000_000,
        "a: &a " + "[&b " * 100_000,
        "a: " + "${" * 500_000,
        "a: " + "${X:-" * 200_000,
        "a" * 1_000_000 + ": 1",
        "- " * 500_000,
        "9" * 1_000_000,
        "svc/" + "a." * 400_000 + " 80",
        "svc/a " + "a-" * 400_000,
        "{" + "'" + "a" * 1_000_000,
        "? " * 500_000,
        "apiVersion: krelay/v1\ninclude: [" + "none, " * 40_000 + "]",
        "apiVersion: krelay/v1\nagent: {patches: [" + "{file: none}, " * 15_000 + "]}",
    ],
    ids=range(18),
)
def test_a_hostile_file_takes_bounded_time(text: str) -> None:
    with contextlib.suppress(ConfigError):
        parse(text, "x", {})


@pytest.mark.process
def test_the_libraries_are_not_imported_before_they_are_needed() -> None:
    code = "import sys, krelay.config; print({'yaml', 'jsonschema', 'asyncio'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
