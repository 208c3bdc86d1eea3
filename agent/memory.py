"""The agent's memory: its limit, the budget of all clients, and the part that each may use.

A container that exceeds its limit is killed with every connection in it. So every byte that a peer
can make the agent hold is reserved here: before it is read where the agent can choose, and when it
arrives where it cannot (control frames). A client may hold as much as it leaves for others, so a
single client gets half of the budget. A session reserves the cost of its first streams and a floor
for waiting bytes when it opens. Streams never use the spare part, which is kept for new sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

ENV = "KRELAY_MEMORY"
"""Variable with a limit in bytes, for hosts without control groups."""
DEFAULT = 256 << 20
"""Limit in bytes if none is known; also that of an agent's Job, unless the file sets another."""
MAX_LIMIT = 1 << 30
"""Largest limit that the agent uses: it may share a larger one with other programs."""
BASE = 48 << 20
"""Bytes for Python, the agent's code, resolver threads, connections before their handshake, and the
allocator's fragments."""
MIN_BUDGET = 8 << 20
"""Smallest budget: with less, nothing could be relayed."""

FLOOR = 256 << 10
"""Bytes that may wait for any client, whatever the others hold."""
_SPARE = 6
"""One part in this many is kept for new sessions and for what cannot be refused."""
_KEPT_FROM_TARGETS = 3
"""One part in this many is closed to waiting bytes of targets: it is for new streams and for the
bytes that clients send on them."""

PIECE = 2 << 10
"""Bytes that any stream may read, whatever is left of the budget."""
READ = 128 << 10
"""Most bytes of one read: two of the largest frames. A larger buffer no longer fits a processor's
cache, which costs more than the system calls that it saves."""
CONNECTION_COST = 14 << 10
"""Bytes reserved for a stream or a legacy connection: what Python and asyncio keep for it, also
during the dial, and two pieces that wait."""
FIRST_STREAMS = 4
"""Streams that any session may have, whatever the others hold."""


def budget_for(limit: int) -> int:
    """Return the bytes that peers may use under `limit`: four fifths of it, less the base."""
    return max(MIN_BUDGET, limit * 4 // 5 - BASE)


def memory_limit(environ: Mapping[str, str], root: Path = Path("/")) -> int:
    """Return the limit in bytes: the smallest of the environment and the control groups.

    Raises:
        ValueError: the environment's value is not a number.
    """
    limits = _group_limits(root)
    if value := environ.get(ENV):
        limits.append(int(value))
    return min([*limits, MAX_LIMIT]) if limits else DEFAULT


def _group_limits(root: Path) -> list[int]:
    """Return the limits of this process's control group and its parents, in cgroup v2 and v1."""
    mounted = root / "sys/fs/cgroup"
    groups = [
        (mounted, PurePosixPath("/"), "memory.max"),
        (mounted / "memory", PurePosixPath("/"), "memory.limit_in_bytes"),
    ]
    for line in _text(root / "proc/self/cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if not controllers:
            groups.append((mounted, PurePosixPath(path), "memory.max"))
        elif "memory" in controllers.split(","):
            groups.append((mounted / "memory", PurePosixPath(path), "memory.limit_in_bytes"))
    limits = []
    for base, own, name in groups:
        for group in (own, *own.parents):
            text = _text(base / str(group).lstrip("/") / name).strip()
            # Without a limit v2 has "max", and v1 a number beyond any memory.
            if text.isdigit() and 0 < int(text) < 1 << 60:
                limits.append(int(text))
    return limits


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


class MemoryBudget:
    """The bytes that all clients share: `size` in all, `left` of them free.

    `left` is negative while peers have sent more than the agent could refuse.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.left = size
        self._spare = size // _SPARE
        self._kept_from_targets = size // _KEPT_FROM_TARGETS

    @property
    def free(self) -> int:
        """Bytes left before the spare part."""
        return self.left - self._spare

    @property
    def free_for_targets(self) -> int:
        """Bytes left for data of targets that are faster than their clients."""
        return self.left - self._kept_from_targets


class Client:
    """What the agent holds for one client: a session, or all legacy connections together.

    `held` counts all of its bytes, `fixed` those that its streams and connections cost; the
    difference is waiting data. A client that has used its part of the budget is read less: a piece
    at a time, so that streams with an active peer go on, whatever other clients hold.
    """

    def __init__(
        self, budget: MemoryBudget, waiting: Callable[[], int] = lambda: 0, first: int = 0
    ) -> None:
        """`waiting` returns how many bytes wait in the client's session. A session takes `first`
        bytes of fixed cost and the floor from the budget at once; both are then certain."""
        self.budget = budget
        self.held = 0
        self.fixed = 0
        self._first = first
        self._floor = FLOOR if first else 0
        self._taken = 0
        self._measure = waiting
        self._session = Reservation(self)
        self.recount()

    def settle(self) -> None:
        """Count the bytes that wait in the session now."""
        self._session.set(self._measure())

    def recount(self) -> None:
        """Take from the budget, or return to it, the change since the last call."""
        waiting = self.held - self.fixed
        taken = max(self.fixed, self._first) + max(waiting, self._floor)
        self.budget.left -= taken - self._taken
        self._taken = taken

    def reserve(self) -> Reservation:
        """Return an empty reservation, for a stream or a connection."""
        return Reservation(self)

    def admits(self, size: int) -> bool:
        """Return whether the client may hold `size` bytes more and still leave as much."""
        return self.held + 2 * size <= self.budget.free

    def admits_fixed(self, size: int) -> bool:
        """Return whether a stream that costs `size` bytes fits, also as one of the first."""
        return self.fixed + size <= self._first or self.admits(size)

    def within_floor(self, size: int) -> bool:
        """Return whether `size` more waiting bytes stay within the floor."""
        return self.held - self.fixed + size <= FLOOR

    def allows(self, size: int) -> bool:
        """Return whether `size` bytes more may be read from a target."""
        self.settle()
        return self.held + 2 * size <= self.budget.free_for_targets or self.within_floor(size)

    @property
    def available(self) -> int:
        """Bytes that may still be read from targets, besides the floor."""
        return max(0, (self.budget.free_for_targets - self.held) // 2)

    def close(self) -> None:
        """Return everything but what reservations of streams still hold; they release it later."""
        self._measure = lambda: 0
        self._session.release()
        self._first = self._floor = 0
        self.recount()


class Reservation:
    """The bytes of one holder, such as a stream, which releases them at its end."""

    __slots__ = ("_client", "_fixed", "size")

    def __init__(self, client: Client) -> None:
        self._client = client
        self._fixed = 0
        self.size = 0

    def admit(self, size: int) -> bool:
        """Reserve the fixed cost of a stream; return False, and reserve nothing, if it does not
        fit."""
        if not self._client.admits_fixed(size):
            return False
        self.fix(size)
        return True

    def fix(self, size: int) -> None:
        """Add `size` bytes of fixed cost, even past the budget."""
        self._fixed += size
        self._client.fixed += size
        self.set(self.size + size)

    def take(self, size: int) -> bool:
        """Reserve `size` more waiting bytes; return False, and reserve nothing, if they do not
        fit."""
        if not (self._client.within_floor(size) or self._client.admits(size)):
            return False
        self.set(self.size + size)
        return True

    def set(self, size: int) -> None:
        """Hold `size` bytes in all, even past the budget: they are already in memory."""
        self._client.held += size - self.size
        self.size = size
        self._client.recount()

    def release(self) -> None:
        """Hold nothing."""
        self._client.fixed -= self._fixed
        self._fixed = 0
        self.set(0)


class ReadBuffer:
    """The buffer that all sockets of one event loop read into, one after the other.

    A new object for each read would take its whole size for a moment and fragment the heap.
    """

    def __init__(self) -> None:
        self._memory = memoryview(bytearray(READ))

    def part(self, size: int) -> memoryview:
        """Return its first `size` bytes."""
        return self._memory[:size]
