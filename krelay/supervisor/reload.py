"""Reload: from the file to the supervisor, whenever it changes; a file that is wrong changes
nothing but what is known of it."""

from __future__ import annotations

import asyncio
import logging
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from krelay.config.changes import Change
from krelay.config.watch import Mode, Offload, watch
from krelay.errors import ConfigError, KrelayError
from krelay.model import Config
from krelay.state.error_codec import to_json
from krelay.supervisor.apply_request import ApplyRequest
from krelay.supervisor.supervisor import Supervisor

logger = logging.getLogger("krelay.reload")

DEADLINE = 30.0
"""Seconds for reading and checking a file; its own bounds end that before."""
_MOST = 4


@dataclass(frozen=True, slots=True)
class OutOfSync:
    """The file says something else than what runs: since when, and what is wrong with it; nothing
    is, where it is being carried out."""

    since: datetime
    error: KrelayError | None = None


class Source(Protocol):
    """Where configs come from."""

    def load(self) -> Config:
        """What it says now. Blocks. Raises UsageError or ConfigError."""


class Reloader:
    """Hands a supervisor the newest config that `source` has."""

    def __init__(self, source: Source, supervisor: Supervisor, config: Config) -> None:
        """`config` is what the supervisor began with."""
        self.source = source
        self._supervisor = supervisor
        self._loading = asyncio.Lock()
        self._planning = asyncio.Lock()
        self._reads = Offload("reading the file", within=DEADLINE, most=_MOST)
        self._plans = Offload("reading the file of a plan", within=DEADLINE, most=_MOST)
        self._files = config.files
        self._drift: OutOfSync | None = None
        self._want: ApplyRequest | None = None
        self.failed = 0
        """How many times it was wrong."""

    @property
    def drift(self) -> OutOfSync | None:
        """None while what runs is what the file said when it was last read."""
        want = self._want
        if self._drift is not None or want is None:
            return self._drift
        # What has yet to start is no edit.
        waits = self._supervisor.started.is_set() and not want.done.is_set()
        return OutOfSync(want.made, want.failure) if want.failure or waits else None

    @property
    def files(self) -> tuple[str, ...]:
        """The file, and those that it includes."""
        return self._files

    async def watch(self, mode: Mode) -> None:
        """Reload whenever one of the files changes; lasts until it is cancelled."""
        async for changed in watch(lambda: self._files, mode):
            names = ", ".join(sorted(Path(file).name for file in changed))
            try:
                await self.load(f"{names} changed" if names else "a second look")
            except KrelayError:
                continue  # it was told

    async def load(self, reason: str) -> ApplyRequest:
        """Hand over what the file says now; `done` of what comes back tells when that is over.

        Raises:
            UsageError: the file cannot be read.
            ConfigError: the file is wrong. What ran before stays, and this was told.
        """
        async with self._loading:
            try:
                config = await self._reads.run(self.source.load)
            except KrelayError as exc:
                self._wrong(exc)
                raise
            except Exception as exc:
                # A file that finds a bug is a wrong file: what runs has nothing to do with it.
                # What it says may hold a part of the file, and so a secret.
                stack = "".join(traceback.format_tb(exc.__traceback__))
                logger.error("reading the file failed: %s\n%s", type(exc).__name__, stack)
                error = KrelayError(f"internal error: {type(exc).__name__}")
                self._wrong(error)
                raise error from exc
            self._files = config.files
            if self._drift is not None:
                logger.info("%s is right again", config.path)
                self._drift = None
            self._want = self._supervisor.want(config, reason)
            return self._want

    async def reload(self, reason: str) -> list[Change]:
        """`load`, and wait until it is carried out, or a newer one that took its place; what
        changed.

        Raises:
            KrelayError: the file is wrong, or it could not be carried out (yet).
        """
        want: ApplyRequest | None = await self.load(reason)
        wants: list[ApplyRequest] = []
        while want is not None:
            await want.done.wait()
            if want.failure is not None:
                raise want.failure
            wants.append(want)
            want = want.newer
        return [change for want in wants for change in want.changes]

    async def plan(self, source: Source | None = None) -> list[Change]:
        """What `reload` would change; or, with another file, what that would.

        Raises:
            UsageError: the file cannot be read.
            ConfigError: the file is wrong.
        """
        async with self._planning:
            config = await self._plans.run((source or self.source).load)
        return self._supervisor.plan(config)

    def _wrong(self, exc: KrelayError) -> None:
        known = self._drift
        self.failed += 1
        if isinstance(exc, ConfigError):
            self._files = tuple(dict.fromkeys((*exc.files, *self._files)))
        if known is None or known.error is None or known.error.report() != exc.report():
            logger.error("%s", "\n".join([*exc.report(), "what ran before stays"]))
            self._supervisor.bus.tell("reload", f"refused: {exc}", error=to_json(exc))
        self._drift = OutOfSync(known.since if known else datetime.now(UTC), exc)
