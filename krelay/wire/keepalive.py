"""When a session is to speak, and when its tunnel is dead: PING, and what was heard since."""

from __future__ import annotations


class Keepalive:
    """Times are in seconds. A PING falls due every `interval`; what stays unheard for `timeout`
    from then on is dead, also when the PING itself could not be written: a tunnel that takes no
    bytes and brings none is as dead as a silent one."""

    __slots__ = ("_asked_at", "_patience", "due", "interval", "next_at", "timeout")

    def __init__(self, interval: float, timeout: float, now: float) -> None:
        self.interval = interval
        self.timeout = timeout
        self.due = False
        self.next_at = now
        self._asked_at: float | None = None
        self._patience = timeout

    def begin(self, now: float) -> None:
        """A new tunnel: ask it at once."""
        self.due = False
        self.next_at = now
        self.heard()

    def heard(self) -> None:
        """Anything came."""
        self._asked_at = None
        self._patience = self.timeout

    def hurry(self, now: float, within: float) -> None:
        """There is reason to doubt the tunnel: it gets `within` seconds to say something."""
        self._ask(now)
        assert self._asked_at is not None
        self._patience = min(self._patience, now + within - self._asked_at)

    def tick(self, now: float) -> float:
        """Ask if it is time; when to look again."""
        if now >= self.next_at:
            self._ask(now)
            self.next_at = now + self.interval
        if self._asked_at is None:
            return self.next_at
        return min(self.next_at, self._asked_at + self._patience)

    def dead(self, now: float) -> bool:
        """Whether nothing was heard for too long."""
        # The very sum that `tick` gives: a difference may be a rounding short of it.
        return self._asked_at is not None and now >= self._asked_at + self._patience

    def _ask(self, now: float) -> None:
        self.due = True
        if self._asked_at is None:
            self._asked_at = now
