"""When a session is to speak, and when its tunnel is dead: PING, and what was heard since."""

from __future__ import annotations


class Keepalive:
    """Times are in seconds. A PING falls due every `interval`; what stays unheard for `timeout`
    from then on is dead, also when the PING itself could not be written: a tunnel that takes no
    bytes and brings none is as dead as a silent one."""

    __slots__ = ("_waiting_since", "_patience", "due", "interval", "next_at", "timeout")

    def __init__(self, interval: float, timeout: float, now: float) -> None:
        self.interval = interval
        self.timeout = timeout
        self.due = False
        self.next_at = now
        self._waiting_since: float | None = None
        self._patience = timeout

    def reset(self, now: float) -> None:
        """A new tunnel: ask it at once."""
        self.due = False
        self.next_at = now
        self.received()

    def received(self) -> None:
        """Anything came."""
        self._waiting_since = None
        self._patience = self.timeout

    def verify_within(self, seconds: float, now: float) -> None:
        """There is reason to doubt the tunnel: it gets `seconds` seconds to say something."""
        self._queue_ping(now)
        assert self._waiting_since is not None
        self._patience = min(self._patience, now + seconds - self._waiting_since)

    def tick(self, now: float) -> float:
        """Ask if it is time; when to look again."""
        if now >= self.next_at:
            self._queue_ping(now)
            self.next_at = now + self.interval
        if self._waiting_since is None:
            return self.next_at
        return min(self.next_at, self._waiting_since + self._patience)

    def expired(self, now: float) -> bool:
        """Whether nothing was heard for too long."""
        # The very sum that `tick` gives: a difference may be a rounding short of it.
        return self._waiting_since is not None and now >= self._waiting_since + self._patience

    def _queue_ping(self, now: float) -> None:
        self.due = True
        if self._waiting_since is None:
            self._waiting_since = now
