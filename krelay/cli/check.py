"""`krelay check`: what is wrong with a file."""

from __future__ import annotations

import dataclasses
from json import dumps

from krelay.cli.output import say
from krelay.config.selection import Selection
from krelay.errors import ConfigError


def run(selection: Selection, *, json: bool) -> int:
    """Say that the file is right, or have every problem told; the exit code.

    Raises:
        UsageError: the file cannot be read.
        ConfigError: it is wrong, and people are to read of that.
    """
    try:
        config = selection.load()
    except ConfigError as exc:
        if not json:
            raise
        problems = [
            {**dataclasses.asdict(problem), "path": problem.path or exc.path}
            for problem in exc.problems
        ]
        say(dumps({"path": exc.path, "ok": False, "problems": problems}, indent=2))
        return exc.exit_code
    names = [target.name for target in config.targets]
    if json:
        say(dumps({"path": config.path, "ok": True, "problems": [], "targets": names}, indent=2))
    else:
        say(f"{config.path}: ok, {len(names)} target{'' if len(names) == 1 else 's'}")
    return 0
