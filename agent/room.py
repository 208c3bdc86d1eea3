"""Room: before the target; bounds what waits, for all streams, until their targets are reached."""

from __future__ import annotations

from krelay.wire.replay import FRAME_COST


class Room:
    """How much may wait in all, in bytes; each piece costs FRAME_COST besides its own."""

    def __init__(self, size: int) -> None:
        self.left = size

    def share(self) -> Share:
        """Nothing of it, yet."""
        return Share(self)


class Share:
    """What one stream has of a Room. Whoever has it gives it back when nothing waits any more."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._taken = 0

    def take(self, size: int) -> bool:
        """Whether there is room for a piece of `size` bytes; then it is taken."""
        cost = size + FRAME_COST
        if cost > self._room.left:
            return False
        self._room.left -= cost
        self._taken += cost
        return True

    def give(self, size: int) -> None:
        """A piece of `size` bytes, which was taken, waits no more."""
        self._taken -= size + FRAME_COST
        self._room.left += size + FRAME_COST

    def give_all(self) -> None:
        """Nothing waits any more."""
        self._room.left += self._taken
        self._taken = 0
