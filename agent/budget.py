"""MemoryBudget: how much memory the agent's peers may use in all, and each client's share of it.

A container that exceeds its limit is killed with every connection in it. So whatever a peer can
make the agent hold is reserved here: before it is read where the agent can choose, and as it comes
where it cannot (control frames). A client may hold as much as it leaves for others, so a single
one gets half of the budget. A session's share has a part of its own from the start, for its first
streams and a little that waits, and no client's streams use the spare part: it is for the next
sessions.
"""

from __future__ import annotations

FLOOR = 256 << 10
"""Bytes that may wait for any client, whatever the others hold."""
_SPARE = 6
"""One part in this many is kept for the next sessions, and for what cannot be refused."""
_FROM_TARGETS = 3
"""One part in this many is not used by what comes from targets and waits: it is for new streams,
and for what they bring along."""


class MemoryBudget:
    """`size` and `left` are in bytes; `left` is negative when more came than there is room for."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.left = size
        self._spare = size // _SPARE
        self._kept_from_targets = size // _FROM_TARGETS

    def share(self, first: int = 0) -> Share:
        """The share of a client that holds nothing yet; one with `first` is a session's."""
        return Share(self, first)

    @property
    def free(self) -> int:
        """Bytes that may be taken before the spare part begins."""
        return self.left - self._spare

    @property
    def free_for_targets(self) -> int:
        """Bytes that may be read from targets that are faster than their clients."""
        return self.left - self._kept_from_targets


class Share:
    """What one client holds; `Reservation`s divide it. `fixed` is what its streams and connections
    cost; the rest waits. A session's share takes `first` bytes for what is fixed, and the floor,
    from the budget at once: they are there when it needs them."""

    __slots__ = ("_first", "_floor", "_taken", "budget", "fixed", "held")

    def __init__(self, budget: MemoryBudget, first: int = 0) -> None:
        self.budget = budget
        self.held = 0
        self.fixed = 0
        self._first = first
        self._floor = FLOOR if first else 0
        self._taken = 0
        self.count()

    def count(self) -> None:
        """Take from the budget what it holds now, or give back."""
        waits = self.held - self.fixed
        taken = max(self.fixed, self._first) + max(waits, self._floor)
        self.budget.left -= taken - self._taken
        self._taken = taken

    def close(self) -> None:
        """Keep nothing for a client that has gone; what it holds yet is given back later."""
        self._first = self._floor = 0
        self.count()

    def admits(self, size: int) -> bool:
        """Whether the client may hold `size` bytes more, and still leave as much for others."""
        return self.held + 2 * size <= self.budget.free

    def admits_fixed(self, size: int) -> bool:
        """The same of what a stream costs; the first streams have their part."""
        return self.fixed + size <= self._first or self.admits(size)

    def allows(self, size: int) -> bool:
        """Whether `size` bytes more may be read from a target, likewise."""
        return self.held + 2 * size <= self.budget.free_for_targets

    def within_floor(self, size: int) -> bool:
        """Whether what waits is within the floor with `size` bytes more."""
        return self.held - self.fixed + size <= FLOOR

    @property
    def room(self) -> int:
        """How many bytes more may be read from targets."""
        return max(0, (self.budget.free_for_targets - self.held) // 2)

    def reserve(self) -> Reservation:
        """A reservation of nothing yet."""
        return Reservation(self)


class Reservation:
    """The bytes of one holder, such as a stream. Its owner releases it at the end."""

    __slots__ = ("_fixed", "_share", "size")

    def __init__(self, share: Share) -> None:
        self._share = share
        self._fixed = 0
        self.size = 0

    def admit(self, size: int) -> bool:
        """Reserve what a stream costs; False, and nothing is reserved, where the share is used
        up."""
        if not self._share.admits_fixed(size):
            return False
        self.fix(size)
        return True

    def fix(self, size: int) -> None:
        """Hold `size` bytes until the end, come what may."""
        self._fixed += size
        self._share.fixed += size
        self.set(self.size + size)

    def take(self, size: int) -> bool:
        """Reserve `size` bytes more for what waits; False, and nothing is reserved, where the share
        is used up."""
        if not (self._share.within_floor(size) or self._share.admits(size)):
            return False
        self.set(self.size + size)
        return True

    def set(self, size: int) -> None:
        """Hold `size` bytes, come what may: they are there already, or are fewer than before."""
        more = size - self.size
        self.size = size
        self._share.held += more
        self._share.count()

    def release(self) -> None:
        """Hold nothing any more."""
        self._share.fixed -= self._fixed
        self._fixed = 0
        self.set(0)
