"""`krelay up`: a supervisor, and signals that end it."""

from __future__ import annotations

import asyncio
import dataclasses
import difflib
import logging
import signal

from krelay.cli.output import hush, say
from krelay.errors import UsageError
from krelay.model import Config
from krelay.mux.files import raise_file_limit
from krelay.supervisor import Supervisor

logger = logging.getLogger("krelay.cli")

_INTERRUPTED = 130


def run(config: Config, names: tuple[str, ...], *, embedded: bool = False) -> int:
    """Relay until a signal; the exit code.

    Raises:
        KrelayError: it could not start.
    """
    config = _select(config, names)
    if embedded:
        config = dataclasses.replace(config, agent=dataclasses.replace(config.agent, embedded=True))
    raise_file_limit()
    return asyncio.run(_run(config))


async def _run(config: Config) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    supervisor = Supervisor(config, _announce)
    task = asyncio.current_task()
    assert task is not None

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            logger.info("%s again: stopping at once", number.name)
            task.cancel()
        else:
            logger.info("%s: stopping", number.name)
            stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    try:
        await supervisor.run(stop)
    except asyncio.CancelledError:
        return _INTERRUPTED
    return 0


def _announce(line: str) -> None:
    """Say that a forward is ready, if anybody still listens: `krelay up | head -1` relays on."""
    try:
        say(line)
    except BrokenPipeError:
        hush()


def _select(config: Config, names: tuple[str, ...]) -> Config:
    """Only the targets with these names, in the file's order; all where none is named.

    Raises:
        UsageError: the file has no such target.
    """
    known = [target.name for target in config.targets]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"it has: {', '.join(known)}"
            raise UsageError(f"{config.path} has no target `{name}`", hint=hint)
    if not names:
        return config
    chosen = tuple(target for target in config.targets if target.name in names)
    return dataclasses.replace(config, targets=chosen)
