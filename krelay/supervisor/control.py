"""Control: what may be asked of a running krelay over its socket, in JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from krelay.config.changes import Change
from krelay.config.sources import Selection
from krelay.errors import UsageError
from krelay.state.snapshot import Snapshot
from krelay.status.unix_server import Handler
from krelay.supervisor.reload import Reloader
from krelay.supervisor.snapshot import take_snapshot
from krelay.supervisor.supervisor import Supervisor


class Control:
    """The handlers of one run."""

    def __init__(self, supervisor: Supervisor, reloader: Reloader) -> None:
        self._supervisor = supervisor
        self._reloader = reloader
        self._started = datetime.now(UTC)

    def handlers(self) -> dict[tuple[str, str], Handler]:
        """By method and resource."""
        return {
            ("GET", "/v1/status"): self.status,
            ("POST", "/v1/plan"): self.plan,
            ("POST", "/v1/reload"): self.reload,
        }

    async def snapshot(self) -> Snapshot:
        """What runs, and whether it is what the file says."""
        return await take_snapshot(self._supervisor, self._reloader, self._started)

    async def status(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The same as JSON, as `schema/status.schema.json` has it."""
        return (await self.snapshot()).as_json()

    async def plan(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What the file, or the one of `path` or `text`, would change."""
        source = self._reloader.source
        path, text = body.get("path"), body.get("text")
        if not all(value is None or isinstance(value, str) for value in (path, text)):
            raise UsageError("`path` and `text` are strings")
        if isinstance(source, Selection) and text is not None:
            source = dataclasses.replace(source, path="-", text=_bytes(text))
        elif isinstance(source, Selection) and path is not None:
            source = dataclasses.replace(source, path=path, text=None)
        return _changes(await self._reloader.plan(source))

    async def reload(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out what the file says; what changed."""
        return _changes(await self._reloader.reload("krelay reload"))


def _bytes(text: str) -> bytes:
    """What JSON carries as text: a byte that is not UTF-8 is a surrogate there, as `krelay plan`
    sends it.

    Raises:
        UsageError: it holds another surrogate.
    """
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError as exc:
        # Not its own words: they quote the text.
        surrogate = f"U+{ord(text[exc.start]):04X}"
        raise UsageError(f"`text` is not text: it holds the surrogate {surrogate}") from None


def _changes(changes: list[Change]) -> dict[str, Any]:
    return {"changes": [change.as_json() for change in changes]}
