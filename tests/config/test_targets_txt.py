from __future__ import annotations

from krelay.config.grammar import parse_line, split, target_of
from krelay.config.load import read_lines
from krelay.model import Kind, Port, Protocol, Target


def test_what_a_line_leaves_out_is_as_told() -> None:
    line, _ = parse_line(split("svc/a 80"))
    assert line is not None
    target = target_of(
        line, name="x", namespace="n", context="c", listen="::1", place=(3, 2), file="f"
    )
    assert target == Target("x", Kind.SERVICE, "a", (Port(80, 80),), "n", "c", "::1")
    assert (target.file, target.line, target.column) == ("f", 3, 2)
    line, _ = parse_line(split("svc/a 80 -n own -l 127.0.0.2"))
    assert line is not None
    target = target_of(line, namespace="n", listen="::1")
    assert (target.namespace, target.listen) == ("own", "127.0.0.2")
    assert target.name == "svc/a 80 -n own -l 127.0.0.2"


def test_targets_with_their_lines_and_listen_addresses() -> None:
    part = read_lines("\n# x\n deploy/a 80 53@udp\nweb 81 -l ::1\n", "t.txt")
    assert part.problems == []
    assert [(t.name, t.file, t.line, t.column) for t in part.config.targets] == [
        ("deploy/a 80 53/udp", "t.txt", 3, 2),
        ("pod/web 81 -l ::1", "t.txt", 4, 1),
    ]
    assert part.config.path == "t.txt"
    assert [(c.port, c.line, c.column) for c in part.listen_addresses] == [
        (Port(80, 80), 3, 11),
        (Port(53, 53, Protocol.UDP), 3, 14),
        (Port(81, 81), 4, 5),
    ]


def test_what_holds_for_every_line() -> None:
    part = read_lines("svc/a 80\nsvc/b 81 -n own -l ::2\n", "t.txt", namespace="n", listen="::1")
    assert [(t.namespace, t.listen) for t in part.config.targets] == [("n", "::1"), ("own", "::2")]


def test_every_problem_with_its_place() -> None:
    part = read_lines("svc/a 80\nsvc/A x:y\n service/a   80\n", "t.txt")
    assert len(part.config.targets) == len(part.listen_addresses) == 1
    assert [(p.line, p.column, p.message) for p in part.problems] == [
        (2, 5, "`A` cannot be the name of an object"),
        (2, 7, "the local port `x` is not a number"),
        (3, 2, "`svc/a 80` is there twice"),
    ]


def test_no_targets_at_all() -> None:
    for text in ("", "\n\n", "# a\n// b\n"):
        (problem,) = read_lines(text, "t.txt").problems
        assert problem.message == "no targets"
