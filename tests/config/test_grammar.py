from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.config.grammar import (
    LARGEST_SIZE,
    SMALLEST_SIZE,
    ParseError,
    check_port,
    parse_duration,
    parse_listen,
    parse_listen_address,
    parse_port,
    parse_remote,
    parse_resource,
    parse_size,
    quote,
)
from krelay.errors import Problem
from krelay.model import Kind, Port, Protocol, is_loopback

ALIASES = {
    Kind.SERVICE: "svc service services service.v1 services.v1. services.",
    Kind.DEPLOYMENT: "deploy deployment deployments deployment.apps deployments.v1.apps",
    Kind.STATEFULSET: "sts statefulset statefulsets statefulset.apps sts.v1.apps",
    Kind.DAEMONSET: "ds daemonset daemonsets daemonsets.apps",
    Kind.REPLICASET: "rs replicaset replicasets replicasets.apps",
    Kind.JOB: "job jobs job.batch jobs.v1.batch",
    Kind.POD: "po pod pods pods.v1.",
    Kind.HOST: "host",
    Kind.IP: "ip",
}


@pytest.mark.parametrize(
    ("kind", "alias"), [(kind, alias) for kind, line in ALIASES.items() for alias in line.split()]
)
def test_every_name_of_a_kind_in_any_case(kind: Kind, alias: str) -> None:
    for written in (alias, alias.upper(), alias.title()):
        assert parse_resource(f"{written}/10.0.0.7") == (kind, "10.0.0.7")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("web-0", (Kind.POD, "web-0")),
        ("web.0", (Kind.POD, "web.0")),
        ("host/a", (Kind.HOST, "a")),
        ("host/_srv.Corp.example.", (Kind.HOST, "_srv.Corp.example.")),
        ("ip/::1", (Kind.IP, "::1")),
        ("ip/[::0:1]", (Kind.IP, "::1")),
        ("IP/FD00::7", (Kind.IP, "fd00::7")),
    ],
)
def test_a_resource_is_parsed(text: str, expected: tuple[Kind, str]) -> None:
    assert parse_resource(text) == expected


@pytest.mark.parametrize(
    ("text", "offset", "hint"),
    [
        ("", 0, "write `TYPE/NAME`"),
        ("/x", 0, "the types are"),
        ("svc/", 4, "write `TYPE/NAME`"),
        ("svc/A", 4, "lower-case"),
        ("svc/a/b", 4, "lower-case"),
        ("svc/a\n", 4, "lower-case"),
        ("svc/" + "a" * 254, 4, "lower-case"),
        ("servise/a", 0, "did you mean `service/`?"),
        ("hots/a", 0, "did you mean `host/`?"),
        ("svc.apps/a", 0, "the types are"),
        ("deploy.v1/a", 0, "the types are"),
        ("deploy./a", 0, "the types are"),
        ("ip.v1/1.1.1.1", 0, "the types are"),
        ("node/a", 0, "the types are"),
        ("host/a:80", 5, "ip/ADDRESS"),
        ("host/a b", 5, "for example"),
        ("host/" + "a." * 130, 5, "for example"),
        ("ip/1.2.3", 3, "for example"),
        ("ip/", 3, "for example"),
        ("ip/[::1", 3, "for example"),
        ("ip/fe80::1%eth0", 3, "leave out"),
    ],
)
def test_an_invalid_resource_is_an_error(text: str, offset: int, hint: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_resource(text)
    assert caught.value.offset == offset
    assert hint in str(caught.value.hint)


UDP, TCP = Protocol.UDP, Protocol.TCP


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("8080:80", Port(80, 8080)),
        ("8080", Port(8080, 8080)),
        (":80", Port(80, 0)),
        ("0:80", Port(80, 0)),
        ("8080:http", Port("http", 8080)),
        (":http", Port("http", 0)),
        ("http", Port("http")),
        ("1-a", Port("1-a")),
        ("65535", Port(65535, 65535)),
        ("53@udp", Port(53, 53, UDP)),
        ("53@UDP", Port(53, 53, UDP)),
        ("5353:53/tcp", Port(53, 5353, TCP)),
        ("dns/Udp", Port("dns", None, UDP)),
    ],
)
def test_a_port_is_parsed(text: str, port: Port) -> None:
    assert parse_port(text) == port


@pytest.mark.parametrize(
    ("text", "offset", "message"),
    [
        ("", 0, "no remote port"),
        ("8080:", 5, "no remote port"),
        ("@udp", 0, "no remote port"),
        ("0", 0, "port 0 is out of range"),
        (":0", 1, "port 0 is out of range"),
        ("65536", 0, "port 65536 is out of range"),
        ("65536:80", 0, "port 65536 is out of range"),
        ("9" * 5000, 0, "port 999999999999 is out of range"),
        ("1:2:3", 0, "`1:2:3` has one `:` too many"),
        ("x:80", 0, "the local port `x` is not a number"),
        ("-1:80", 0, "the local port `-1` is not a number"),
        ("٣", 0, "`٣` is neither a port nor a port's name"),
        ("a_b", 0, "`a_b` is neither a port nor a port's name"),
        ("1-2", 0, "`1-2` is neither a port nor a port's name"),
        ("a" * 64, 0, f"`{'a' * 60}…` is neither a port nor a port's name"),
        ("80@", 3, '`""` is not a protocol'),
        ("80/sctp", 3, "`sctp` is not a protocol"),
        ("80/tcp@udp", 3, "`tcp@udp` is not a protocol"),
        ("svc/web", 0, "`svc/web` is a second target"),
        ("host/db", 0, "`host/db` is a second target"),
        ("http/web", 5, "`web` is not a protocol"),
        ("svc@web", 4, "`web` is not a protocol"),
    ],
)
def test_an_invalid_port_is_an_error(text: str, offset: int, message: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_port(text)
    assert (caught.value.offset, caught.value.message) == (offset, message)
    assert caught.value.hint


def test_a_remote_port_alone() -> None:
    assert parse_remote("80") == 80
    assert parse_remote("http") == "http"
    with pytest.raises(ParseError):
        parse_remote("8080:80")


def test_only_what_is_in_the_cluster_has_named_ports() -> None:
    check_port(Kind.SERVICE, Port("http"))
    check_port(Kind.IP, Port(80))
    for kind in (Kind.IP, Kind.HOST):
        with pytest.raises(ParseError, match="`http` is a port's name"):
            check_port(kind, Port("http"))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("LocalHost", "localhost"),
        ("[::1]", "::1"),
        ("::0", "::"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
    ],
)
def test_listen_addresses(text: str, address: str) -> None:
    assert parse_listen(text) == address


@pytest.mark.parametrize("text", ["", "*", "example.com", "127.0.0.1:80", "[127.0.0.1", "1.2.3"])
def test_an_invalid_listen_address_is_an_error(text: str) -> None:
    with pytest.raises(ParseError, match="is not an address to listen on"):
        parse_listen(text)


def flaw_of(parse: Callable[[str], object], text: str) -> ParseError | None:
    try:
        parse(text)
    except ParseError as error:
        return error
    return None


NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
REMOTES = st.integers(1, 65535) | NAMES.filter(lambda name: not name.replace("-", "").isdigit())


@st.composite
def ports(draw: st.DrawFn) -> Port:
    remote = draw(REMOTES)
    locals_ = st.integers(0, 65535)
    local = draw(locals_ if isinstance(remote, int) else locals_ | st.none())
    return Port(remote, local, draw(st.none() | st.sampled_from(Protocol)))


@given(ports())
def test_a_port_reads_back_as_it_is_written(port: Port) -> None:
    assert parse_port(str(port)) == port


@given(st.text(max_size=20) | st.text(alphabet="0189:@/tcpud-[]", max_size=12))
def test_any_text_is_parsed_or_an_error_within_it(text: str) -> None:
    for parse in (parse_port, parse_resource, parse_listen):
        error = flaw_of(parse, text)
        assert error is None or 0 <= error.offset <= len(text)


# -- errors ----------------------------------------------------------------------------------------


def test_an_error_moves_with_the_text_that_contains_it() -> None:
    error = ParseError("bad", hint="do better", offset=2).moved(3)
    assert error.at(7, 10) == Problem(7, 15, "bad", "do better")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("web", "`web`"),
        (8080, "`8080`"),
        ("", '`""`'),
        ("a`b", "'a`b'"),
        ("a\nb\x1b[31m\ud800", "`a\\nb\\x1b[31m\\ud800`"),
        ("x" * 100, "`" + "x" * 60 + "…`"),
    ],
)
def test_a_quoted_value_is_one_short_printable_line(value: object, expected: str) -> None:
    assert quote(value) == expected


# -- durations -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (30, 30.0),
        (0.5, 0.5),
        ("30", 30.0),
        ("1.5", 1.5),
        ("500ms", 0.5),
        ("30s", 30.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1h0.5m1s250ms", 3631.25),
        ("24h", 86400.0),
        (0, 0.0),
        ("0s", 0.0),
    ],
)
def test_a_duration_is_parsed_to_seconds(value: float | str, seconds: float) -> None:
    assert parse_duration(value) == seconds


@pytest.mark.parametrize(
    "value",
    ["", "s", " 5s", "5 s", "5s ", "5s\n", "5d", "5m1h", "5s5s", "-5s", "1e3", ".5s", "5.s", "٣s"],
)
def test_a_text_that_is_no_duration_is_an_error(value: str) -> None:
    with pytest.raises(ParseError, match="not a duration"):
        parse_duration(value)


@pytest.mark.parametrize("value", [-1, "25h", 86400.1, float("inf"), float("nan")])
def test_a_duration_out_of_range_is_an_error(value: float | str) -> None:
    with pytest.raises(ParseError, match="out of range"):
        parse_duration(value)


@pytest.mark.parametrize("value", [0, "0", "0h0m"])
def test_zero_is_an_error_if_a_positive_duration_is_wanted(value: float | str) -> None:
    with pytest.raises(ParseError, match="out of range"):
        parse_duration(value, positive=True)


@given(st.text(alphabet="0123456789.hms -", max_size=12))
def test_any_text_is_a_duration_or_an_error(text: str) -> None:
    with contextlib.suppress(ParseError):
        assert 0 <= parse_duration(text) <= 86400


# -- sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "size"),
    [("4Mi", 4 << 20), ("512Ki", 512 << 10), ("131072", SMALLEST_SIZE), (1048576, 1 << 20)]
    + [(262144.0, 256 << 10), ("256Mi", LARGEST_SIZE)],
)
def test_a_size_is_parsed_to_bytes(value: float | str, size: int) -> None:
    assert parse_size(value) == size


@pytest.mark.parametrize("value", ["", "4MB", "4 Mi", "-1", "1.5Mi", "Mi", 131072.5, "4Gi"])
def test_a_text_that_is_no_size_is_an_error(value: float | str) -> None:
    with pytest.raises(ParseError, match="is not a size"):
        parse_size(value)


@pytest.mark.parametrize("value", [0, "1Ki", "257Mi", "999999999999Mi"])
def test_a_size_out_of_range_is_an_error(value: float | str) -> None:
    with pytest.raises(ParseError, match="is out of range"):
        parse_size(value)


@given(st.one_of(st.text(max_size=20), st.integers(), st.floats()))
def test_any_value_is_a_size_or_an_error(value: float | str) -> None:
    with contextlib.suppress(ParseError):
        assert SMALLEST_SIZE <= parse_size(value) <= LARGEST_SIZE


# -- listen addresses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (9527, ("127.0.0.1", 9527)),
        (9527.0, ("127.0.0.1", 9527)),
        ("9527", ("127.0.0.1", 9527)),
        ("0", ("127.0.0.1", 0)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
        ("localhost:80", ("localhost", 80)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_an_address_and_port_are_parsed(value: int | str, place: tuple[str, int]) -> None:
    assert parse_listen_address(value) == place


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("127.0.0.1", "`127.0.0.1` has no port"),
        ("127.0.0.1:", "`127.0.0.1:` has no port"),
        ("127.0.0.1:http", "`127.0.0.1:http` has no port"),
        ("::1:80", "`::1:80` is ambiguous: an IPv6 address needs brackets"),
        ("127.0.0.1:65536", "port 65536 is out of range"),
        ("1" * 5000, "port 111111111111 is out of range"),
        (":80", '`""` is not an address to listen on'),
        ("example.org:80", "`example.org` is not an address to listen on"),
    ],
)
def test_an_invalid_address_and_port_are_an_error(value: str, message: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_listen_address(value)
    assert caught.value.message == message
    assert caught.value.hint


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_addresses_are_recognized(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.0.0.1", "192.168.1.2", "fe80::1%1"])
def test_other_addresses_are_not_loopback(address: str) -> None:
    assert not is_loopback(address)


@given(st.text(alphabet="0123456789.:[]lochst%é٣", max_size=40))
def test_any_text_is_an_address_or_an_error(text: str) -> None:
    with contextlib.suppress(ParseError):
        address, port = parse_listen_address(text)
        assert 0 <= port <= 65535
        is_loopback(address)
