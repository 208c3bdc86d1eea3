"""Lines: targets that a program names itself, as lines of targets.txt, in a file's place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from krelay.config.conflicts import Claim, conflicts
from krelay.config.line import parse_line, split
from krelay.config.parse_error import quote
from krelay.config.selection import check_embedded
from krelay.config.targets_txt import target_of
from krelay.errors import ConfigError, Problem
from krelay.model import AgentConfig, Config, Target


@dataclass(frozen=True, slots=True)
class Lines:
    """`targets` has a name and a line for each; the rest is what a file would say under the same
    keys. `path` stands for the file in messages."""

    targets: tuple[tuple[str, str], ...]
    context: str | None = None
    namespace: str | None = None
    embedded: bool = False
    path: str = "<lines>"

    @property
    def file(self) -> None:
        """There is none."""

    def load(self) -> Config:
        """What they say.

        Raises:
            ConfigError: a line is wrong, or there is none; carries every problem.
        """
        targets: dict[str, Target] = {}
        claims: list[Claim] = []
        problems: list[Problem] = []
        for name, text in self.targets:
            line, flaws = parse_line(split(text))
            problems += [_problem(name, flaw.message, flaw.hint) for flaw in flaws]
            if name in targets:
                problems.append(_problem(name, "it is there twice", "give one another name"))
            elif line is not None:
                target = targets[name] = target_of(line, name=name, file=self.path)
                claims += [Claim(target, port, 0, 0) for port in target.ports]
        for earlier, later in conflicts(claims):
            message = f"`{later}` is taken by {quote(earlier.target.name)}"
            hint = "leave the local port empty (`:80`) for a free one"
            problems.append(_problem(later.target.name, message, hint))
        if not self.targets:
            hint = 'name one: `"svc/nginx 8080:80"` or `web="svc/nginx :80"`'
            problems.append(Problem(0, 0, "no targets", hint))
        if problems:
            raise ConfigError(self.path, problems)
        config = Config(
            tuple(targets.values()),
            context=self.context,
            namespace=self.namespace,
            agent=AgentConfig(embedded=self.embedded),
            path=self.path,
        )
        if self.embedded:
            check_embedded(config)
        return config


def named(texts: Iterable[str], by_name: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Names and lines: of texts, whose lines are their own names (without comments, and with one
    space between words), and of a mapping."""
    found: list[tuple[str, str]] = []
    for text in texts:
        lines = (" ".join(word.text for word in split(line)) for line in text.splitlines())
        found += [(line, line) for line in lines if line]
    return (*found, *by_name.items())


def _problem(name: str, message: str, hint: str | None) -> Problem:
    return Problem(0, 0, f"{quote(name)}: {message}", hint)
