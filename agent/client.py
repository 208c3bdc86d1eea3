"""Client: what the agent holds for one client, a session or all plain connections together.

Where the client's share of the budget is used up, less is read: each stream still gets a piece at a
time, so that those whose other end is awake go on, whatever the others hold.
"""

from __future__ import annotations

from collections.abc import Callable

from agent.budget import MemoryBudget, Reservation

PIECE = 2 << 10
"""Bytes that any stream may read, whatever is left of the budget."""
CONNECTION_COST = 14 << 10
"""Bytes reserved for a stream or a plain connection: what Python and asyncio keep for it, also
while its target is dialled, and two pieces that wait."""
FIRST_STREAMS = 4
"""Streams that any session may have, whatever the others hold."""
READ = 128 << 10
"""Bytes that one read may bring: two of the largest frames. A larger buffer no longer fits a
processor's cache, which costs more than the system calls that it saves."""


class Client:
    """One share of the budget. `settle` brings the count of what a session holds up to date."""

    def __init__(
        self, budget: MemoryBudget, held: Callable[[], int] = lambda: 0, first: int = 0
    ) -> None:
        """`held` tells how many bytes wait in the client's session; `first` is what it and its
        first streams cost."""
        self._share = budget.share(first)
        self._held = held
        self._waiting = self._share.reserve()

    def settle(self) -> None:
        """Count what waits in the session now."""
        self._waiting.set(self._held())

    def reserve(self) -> Reservation:
        """A part of the share, for a stream."""
        return self._share.reserve()

    def allows(self, size: int) -> bool:
        """Whether `size` bytes more may be read from a target."""
        self.settle()
        return self._share.allows(size) or self._share.within_floor(size)

    @property
    def room(self) -> int:
        """How many bytes more may be read from targets."""
        return self._share.room

    def release(self) -> None:
        """The session is over."""
        self._held = lambda: 0
        self._waiting.release()
        self._share.close()


class ReadBuffer:
    """Where the sockets of one loop read into, one after the other: a read that was made into a
    new object would take its whole size for a moment, and keep the memory in pieces."""

    def __init__(self) -> None:
        self._memory = memoryview(bytearray(READ))

    def part(self, size: int) -> memoryview:
        """The first `size` bytes of it."""
        return self._memory[:size]
