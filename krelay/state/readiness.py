"""Readiness: whether all that was asked for is ready, and what is not. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from krelay.state.snapshot import ForwardState, Snapshot, State


@dataclass(frozen=True, slots=True)
class Readiness:
    """`waiting` has the forwards that are not ready, `unknown` the names that no target has.
    `starting`: there is nothing yet that could be ready."""

    waiting: tuple[ForwardState, ...]
    unknown: tuple[str, ...] = ()
    starting: bool = False

    @property
    def ready(self) -> bool:
        """Whether nothing is left to wait for."""
        return not (self.waiting or self.unknown or self.starting)

    def as_json(self) -> dict[str, Any]:
        """Its JSON form."""
        return {
            "ready": self.ready,
            "reason": "nothing is relayed yet" if self.starting else "",
            "notReady": [
                {
                    "target": forward.target,
                    "forward": forward.name,
                    "state": forward.state,
                    "reason": forward.reason,
                    "since": forward.since.isoformat(),
                }
                for forward in self.waiting
            ],
        }


def readiness(report: Snapshot, names: Collection[str] = ()) -> Readiness:
    """That of the targets with these names, or of all of them."""
    return readiness_of(report.forwards, names)


def readiness_of(forwards: Collection[ForwardState], names: Collection[str] = ()) -> Readiness:
    """The same, of all forwards that there are."""
    if not forwards:
        return Readiness((), starting=True)
    known = {forward.target for forward in forwards}
    asked = [f for f in forwards if not names or f.target in names]
    # What drains beside others has had its time.
    staying = {f.target for f in asked if f.state is not State.DRAINING}

    def counts(f: ForwardState) -> bool:
        alone = f.target not in staying if names else not staying
        return f.state is not State.DRAINING or alone

    return Readiness(
        tuple(f for f in asked if f.state is not State.READY and counts(f)),
        tuple(dict.fromkeys(name for name in names if name not in known)),
    )
