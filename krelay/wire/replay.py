"""What makes a session outlive a tunnel: sequenced frames, numbered at both ends and kept until
the other end has them (protocol.md, section 8)."""

from __future__ import annotations

from collections import deque

from krelay.wire.errors import ProtocolError
from krelay.wire.frames import Buffer

FRAME_COST = 128
"""What a kept frame takes besides its bytes: a bound on bytes alone would not bound memory, since
a peer may cause as many small frames as it likes."""

KeptFrame = tuple[Buffer, ...]


class ReplayBuffer:
    """Frames that were sent and not yet acknowledged; the first of them has number `acked`.

    `resend` are those that a new tunnel has yet to carry; `cost` is the memory that all take.
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
        """One more was sent; its size in bytes."""
        size = sum(map(len, frame))
        self._frames.append(frame)
        self.cost += size + FRAME_COST
        return size

    def acknowledge(self, count: int) -> None:
        """The peer has the first `count` frames of the session.

        Raises:
            ProtocolError: it cannot have them, or has said otherwise before.
        """
        if not self.acked <= count <= self.acked + len(self._frames) - len(self.resend):
            raise ProtocolError(f"ACK of {count} frames after {self.acked}")
        self._drop_until(count)

    def rewind(self, count: int) -> int:
        """A new tunnel, whose peer has the first `count` frames: the bytes to send again.

        Raises:
            ProtocolError: what it misses is no longer kept.
        """
        if not self.acked <= count <= self.acked + len(self._frames):
            raise ProtocolError(
                f"the peer has {count} frames, kept are {len(self._frames)} from {self.acked}"
            )
        self._drop_until(count)
        self.resend = deque(self._frames)
        return self.cost - FRAME_COST * len(self._frames)

    def clear(self) -> None:
        """Keep nothing: the session is over."""
        self.acked += len(self._frames)
        self._frames.clear()
        self.resend.clear()
        self.cost = 0

    def _drop_until(self, count: int) -> None:
        while self.acked < count:
            self.cost -= sum(map(len, self._frames.popleft())) + FRAME_COST
            self.acked += 1


class ReceiveCounter:
    """Counts the frames that came, `count`, and knows those that come again.

    A session that moves while its old tunnel still works makes a `claim` of what it has; what the
    old tunnel brings after that is taken, and passed over when the new one repeats it.
    """

    __slots__ = ("_repeats", "_resume_from", "count")

    def __init__(self) -> None:
        self.count = 0
        self._resume_from: int | None = None
        self._repeats = 0

    @property
    def acknowledged(self) -> int:
        """What to say in an ACK: the peer keeps what a claim that is out may yet ask for, and
        counts what it repeats as not sent before that."""
        seen = self.count - self._repeats
        return seen if self._resume_from is None else min(seen, self._resume_from)

    def begin_resume(self) -> int:
        """What to tell an agent that shall carry the session on; `withdraw` it if none did."""
        self._resume_from = self.count
        return self.count

    def abort_resume(self) -> None:
        """The claim led to nothing."""
        self._resume_from = None

    def resumed(self) -> None:
        """A new tunnel carries the session on, from the claim if there was one."""
        self._repeats = 0 if self._resume_from is None else self.count - self._resume_from
        self._resume_from = None

    def accept_frame(self) -> bool:
        """One came; False when it is one that was there before."""
        if self._repeats:
            self._repeats -= 1
            return False
        self.count += 1
        return True
