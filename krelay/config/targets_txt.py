"""targets.txt, the Go krelay's own file: one target a line, named by what it says."""

from __future__ import annotations

from krelay.config.conflicts import Claim
from krelay.config.flaw import quote
from krelay.config.line import Line, parse_line, split
from krelay.errors import Problem
from krelay.model import LOOPBACK, Config, Target


def target_of(
    line: Line,
    *,
    name: str | None = None,
    namespace: str | None = None,
    context: str | None = None,
    listen: str = LOOPBACK,
    at: int = 0,
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
        line=at,
    )


def read(text: str, path: str) -> tuple[Config, list[Claim], list[Problem]]:
    """The targets of the file, their claims to local addresses, and every problem."""
    problems: list[Problem] = []
    claims: list[Claim] = []
    targets: dict[str, Target] = {}
    for number, content in enumerate(text.split("\n"), start=1):
        words = split(content)
        if not words:
            continue
        line, flaws = parse_line(words)
        problems += [flaw.at(number, 1) for flaw in flaws]
        if line is None:
            continue
        target = target_of(line, at=number)
        if target.name in targets:
            column = words[0].offset + 1
            hint = f"line {targets[target.name].line} says the same; keep one of them"
            problems.append(Problem(number, column, f"{quote(target.name)} is there twice", hint))
            continue
        targets[target.name] = target
        claims += [
            Claim(target, port, number, offset + 1)
            for port, offset in zip(line.ports, line.offsets, strict=True)
        ]
    if not targets and not problems:
        problems.append(Problem(1, 1, "no targets", "write a line such as `svc/nginx 8080:80`"))
    return Config(tuple(targets.values()), path=path), claims, problems
