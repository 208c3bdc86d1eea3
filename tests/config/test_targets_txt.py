from __future__ import annotations

from krelay.config.line import parse_line, split
from krelay.config.targets_txt import read, target_of
from krelay.model import Kind, Port, Protocol, Target


def test_what_a_line_leaves_out_is_as_told() -> None:
    line, _ = parse_line(split("svc/a 80"))
    assert line is not None
    target = target_of(line, name="x", namespace="n", context="c", listen="::1", at=3)
    assert target == Target("x", Kind.SERVICE, "a", (Port(80, 80),), "n", "c", "::1")
    assert target.line == 3
    line, _ = parse_line(split("svc/a 80 -n own -l 127.0.0.2"))
    assert line is not None
    target = target_of(line, namespace="n", listen="::1")
    assert (target.namespace, target.listen) == ("own", "127.0.0.2")
    assert target.name == "svc/a 80 -n own -l 127.0.0.2"


def test_targets_with_their_lines_and_claims() -> None:
    config, claims, problems = read("\n# x\n deploy/a 80 53@udp\nweb 81 -l ::1\n", "t.txt")
    assert problems == []
    assert [(target.name, target.line) for target in config.targets] == [
        ("deploy/a 80 53/udp", 3),
        ("pod/web 81 -l ::1", 4),
    ]
    assert config.path == "t.txt"
    assert [(c.port, c.line, c.column) for c in claims] == [
        (Port(80, 80), 3, 11),
        (Port(53, 53, Protocol.UDP), 3, 14),
        (Port(81, 81), 4, 5),
    ]


def test_every_problem_with_its_place() -> None:
    config, claims, problems = read("svc/a 80\nsvc/A x:y\n service/a   80\n", "t.txt")
    assert len(config.targets) == len(claims) == 1
    assert [(p.line, p.column, p.message) for p in problems] == [
        (2, 5, "`A` cannot be the name of an object"),
        (2, 7, "the local port `x` is not a number"),
        (3, 2, "`svc/a 80` is there twice"),
    ]


def test_no_targets_at_all() -> None:
    for text in ("", "\n\n", "# a\n// b\n"):
        (problem,) = read(text, "t.txt")[2]
        assert problem.message == "no targets"
