"""Selection: what a command was asked for, a file or some of its targets; loaded as often as
it changes."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from krelay.config import files
from krelay.config.load import load
from krelay.config.overlay import Overlay
from krelay.config.parse_error import quote
from krelay.config.validation import MAX_PROBLEMS
from krelay.errors import ConfigError, Problem, UsageError
from krelay.model import Config, Target

_SHOWN = 20
"""Targets that an error names."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The file at `path` (None: the one of this directory), or `text` where that has been read from
    it already; only the targets in `names` if there are any, with an agent on this machine if
    `embedded`, under `overlay`."""

    path: str | None
    names: tuple[str, ...] = ()
    embedded: bool = False
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    text: bytes | None = field(default=None, repr=False)
    overlay: Overlay = Overlay()

    @property
    def file(self) -> str | None:
        """The path of the file; None for what was read once, standard input or a pipe."""
        if self.path == files.STDIN or self.text is not None:
            return None
        return files.find(self.path)

    def load(self) -> Config:
        """What it says now. Blocks.

        Raises:
            UsageError: the file cannot be read, or has no such target.
            ConfigError: the file is wrong; carries every problem.
        """
        config = load(self.path, environ=self.environ, text=self.text)
        if self.names:
            config = dataclasses.replace(config, targets=_chosen(config, self.names))
        if self.embedded:
            agent = dataclasses.replace(config.agent, embedded=True)
            config = dataclasses.replace(config, agent=agent)
            check_embedded(config)
        return self.overlay.over(config)


def _chosen(config: Config, names: tuple[str, ...]) -> tuple[Target, ...]:
    """The targets with these names, in the file's order."""
    known = [target.name for target in config.targets]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            some = ", ".join(map(quote, known[:_SHOWN])) + ", …" * (len(known) > _SHOWN)
            hint = f"did you mean {quote(near[0])}?" if near else f"it has: {some}"
            raise UsageError(f"{config.path} has no target {quote(name)}", hint=hint)
    return tuple(target for target in config.targets if target.name in names)


def check_embedded(config: Config) -> None:
    """An embedded agent runs on this machine, where no cluster's objects are.

    Raises:
        ConfigError: a target is one.
    """
    problems = [
        Problem(
            target.line,
            target.column,
            f"target {quote(target.name)}: {target} needs a cluster, and the agent is embedded",
            "use `host/NAME` or `ip/ADDR`, or leave `embedded` out",
            None if target.file == config.path else target.file,
        )
        for target in config.targets
        if target.kind.in_cluster
    ]
    if problems:
        raise ConfigError(config.path, problems[:MAX_PROBLEMS], files=config.files)
