"""Draw: choices out of an input's bytes, and pieces of it, so that a mutation changes a few."""

from __future__ import annotations

from collections.abc import Iterator


class Draw:
    """Takes bytes from the front; past the end there are zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        """The next `size` bytes, or fewer at the end."""
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken

    def number(self, size: int = 1) -> int:
        """The next `size` bytes as a number."""
        return int.from_bytes(self.take(size), "big")

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))

    def pieces(self) -> Iterator[bytes]:
        """All that is left, in pieces of a size that is drawn first."""
        size = self.number() + 1
        while self:
            yield self.take(size)
