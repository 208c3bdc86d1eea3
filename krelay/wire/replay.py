"""Replay of sequenced frames, by which a session outlives a tunnel (protocol.md, section 8).

Both ends number the frames; the sender keeps each until the receiver has acknowledged it.
"""

from __future__ import annotations

from collections import deque

from krelay.wire.errors import ProtocolError
from krelay.wire.frames import Buffer

FRAME_COST = 128
"""Bytes that a kept frame takes besides its own. Without them, a peer that causes many small frames
could make the buffer outgrow any limit."""

KeptFrame = tuple[Buffer, ...]


class ReplayBuffer:
    """Frames that were sent and not yet acknowledged; the first has the number `acked`.

    `resend` has those that a new tunnel has yet to carry; `cost` is the memory that all take.
    """

    __slots__ = ("_frames", "acked", "cost", "resend")

    def __init__(self) -> None:
        self.acked = 0
        self.cost = 0
        self.resend: deque[KeptFrame] = deque()
        self._frames: deque[KeptFrame] = deque()

    def __len__(self) -> int:
        return len(self._frames)

    def keep(self, frame: KeptFrame) -> int:
        """Keep a frame that is being sent; return its size in bytes."""
        size = sum(map(len, frame))
        self._frames.append(frame)
        self.cost += size + FRAME_COST
        return size

    def acknowledge(self, count: int) -> None:
        """Drop the first `count` frames of the session, which the peer has.

        Raises:
            ProtocolError: the peer cannot have so many, or has acknowledged more before.
        """
        if not self.acked <= count <= self.acked + len(self._frames) - len(self.resend):
            raise ProtocolError(f"ACK of {count} frames after {self.acked}")
        self._drop_until(count)

    def rewind(self, count: int) -> int:
        """Send again all but the first `count` frames of the session; return how many bytes.

        Raises:
            ProtocolError: frames that the peer lacks are no longer kept.
        """
        if not self.acked <= count <= self.acked + len(self._frames):
            raise ProtocolError(
                f"the peer has {count} frames, kept are {len(self._frames)} from {self.acked}"
            )
        self._drop_until(count)
        self.resend = deque(self._frames)
        return self.cost - FRAME_COST * len(self._frames)

    def clear(self) -> None:
        """Keep nothing; the session is over."""
        self.acked += len(self._frames)
        self._frames.clear()
        self.resend.clear()
        self.cost = 0

    def _drop_until(self, count: int) -> None:
        while self.acked < count:
            self.cost -= sum(map(len, self._frames.popleft())) + FRAME_COST
            self.acked += 1


class ReceiveCounter:
    """Counts received frames, and recognizes those that are repeated.

    A session may resume on a new tunnel while its old one still works. It asks for the frames from
    `begin_resume`'s count on; those that the old tunnel delivers meanwhile are accepted, and
    skipped when the new one repeats them.
    """

    __slots__ = ("_repeats", "_resume_from", "count")

    def __init__(self) -> None:
        self.count = 0
        self._resume_from: int | None = None
        self._repeats = 0

    @property
    def acknowledged(self) -> int:
        """Frames to acknowledge.

        A frame that is accepted during a resumption is not acknowledged, as the peer must keep what
        the new tunnel has to repeat. Repeated frames count again as they arrive.
        """
        seen = self.count - self._repeats
        return seen if self._resume_from is None else min(seen, self._resume_from)

    def begin_resume(self) -> int:
        """Return the count to resume from; `resumed` or `abort_resume` follows."""
        self._resume_from = self.count
        return self.count

    def abort_resume(self) -> None:
        """Go on with the present tunnel."""
        self._resume_from = None

    def resumed(self) -> None:
        """Go on with a new tunnel, which repeats what `begin_resume` did not count."""
        self._repeats = 0 if self._resume_from is None else self.count - self._resume_from
        self._resume_from = None

    def accept_frame(self) -> bool:
        """Count a frame that arrived; return False if it is a repeated one."""
        if self._repeats:
            self._repeats -= 1
            return False
        self.count += 1
        return True
