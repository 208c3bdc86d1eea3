from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.config.grammar import MAX_ERRORS, MAX_PORT, Line, Word, parse_line, split
from krelay.model import Kind, Port, Protocol


def parse(text: str) -> tuple[Line | None, list[tuple[int, str]]]:
    line, errors = parse_line(split(text))
    return line, [(error.offset, error.message) for error in errors]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("  a\tb ", [("a", 2), ("b", 4)]),
        ("# a", []),
        ("//a b", []),
        ("a # b", [("a", 0)]),
        ("a // b", [("a", 0)]),
        ("a#b c//d", [("a#b", 0), ("c//d", 4)]),
    ],
)
def test_a_line_is_split_into_words_without_its_comment(
    text: str, words: list[tuple[str, int]]
) -> None:
    assert split(text) == [Word(*word) for word in words]


def test_a_line_with_every_option_is_parsed() -> None:
    line, errors = parse("-n kube-system svc/dns 5353:53@udp --address=::1 metrics")
    assert errors == []
    assert line == Line(
        Kind.SERVICE,
        "dns",
        (Port(53, 5353, Protocol.UDP), Port("metrics")),
        "kube-system",
        "::1",
        (23, 49),
    )
    assert str(line) == "svc/dns 5353:53/udp metrics -n kube-system -l ::1"


@pytest.mark.parametrize("option", ["-n a", "-n=a", "-na", "--namespace a", "--namespace=a"])
def test_an_option_has_several_forms(option: str) -> None:
    for text in (f"{option} web 80", f"web {option} 80", f"web 80 {option}"):
        line, errors = parse(text)
        assert (str(line), errors) == ("pod/web 80 -n a", [])


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ("", [(0, "no target")]),
        ("-n a", [(4, "no target")]),
        ("web", [(3, "`web` has no port")]),
        ("/web 80", [(0, "no type")]),
        ("svc/web svc/db 80", [(8, "`svc/db` is a second target")]),
        ("web 80 -n", [(7, "`-n` has no value")]),
        ("web 80 -n=", [(10, '`""` cannot be a namespace')]),
        ("web 80 -nA_b", [(9, "`A_b` cannot be a namespace")]),
        ("web 80 -l there", [(10, "`there` is not an address to listen on")]),
        ("web 80 -n a --namespace=b", [(12, "`--namespace` sets the namespace again")]),
        ("web 80 --context x y/z", [(7, "unknown option `--context`")]),
        ("-l x web -p 80", [(3, "`x` is not an address to listen on"), (9, "unknown option `-p`")]),
        ("ip/1.1.1.1 http", [(11, "`http` is a port's name, and `ip/` has none")]),
        (
            "nope/a x:1 0 80",
            [
                (0, "`nope` is not a type of target"),
                (7, "the local port `x` is not a number"),
                (11, "port 0 is out of range"),
            ],
        ),
    ],
)
def test_every_problem_is_reported_at_its_place(text: str, errors: list[tuple[int, str]]) -> None:
    assert parse(text) == (None, errors)


LINES = st.builds(
    Line,
    kind=st.sampled_from([kind for kind in Kind if kind.in_cluster]),
    resource=st.from_regex(r"[a-z0-9]([a-z0-9.]?[a-z0-9]){0,5}", fullmatch=True),
    ports=st.lists(
        st.builds(
            Port,
            remote=st.integers(1, 65535),
            local=st.integers(0, 65535),
            protocol=st.none() | st.sampled_from(Protocol),
        ),
        min_size=1,
        max_size=3,
    ).map(tuple),
    namespace=st.none() | st.from_regex(r"[a-z0-9]{1,5}", fullmatch=True),
    listen=st.none() | st.ip_addresses().map(str).filter(lambda text: "ffff:" not in text),
)


@given(LINES)
def test_a_line_reads_back_as_it_is_written(line: Line) -> None:
    read, errors = parse_line(split(str(line)))
    assert errors == []
    assert str(read) == str(line)
    assert read is not None
    assert (read.kind, read.resource, read.ports) == (line.kind, line.resource, line.ports)
    assert (read.namespace, read.listen) == (line.namespace, line.listen)


@given(st.text(max_size=40) | st.text(alphabet="-nl= svc/a80:@#", max_size=30))
def test_any_text_is_a_line_or_errors_within_it(text: str) -> None:
    line, errors = parse_line(split(text))
    assert (line is None) == bool(errors)
    assert all(0 <= error.offset <= len(text) for error in errors)


def test_the_errors_of_a_line_are_limited() -> None:
    for text in ("svc/a " + "x! " * 1_000, "svc/a 80 " + "-n a " * 1_000, "- " + "-n " * 1_000):
        assert len(parse(text)[1]) <= MAX_ERRORS + 2
    errors = parse("svc/a " + ":1 " * (MAX_PORT + 9))[1]
    assert errors == [(6 + 3 * MAX_PORT, f"more than {MAX_PORT} ports")]
