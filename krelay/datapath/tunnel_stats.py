"""TunnelStats: what became of a session's tunnels, for whoever wants to know."""

from __future__ import annotations

from dataclasses import dataclass, replace

from krelay.mux.driver import Driver


@dataclass(slots=True)
class TunnelStats:
    """What became of a session's tunnels since the start: those that came up, those of them that
    carried the session on, and those of these that took over from a working one; the bytes that
    were sent again. `window_stalls` and `limit_stalls` are the session's own counts."""

    connects: int = 0
    resumed: int = 0
    rotated: int = 0
    replayed_bytes: int = 0
    window_stalls: int = 0
    limit_stalls: int = 0

    def add(self, driver: object) -> None:
        """Take over what the session of `driver` has counted, if it has one."""
        if isinstance(driver, Driver):
            self.replayed_bytes += driver.replayed_bytes
            self.window_stalls += driver.session.outbox.window_stalls
            self.limit_stalls += driver.session.limit_stalls

    def with_(self, driver: object) -> TunnelStats:
        """A copy that has what `driver`, which lives, has counted so far."""
        found = replace(self)
        found.add(driver)
        return found
