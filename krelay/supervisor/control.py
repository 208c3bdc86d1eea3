"""Control: what other commands may ask a running krelay, as JSON over its socket."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from typing import Any

from krelay.config.changes import Change
from krelay.config.sources import Selection
from krelay.errors import UsageError
from krelay.net.engine import choose
from krelay.state.snapshot import Snapshot
from krelay.status import Handler
from krelay.supervisor.recent import Programs, connections_of, records
from krelay.supervisor.reload import Reloader
from krelay.supervisor.supervisor import Supervisor
from krelay.threads import in_thread_or_here


class Control:
    """The handlers of one run."""

    def __init__(self, supervisor: Supervisor, reloader: Reloader) -> None:
        self._supervisor = supervisor
        self._reloader = reloader
        self._programs = Programs()

    def handlers(self) -> dict[tuple[str, str], Handler]:
        """Return the handlers by method and resource."""
        return {
            ("GET", "/v1/status"): self.status,
            ("GET", "/v1/connections"): self.connections,
            ("GET", "/v1/events/recent"): self.events,
            ("POST", "/v1/plan"): self.plan,
            ("POST", "/v1/reload"): self.reload,
            ("POST", "/v1/restart"): self.restart,
        }

    async def snapshot(self) -> Snapshot:
        """Return the present state, with the figures of this process."""
        # The system is asked first: the rest is of one turn of the event loop.
        descriptors, memory = await in_thread_or_here(_process)
        engine = await in_thread_or_here(choose)
        return dataclasses.replace(
            self._supervisor.snapshot(),
            tasks=len(asyncio.all_tasks()),
            descriptors=descriptors,
            memory_bytes=memory,
            engine=engine.name,
        )

    async def status(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `GET /v1/status`: the snapshot, as in `schema/status.schema.json`."""
        return (await self.snapshot()).as_json()

    async def connections(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `GET /v1/connections`: the open and the last connections of each forward, or of
        those of `target`."""
        name = body.get("target")
        if not (name is None or isinstance(name, str)):
            raise UsageError("`target` is a string")
        known = list(self._supervisor.active.all_forwards())
        chosen = [forward for forward in known if name in (None, forward.spec.target.name)]
        if name is not None and not chosen:
            raise UsageError(f"no target `{name[:100]}`")
        for forward in chosen if name is not None else ():
            self._programs.watch(forward.metrics)
        await self._programs.find(
            stream for forward in chosen for stream in forward.metrics.streams
        )
        found = [(forward, records(forward)) for forward in chosen]
        answer = await in_thread_or_here(lambda: [connections_of(*each) for each in found])
        return {"forwards": answer}

    async def events(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `GET /v1/events/recent`: the kept events with a number above `after`."""
        after = body.get("after", 0)
        if not isinstance(after, int) or isinstance(after, bool):
            raise UsageError("`after` is a number")
        history = self._supervisor.bus.history
        found = [event.as_json() for event in history if event.number > after]
        return {"last": history[-1].number if history else 0, "events": found}

    async def plan(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `POST /v1/plan`: what the file, or that of `path` or `text`, would change.

        `context` and `namespace` replace those with which krelay runs.
        """
        source = self._reloader.source
        keys = ("path", "text", "context", "namespace")
        for key in keys:
            if not isinstance(body.get(key, ""), str | None):
                raise UsageError(f"`{key}` is a string")
        path, text = body.get("path"), body.get("text")
        if isinstance(source, Selection):
            given = {key: body[key] for key in keys[2:] if body.get(key)}
            source = dataclasses.replace(source, **given)
        if isinstance(source, Selection) and text is not None:
            source = dataclasses.replace(source, path="-", text=_bytes(text))
        elif isinstance(source, Selection) and path is not None:
            source = dataclasses.replace(source, path=path, text=None)
        return _changes(await self._reloader.plan(source))

    async def reload(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `POST /v1/reload`: apply the file, and return what changed."""
        return _changes(await self._reloader.reload("krelay reload"))

    async def restart(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `POST /v1/restart`: begin anew with `targets`, or with everything."""
        names = body.get("targets", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UsageError("`targets` is a list of names")
        if not names:
            await self._supervisor.reread_kubeconfig()
        return dataclasses.asdict(await self._supervisor.restart(names))


def _process() -> tuple[int, int]:
    """Return this process's open descriptors and its resident memory in bytes. Blocks."""
    import psutil

    process = psutil.Process()
    try:
        return process.num_fds(), process.memory_info().rss
    except (psutil.Error, OSError):
        return 0, 0


def _bytes(text: str) -> bytes:
    """Decode a text of JSON: surrogates stand for bytes that are not UTF-8, as `krelay plan`
    sends them.

    Raises:
        UsageError: it holds another surrogate.
    """
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError as exc:
        # The error's own message would quote the text.
        surrogate = f"U+{ord(text[exc.start]):04X}"
        raise UsageError(f"`text` is not text: it holds the surrogate {surrogate}") from None


def _changes(changes: list[Change]) -> dict[str, Any]:
    return {"changes": [change.as_json() for change in changes]}
