"""What each file of a config says -> one Config, and the problems that show only in all of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from krelay.config.conflicts import Claim, conflicts
from krelay.config.parse_error import quote
from krelay.config.validation import MAX_PROBLEMS
from krelay.config.yaml_reader import Node
from krelay.errors import Problem
from krelay.model import Config, Target

MAX_FORWARDS = 10_000
"""Ports of all targets together, in all files."""


@dataclass(frozen=True, slots=True)
class Part:
    """One file by itself: its config, and every problem found in it; whole without any.

    `claims` are those to local addresses. `include` names other files, and
    `everyone` has what holds for every target that says nothing else.
    """

    config: Config
    claims: list[Claim] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    include: list[Node] = field(default_factory=list)
    everyone: dict[str, Any] = field(default_factory=dict)


def too_many(line: int, column: int, file: str) -> Problem:
    """What a target is that has one forward more than MAX_FORWARDS."""
    hint = "forward the ports that are used"
    return Problem(line, column, f"more than {MAX_FORWARDS} forwards", hint, file)


def join(parts: Sequence[Part]) -> tuple[Config, list[Problem]]:
    """The config of the first part with the targets of all, and every problem."""
    main = parts[0].config
    problems = [
        problem if problem.path else dataclasses.replace(problem, path=part.config.path)
        for part in parts
        for problem in part.problems
    ]
    forwards = 0
    targets: dict[str, Target] = {}
    again: list[tuple[Target, Target]] = []
    for target in chain.from_iterable(part.config.targets for part in parts):
        first = targets.setdefault(target.name, target)
        if first is not target:
            again.append((first, target))
        forwards += len(target.ports)
        if forwards > MAX_FORWARDS:
            problems.append(too_many(target.line, target.column, target.file))
            break
    claims = (
        claim
        for part in parts
        for claim in part.claims
        # Only the first file says what listens besides targets.
        if (part is parts[0] if claim.what else targets.get(claim.target.name) is claim.target)
    )
    for found in (
        (_twice(first, later) for first, later in again),
        (_conflict(earlier, later) for earlier, later in conflicts(claims)),
        _unreachable(targets.values()) if main.agent.embedded else (),
    ):
        problems += islice(found, MAX_PROBLEMS + 1)
    return dataclasses.replace(main, targets=tuple(targets.values())), problems


def _twice(first: Target, later: Target) -> Problem:
    return Problem(
        later.line,
        later.column,
        f"the name {quote(later.name)} is taken by {first.file}, line {first.line}",
        "give one of them another name, or remove it",
        later.file,
    )


def _conflict(earlier: Claim, later: Claim) -> Problem:
    what = earlier.what or f"target {quote(earlier.target.name)}"
    place = f"{what}, line {earlier.line}"
    if earlier.target.file != later.target.file:
        place += f" of {earlier.target.file}"
    if str(earlier) == str(later):
        message = f"`{later}` is taken by {place}"
    else:
        message = f"`{later}` overlaps `{earlier}` of {place}"
    hint = "give one of them another local port"
    if earlier.port.protocol is None or later.port.protocol is None:
        hint += ", or say `/udp` if one of them is"
    return Problem(later.line, later.column, message, hint, later.target.file)


def _unreachable(targets: Iterable[Target]) -> Iterator[Problem]:
    for target in targets:
        if target.kind.in_cluster:
            yield Problem(
                target.line,
                target.column,
                f"`{target}` is in a cluster, and an embedded agent is not",
                "remove `agent.embedded`, or use `host/` and `ip/` targets",
                target.file,
            )
