"""Contact: what the watches of one context know together of its API server, and the log of that.

An API server that is lost is one event, however many watches see it: the log has one line when the
first of them is out of touch, and one when the last of them is back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from krelay.errors import AccessDeniedError, ClusterError

logger = logging.getLogger("krelay.cluster")


class Contact:
    """Shared by the watches of a context; each takes part from `watching` on."""

    def __init__(self) -> None:
        self._lost: dict[Watching, str] = {}

    @contextmanager
    def watching(self, path: str) -> Iterator[Watching]:
        """Take part for as long as the block lasts; `path` is what is watched."""
        watch = Watching(self, path)
        try:
            yield watch
        finally:
            self._lost.pop(watch, None)

    def lost(self, watch: Watching, why: ClusterError) -> None:
        """Log the first loss; the others of the same kind are details."""
        # A missing right concerns one collection, everything else the server.
        scope = watch.path if isinstance(why, AccessDeniedError) else ""
        level = logging.DEBUG if self._known(watch, scope) else logging.WARNING
        what = scope or "the API server"
        logger.log(level, "out of touch with %s, the last known state stays: %s", what, why)
        self._lost[watch] = scope

    def good(self, watch: Watching) -> None:
        """Log that all is well again when the last watch that was lost is back."""
        scope = self._lost.pop(watch, None)
        if scope is not None and scope not in self._lost.values():
            logger.info("in touch with %s again", scope or "the API server")

    def _known(self, watch: Watching, scope: str) -> bool:
        return watch in self._lost or scope in self._lost.values()


class Watching:
    """One watch's part in a `Contact`."""

    def __init__(self, contact: Contact, path: str) -> None:
        self.path = path
        self._contact = contact

    def lost(self, why: ClusterError) -> None:
        """Report that the watch cannot learn anything now, and why."""
        self._contact.lost(self, why)

    def good(self) -> None:
        """Report that the watch is open."""
        self._contact.good(self)
