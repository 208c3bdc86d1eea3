"""TunnelStats: what became of a session's tunnels, for whoever wants to know."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from krelay.legacy.tunnels import LegacyTunnels
from krelay.mux.connection import MuxConnection

QUEUED, LATE = "queued", "late"
"""Why datagrams are lost here that count for no forward: they waited for the tunnel as that was
lost, or as their flow ended; they came when their flow had ended."""
AGENT_LOSSES = ("agent_kernel_receive", "agent_kernel_send", "agent_early", "agent_backlog")
"""Why they are lost at the agent, in the order of the LOST frame (protocol.md, section 5)."""
LOSSES = frozenset({QUEUED, LATE, *AGENT_LOSSES})


@dataclass(slots=True)
class TunnelStats:
    """What became of a session's tunnels since the start: those that came up, those of them that
    carried the session on, and those of these that took over from a working one; the bytes that
    were sent again. `window_stalls` and `limit_stalls` are the session's own counts.
    `lost_datagrams` has the datagrams that were lost on the way or at the agent, by reason."""

    connects: int = 0
    resumed: int = 0
    rotated: int = 0
    replayed_bytes: int = 0
    window_stalls: int = 0
    limit_stalls: int = 0
    lost_datagrams: Counter[str] = field(default_factory=Counter)

    def add(self, driver: object) -> None:
        """Take over what the session of `driver` has counted, if it has one."""
        if isinstance(driver, MuxConnection):
            self.replayed_bytes += driver.replayed_bytes
            self.window_stalls += driver.session.window_stalls
            self.limit_stalls += driver.session.limit_stalls
            self.lost_datagrams[QUEUED] += driver.session.dropped_datagrams
            self.lost_datagrams[LATE] += driver.session.late_datagrams
            self.lost_datagrams.update(dict(zip(AGENT_LOSSES, driver.peer_lost, strict=True)))
        elif isinstance(driver, LegacyTunnels):
            self.lost_datagrams[QUEUED] += driver.forgotten_datagrams

    def with_(self, driver: object) -> TunnelStats:
        """A copy that has what `driver`, which lives, has counted so far."""
        found = replace(self, lost_datagrams=self.lost_datagrams.copy())
        found.add(driver)
        return found
