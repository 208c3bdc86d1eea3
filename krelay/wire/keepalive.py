"""Keepalive: when to send a PING, and when a silent tunnel counts as dead."""

from __future__ import annotations


class Keepalive:
    """A PING falls due every `interval` seconds; a tunnel that then delivers nothing for `timeout`
    seconds is dead.

    The time runs from when the PING fell due, not from when it was written: a tunnel that takes no
    bytes and delivers none is as dead as a silent one.
    """

    __slots__ = ("_waiting_since", "_patience", "due", "interval", "next_at", "timeout")

    def __init__(self, interval: float, timeout: float, now: float) -> None:
        self.interval = interval
        self.timeout = timeout
        self.due = False
        self.next_at = now
        self._waiting_since: float | None = None
        self._patience = timeout

    def reset(self, now: float) -> None:
        """Start with a new tunnel; its first PING is due at once."""
        self.due = False
        self.next_at = now
        self.received()

    def received(self) -> None:
        """Note that the tunnel delivered bytes."""
        self._waiting_since = None
        self._patience = self.timeout

    def verify_within(self, seconds: float, now: float) -> None:
        """Make a PING due, and expire unless the tunnel delivers bytes within `seconds`."""
        self._queue_ping(now)
        assert self._waiting_since is not None
        self._patience = min(self._patience, now + seconds - self._waiting_since)

    def tick(self, now: float) -> float:
        """Make a PING due if it is time; return when to call again."""
        if now >= self.next_at:
            self._queue_ping(now)
            self.next_at = now + self.interval
        if self._waiting_since is None:
            return self.next_at
        return min(self.next_at, self._waiting_since + self._patience)

    def expired(self, now: float) -> bool:
        """Return whether the tunnel has been silent for too long."""
        # The same sum as in `tick`: a difference may be short of it by a rounding error.
        return self._waiting_since is not None and now >= self._waiting_since + self._patience

    def _queue_ping(self, now: float) -> None:
        self.due = True
        if self._waiting_since is None:
            self._waiting_since = now
