"""Checks: the texts and mappings of a file, and their meaning for a port."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.config import load
from krelay.config.grammar import ParseError, parse_check, read_check
from krelay.model import Check, CheckKind, Protocol

HTTP = CheckKind.HTTP


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("auto", Check()),
        ("dial", Check(CheckKind.DIAL)),
        (" None ", Check(CheckKind.NONE)),
        ("http /", Check(HTTP)),
        ("HTTP head /a?b=c->204", Check(HTTP, "HEAD", "/a?b=c->204")),
        ("http GET /healthz -> 200", Check(HTTP, path="/healthz", status=200)),
        ("http GET /a ->200", Check(HTTP, path="/a", status=200)),
        ("http /a-> 200", Check(HTTP, path="/a", status=200)),
        ("dns example.com.", Check(CheckKind.DNS, name="example.com.")),
    ],
)
def test_a_check_of_one_line_is_parsed(text: str, check: Check) -> None:
    assert parse_check(text) == check
    assert parse_check(str(check)) == check


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({"http": None}, "http GET /"),
        ({"http": {"path": "/a", "method": "post", "status": 201.0}}, "http POST /a -> 201"),
        ({"dns": "a.b"}, "dns a.b"),
        ({}, "auto"),
    ],
)
def test_a_check_as_a_mapping_is_parsed(parts: dict[str, Any], text: str) -> None:
    assert str(read_check(parts)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "dial now",
        "tcp",
        "dns",
        "dns a b",
        "dns a..b",
        "dns " + "a" * 64,
        "dns " + ".".join(["a" * 60] * 5),
        "http",
        "http GET",
        "http G3T /",
        f"http {'G' * 21} /",
        "http / -> 2000",
        "http / -> ٢00",
        "http /\u00e9",
        "http GET / extra",
    ],
)
def test_a_text_that_is_no_check_is_an_error(text: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_check(text)
    assert caught.value.hint


@given(st.text(max_size=60) | st.from_regex(r"(http|dns)( [ -~]{0,20}){1,4}", fullmatch=True))
def test_any_text_is_a_check_that_reads_back_or_an_error(text: str) -> None:
    try:
        check = parse_check(text)
    except ParseError as error:
        assert error.hint
        return
    assert parse_check(str(check)) == check


def test_what_a_port_can_be_asked() -> None:
    dns, http, dial = Check(CheckKind.DNS, name="a"), Check(HTTP), Check(CheckKind.DIAL)
    nothing = Check(CheckKind.NONE)
    found = {
        protocol: [check.of(protocol) for check in (Check(), dial, http, dns, nothing)]
        for protocol in Protocol
    }
    assert found[Protocol.TCP] == [Check(), dial, http, dial, nothing]
    assert found[Protocol.UDP] == [Check(), nothing, nothing, dns, nothing]


def test_a_target_uses_its_own_settings_or_the_defaults(tmp_path: Path) -> None:
    file, lines = tmp_path / "krelay.yaml", tmp_path / "targets.txt"
    lines.write_text("svc/old 8099:80\n")
    file.write_text(
        "apiVersion: krelay/v1\n"
        "defaults: {check: none}\n"
        "include: [targets.txt]\n"
        "targets:\n"
        "  short: svc/a 80\n"
        "  long: {target: svc/b, port: 81}\n"
        "  own: {target: svc/c, port: 82, check: dial}\n"
        "  parts: {target: svc/d, port: 83, check: {http: {path: /x}}}\n"
    )
    config = load(str(file), environ={})
    assert [str(target.check) for target in config.targets] == [
        "none",
        "none",
        "dial",
        "http GET /x",
        "none",
    ]
