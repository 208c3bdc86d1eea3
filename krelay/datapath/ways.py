"""Ways: the ways to one agent, and which of them its tunnels take; shared by those tunnels.

A tunnel starts on the way that works everywhere, and moves to the shortcut if that works. A
shortcut that fails is set aside for a while, and the tunnels stay where they are.
"""

from __future__ import annotations

import asyncio

from krelay.datapath.agent_link import AgentLink, Shortcut, Way
from krelay.errors import AccessDeniedError, CredentialsError, TunnelError, UnreachableError
from krelay.retry import OnceUntilChanged

DELAYS = (10.0, 30.0, 60.0, 300.0, 600.0)
"""Seconds until a shortcut that failed once, twice, ... is tried again."""
LOOK_AGAIN = 0.25
"""Seconds until a shortcut that was not available is looked at again."""
STABLE = 30.0
"""Seconds that a connection by the shortcut has to last to count as a success."""


class Ways:
    """Decides which way the next connection to an agent takes."""

    def __init__(self, link: AgentLink) -> None:
        self.reason = ""
        """Why the shortcut is set aside; empty if it is not."""
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._logged = OnceUntilChanged()
        self._expires = link.expires
        self._begin(link.shortcut)

    def _begin(self, shortcut: Shortcut | None) -> None:
        """Know nothing yet of a shortcut: that to another agent is another one."""
        self._shortcut = shortcut
        self._introduced = False
        self._worked = False
        self._refused = False
        self._failures = 0
        self._due_at = 0.0
        self.reason = ""
        self._logged.clear()

    @property
    def shortcut(self) -> Shortcut | None:
        """The faster way to the present agent, once the agent knows this client."""
        if self._shortcut is not self._link.shortcut:
            self._begin(self._link.shortcut)
        if self._shortcut is None or not self._introduced or not self._shortcut.available:
            return None
        return self._shortcut

    def order(self, last: Way | None) -> tuple[Way, ...]:
        """Return the ways to try for the next connection; `last` is that of the present or former
        one, None if there was none."""
        link, shortcut = self._link, self.shortcut
        if shortcut is None:
            return (link,)
        if link.shortcut_only:
            return (shortcut,)
        due = self._loop.time() >= self._due_at
        if last is shortcut and (due or not self._refused):
            return (shortcut, link)
        # The other way may work where this one does not: a kubelet may be down.
        return (link, shortcut) if due or self._worked else (link,)

    def move_in(self, way: Way | None) -> float:
        """Return the seconds until a tunnel on `way` should try the shortcut; `inf` for never."""
        shortcut = self.shortcut
        if shortcut is None and self._introduced and self._shortcut is not None:
            return LOOK_AGAIN
        if shortcut is None or way is shortcut:
            return float("inf")
        return max(0.0, self._due_at - self._loop.time())

    @property
    def next_attempt(self) -> float | None:
        """The seconds until a shortcut that was set aside is tried again; None if it is not."""
        return max(0.0, self._due_at - self._loop.time()) if self.reason else None

    def connected(self, way: Way) -> None:
        """Record that a tunnel came up on `way`."""
        if way is self._link:
            _ = self.shortcut  # of the agent that was reached
            self._introduced = True
            renewed, self._expires = way.expires != self._expires, way.expires
            if renewed:
                self.retry()
        elif way is self.shortcut:
            self._worked, self._refused = True, False
            self._due_at, self.reason = 0.0, ""
            self._logged.clear()

    def lost(self, way: Way, lasted: float, exc: Exception) -> bool:
        """Record that a connection on `way` was lost after `lasted` seconds.

        Return whether that sets the shortcut aside for a new reason.
        """
        if way is not self.shortcut:
            return False
        if lasted >= STABLE:
            self._failures = 0
        if isinstance(exc, TimeoutError):
            return self.failed(TunnelError("it stopped delivering"))
        if lasted < STABLE:
            return self.failed(TunnelError(f"it was lost soon after it came up: {exc}"))
        return False

    def failed(self, exc: Exception) -> bool:
        """Set the shortcut aside; return whether the reason differs from the last one."""
        now = self._loop.time()
        # An API server that nothing reaches, or that rejects the user, says nothing of the way.
        blameless = isinstance(exc, UnreachableError | CredentialsError)
        if now >= self._due_at:
            delay = DELAYS[min(self._failures, len(DELAYS) - 1)]
            if isinstance(exc, AccessDeniedError):
                delay = DELAYS[-1]
            self._due_at = now + (DELAYS[0] if blameless else delay)
            self._failures += not blameless
        self._refused = self._refused or not blameless
        self.reason = str(exc) or type(exc).__name__
        return self._logged.is_new(exc)

    def retry(self) -> None:
        """Make the shortcut due: something has changed that may let it work."""
        self._failures = 0
        self._due_at = 0.0
