"""targets.txt, the Go krelay's own file: one target a line, named by what it says."""

from __future__ import annotations

from typing import Any

from krelay.config.conflicts import Claim
from krelay.config.line import Line, parse_line, split
from krelay.config.parse_error import quote
from krelay.config.part import MAX_FORWARDS, Part
from krelay.config.validation import MAX_PROBLEMS
from krelay.errors import Problem
from krelay.model import LOOPBACK, Check, Config, Target


def target_of(
    line: Line,
    *,
    name: str | None = None,
    namespace: str | None = None,
    context: str | None = None,
    listen: str = LOOPBACK,
    check: Check = Check(),  # noqa: B008
    place: tuple[int, int] = (0, 0),
    file: str = "",
) -> Target:
    """The target that a line describes; what the line leaves out is as the arguments say."""
    return Target(
        name=str(line) if name is None else name,
        kind=line.kind,
        resource=line.resource,
        ports=line.ports,
        namespace=namespace if line.namespace is None else line.namespace,
        context=context,
        listen=listen if line.listen is None else line.listen,
        check=check,
        line=place[0],
        column=place[1],
        file=file,
    )


def read(text: str, path: str, **everyone: Any) -> Part:
    """The targets of the file. It cannot say what holds for `everyone`: the arguments do."""
    problems: list[Problem] = []
    claims: list[Claim] = []
    targets: dict[str, Target] = {}
    for number, content in enumerate(text.split("\n"), start=1):
        if len(problems) > MAX_PROBLEMS:
            break  # half a million would be gathered to tell of a hundred
        words = split(content)
        if not words:
            continue
        line, flaws = parse_line(words)
        problems += [flaw.at(number, 1) for flaw in flaws]
        if line is None:
            continue
        column = words[0].offset + 1
        target = target_of(line, place=(number, column), file=path, **everyone)
        if target.name in targets:
            hint = f"line {targets[target.name].line} says the same; keep one of them"
            problems.append(Problem(number, column, f"{quote(target.name)} is there twice", hint))
            continue
        targets[target.name] = target
        claims += [
            Claim(target, port, number, offset + 1)
            for port, offset in zip(line.ports, line.offsets, strict=True)
        ]
        if len(claims) > MAX_FORWARDS:
            break  # `join` says so
    if not targets and not problems:
        problems.append(Problem(1, 1, "no targets", "write a line such as `svc/nginx 8080:80`"))
    return Part(Config(tuple(targets.values()), path=path), claims, problems)
