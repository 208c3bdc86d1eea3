"""Control: what may be asked of a running krelay over its socket, in JSON."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from krelay import __version__
from krelay.config.changes import Change
from krelay.config.selection import Selection
from krelay.errors import UsageError
from krelay.status.refusal import to_json
from krelay.status.report import AgentReport, FileReport, ForwardReport, Report, State, TunnelReport
from krelay.status.server import Handler
from krelay.supervisor.forward import Forward
from krelay.supervisor.reload import Reloader
from krelay.supervisor.supervisor import Supervisor


class Control:
    """The handlers of one run."""

    def __init__(self, supervisor: Supervisor, reloader: Reloader) -> None:
        self._supervisor = supervisor
        self._reloader = reloader
        self._started = datetime.now(UTC)
        self.stopping = asyncio.Event()
        """Set by whoever asks for the end."""

    def handlers(self) -> dict[tuple[str, str], Handler]:
        """By method and resource."""
        return {
            ("GET", "/v1/status"): self.status,
            ("POST", "/v1/plan"): self.plan,
            ("POST", "/v1/reload"): self.reload,
            ("POST", "/v1/stop"): self.stop,
        }

    async def status(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What runs, and whether it is what the file says."""
        return self.report().as_json()

    def report(self) -> Report:
        """What is true now."""
        running, drift, files = self._supervisor.running, self._reloader.drift, self._reloader.files
        return Report(
            version=__version__,
            pid=os.getpid(),
            started=self._started,
            file=FileReport(
                path=files[0] if files else None,
                files=files,
                in_step=drift is None,
                since=drift.since if drift else None,
                error=to_json(drift.error) if drift else None,
            ),
            forwards=tuple(self._forward(key, f) for key, f in running.forwards.items()),
            draining=sum(f.live for f in running.ending if isinstance(f, Forward)),
            agents=tuple(
                AgentReport(
                    group.spec.context,
                    (),
                    tuple(TunnelReport(t.name, t.up, t.streams) for t in group.pool.tunnels),
                )
                for group in running.groups.values()
            ),
        )

    async def plan(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What the file, or the one of `path` or `text`, would change."""
        source = self._reloader.source
        path, text = body.get("path"), body.get("text")
        if not all(value is None or isinstance(value, str) for value in (path, text)):
            raise UsageError("`path` and `text` are strings")
        if isinstance(source, Selection) and text is not None:
            source = dataclasses.replace(source, path="-", text=text.encode())
        elif isinstance(source, Selection) and path is not None:
            source = dataclasses.replace(source, path=path)
        return _changes(await self._reloader.plan(source))

    async def reload(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out what the file says; what changed."""
        return _changes(await self._reloader.reload("krelay reload"))

    async def stop(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """End as for SIGTERM; how many connections live, and the seconds they get to finish."""
        running = self._supervisor.running
        self.stopping.set()
        return {
            "pid": os.getpid(),
            "live": sum(forward.live for forward in running.forwards.values()),
            "drain": running.config.tunnel.drain if running.config else 0.0,
        }

    def _forward(self, key: tuple[str, int], forward: Forward) -> ForwardReport:
        route = forward.route
        reason = str(forward.failure or "")
        if not reason and forward.spec.target.kind.in_cluster and route.endpoint is None:
            reason = route.reason
        if not reason and route.pool.pick() is None:
            reason = f"no tunnel to the agent: {route.pool.failure or 'not yet'}"
        bound = forward.listener is not None
        return ForwardReport(
            target=key[0],
            index=key[1],
            name=forward.name,
            to=f"{forward.spec.target}:{forward.spec.port.remote}",
            state=State.FAILED
            if forward.failure
            else State.READY
            if bound and not reason
            else State.PENDING,
            reason=reason or ("" if bound else "not bound yet"),
            since=self._started,
            protocol=forward.protocol,
            listen=tuple(forward.addresses),
            endpoint=str(route.endpoint) if route.endpoint else None,
            live=forward.live,
        )


def _changes(changes: list[Change]) -> dict[str, Any]:
    return {"changes": [change.as_json() for change in changes]}
