"""StreamPool: what a route opens its streams through, whichever way they take into the cluster."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol
from weakref import WeakSet

from krelay import model
from krelay.model import Resolution
from krelay.mux.stream import Stream, StreamHandler
from krelay.wire.errors import ErrorCode


class PoolUser(Protocol):
    """A route through a pool."""

    @property
    def resolution(self) -> Resolution | None:
        """Where it leads; None if that is not known yet."""

    @property
    def wanted(self) -> bool:
        """Whether a connection waits for a stream."""

    def wake(self) -> None:
        """React to a change of the pool."""


class StreamPool(Protocol):
    """Opens streams to the endpoints of its users, the routes that lead through it.

    Each change wakes the users.
    """

    @property
    def multiplexed(self) -> bool:
        """Whether streams share connections. If not, each costs one."""

    @property
    def users(self) -> WeakSet[PoolUser]:
        """The routes that lead through it."""

    def carriers(self, resolution: Resolution) -> Collection[object]:
        """Return what carries the streams to where `resolution` leads; a proof that it works lasts
        no longer."""

    def reaches(self, resolution: Resolution) -> bool:
        """Return whether a stream to where `resolution` leads can be opened now."""

    def obstacle(self, resolution: Resolution) -> str:
        """Return why `reaches` is false, for people."""

    def open(
        self, resolution: Resolution, protocol: model.Protocol, handler: StreamHandler
    ) -> Stream | None:
        """Open a stream; `handler` receives its events. Return None if none can be opened now.

        Raises:
            ProtocolError: there are too many streams, or the endpoint cannot be addressed.
        """

    def explain(self, code: ErrorCode, message: str) -> str:
        """Return what the refusal of a stream means for its target, for people."""

    def has_other(self, resolution: Resolution) -> bool:
        """Return whether the next stream goes to another pod than one that has just refused."""

    def user_changed(self, user: PoolUser) -> None:
        """React to another resolution of a user, or to a new user."""

    def dial_soon(self) -> None:
        """Hurry: a connection waits."""
