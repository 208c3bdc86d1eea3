"""Events: what happens in a running krelay, one class for each kind.

The part that causes an event publishes it on the `EventBus`. A `PublicEvent` is also numbered,
kept for late listeners and sent by `/v1/events`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar

from krelay.errors import KrelayError
from krelay.state.error_codec import to_json
from krelay.state.states import ContextState, ForwardState, State, json_form
from krelay.text import one_line


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. Only subscribers of this process see it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicEvent(Event):
    """An event for people and other programs; the bus assigns `number`, from 1."""

    kind: ClassVar[str]
    shown: ClassVar[tuple[str, ...]] = ()
    """The fields that programs read."""
    number: int = 0
    time: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def about(self) -> str | None:
        """The target that the event is about, if it is about one."""
        return None

    @property
    def text(self) -> str:
        """One line for people."""
        raise NotImplementedError

    @property
    def details(self) -> dict[str, Any]:
        """What programs read, as JSON values."""
        return {name: getattr(self, name) for name in self.shown}

    def as_json(self) -> dict[str, Any]:
        """Return the JSON form, with texts safe to display."""
        return {
            "number": self.number,
            "time": self.time.isoformat(),
            "kind": self.kind,
            "target": json_form(self.about),
            "text": one_line(self.text),
            "details": json_form(self.details),
        }


# -- forwards --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ForwardChanged(PublicEvent):
    """A forward changed its state, or the reason for it."""

    kind = "state"
    target: str
    name: str
    index: int
    before: State
    state: State
    reason: str = ""

    @property
    def about(self) -> str | None:
        return self.target

    @property
    def text(self) -> str:
        return f"{self.name}: {self.state}{f': {self.reason}' if self.reason else ''}"

    @property
    def details(self) -> dict[str, Any]:
        return {
            "from": self.before.value,
            "to": self.state.value,
            "reason": self.reason,
            "index": self.index,
        }


@dataclass(frozen=True, slots=True)
class ForwardBound(Event):
    """A forward listens. `proxy`: it is a SOCKS and HTTP proxy, not the port of one target.

    `pod_port` is the port of the pod behind the target, if that is known.
    """

    forward: ForwardState
    proxy: bool = False
    pod_port: int | None = None


# -- agents and tunnels ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AgentProgress(Event):
    """The start of an agent reached another step."""

    context: str | None
    step: str


@dataclass(frozen=True, slots=True)
class AgentStarted(PublicEvent):
    """An agent runs; `where` is `NAMESPACE/POD` or its process."""

    kind = "agent"
    shown = ("context", "where")
    context: str | None
    where: str

    @property
    def text(self) -> str:
        return f"agent runs: {self.where}"


@dataclass(frozen=True, slots=True)
class AgentLost(PublicEvent):
    """An agent is gone, and another one will be started."""

    kind = "agent"
    shown = ("context", "where")
    context: str | None
    where: str
    reason: str

    @property
    def text(self) -> str:
        return f"agent lost: {self.reason}"


@dataclass(frozen=True, slots=True)
class TunnelChanged(PublicEvent):
    """A tunnel is `up`, and takes streams, or it is lost for a `reason`."""

    kind = "tunnel"
    shown = ("context", "tunnel", "up")
    context: str | None
    tunnel: str
    up: bool
    reason: str = ""

    @property
    def text(self) -> str:
        state = "up" if self.up else "lost"
        return f"{self.tunnel}: {state}{f': {self.reason}' if self.reason else ''}"


# -- contexts --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ContextResolved(PublicEvent):
    """krelay knows where a kubeconfig context leads, and keeps to that context."""

    kind = "context"
    context: ContextState

    @property
    def text(self) -> str:
        return f"{self.context.title}: {self.context}"

    @property
    def details(self) -> dict[str, Any]:
        found: dict[str, Any] = json_form(self.context)
        return found


@dataclass(frozen=True, slots=True)
class ContextChanged(ContextResolved):
    """Another kubeconfig has changed where a context leads, or its credentials; `changes` says
    what, in a word or two each."""

    changes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return f"{self.context.title}: kubeconfig has changed: {', '.join(self.changes)}"

    @property
    def details(self) -> dict[str, Any]:
        return {**json_form(self.context), "changes": list(self.changes)}


# -- the config ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReloadStarted(Event):
    """The file is read again; `reload` numbers the reloads."""

    reload: int


@dataclass(frozen=True, slots=True)
class ReloadEnded(Event):
    """What a reload found was applied, refused, or replaced by something newer."""

    reload: int


@dataclass(frozen=True, slots=True)
class ConfigApplied(PublicEvent):
    """Another config is active; `changes` has a line for each change, at least one."""

    kind = "reload"
    shown = ("generation", "changes")
    reason: str
    generation: int
    changes: tuple[str, ...]

    @property
    def text(self) -> str:
        first, *more = self.changes
        return f"applied ({self.reason}): {first}" + (f", +{len(more)}" if more else "")


@dataclass(frozen=True, slots=True)
class ConfigRefused(PublicEvent):
    """The file is invalid; the active config stays."""

    kind = "reload"
    error: KrelayError

    @property
    def text(self) -> str:
        return f"refused: {self.error}"

    @property
    def details(self) -> dict[str, Any]:
        return {"error": to_json(self.error)}


@dataclass(frozen=True, slots=True)
class ConfigNotApplied(ConfigRefused):
    """The config is valid, but cannot be applied for now; the active one stays."""

    @property
    def text(self) -> str:
        return f"not applied: {self.error}"


# -- krelay itself ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started(Event):
    """Each forward of the first config is bound, waits, or has failed."""


@dataclass(frozen=True, slots=True)
class Ending(Event):
    """krelay was asked to end; `moving` connections get `drain` seconds to finish."""

    moving: int = 0
    drain: float = 0.0

    @property
    def line(self) -> str:
        """What a person waits for."""
        what = f"{self.moving} connection{'s' * (self.moving != 1)}"
        return f"draining {what} for up to {self.drain:g} s; press Ctrl-C again to end at once"
