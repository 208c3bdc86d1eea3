"""ApplyRequest: a config on its way from the reloader to the supervisor, and its outcome."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime

from krelay.config.changes import Change
from krelay.errors import KrelayError
from krelay.model import Config


@dataclass(eq=False, slots=True)
class ApplyRequest:
    """A config to be carried out, and why. When `done` is set, it was, or `failure` says why not
    (yet: it is tried again), or a `newer` one took its place."""

    config: Config
    reason: str
    made: datetime = field(default_factory=lambda: datetime.now(UTC))
    done: asyncio.Event = field(default_factory=asyncio.Event)
    changes: list[Change] = field(default_factory=list)
    failure: KrelayError | None = None
    newer: ApplyRequest | None = None

    def replace(self, newer: ApplyRequest) -> None:
        """Whoever still waits for this one is to wait for that."""
        if not self.done.is_set():
            self.newer = newer
            self.done.set()

    def give_up(self, failure: KrelayError) -> None:
        """It never will be carried out, if it has not been yet."""
        if not self.done.is_set():
            self.failure = failure
            self.done.set()
