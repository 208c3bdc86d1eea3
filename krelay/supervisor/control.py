"""Control: what may be asked of a running krelay over its socket, in JSON."""

from __future__ import annotations

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
from krelay.status.report import FileReport, ForwardReport, Report, State
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

    def handlers(self) -> dict[tuple[str, str], Handler]:
        """By method and resource."""
        return {
            ("GET", "/v1/status"): self.status,
            ("POST", "/v1/plan"): self.plan,
            ("POST", "/v1/reload"): self.reload,
        }

    async def status(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What runs, and whether it is what the file says."""
        running = self._supervisor.running
        drift = self._reloader.drift
        return {
            "version": __version__,
            "pid": os.getpid(),
            "started": self._started.isoformat(),
            "file": {
                "path": self._reloader.files[0] if self._reloader.files else None,
                "files": list(self._reloader.files),
                "inStep": drift is None,
                "since": drift.since.isoformat() if drift else None,
                "error": to_json(drift.error) if drift else None,
            },
            "forwards": [_forward(forward) for forward in running.forwards.values()],
            "draining": sum(f.live for f in running.ending if isinstance(f, Forward)),
            "agents": [
                {
                    "context": group.spec.context,
                    "tunnels": sum(tunnel.up for tunnel in group.pool.tunnels),
                    "streams": group.pool.streams,
                }
                for group in running.groups.values()
            ],
        }

    def report(self) -> Report:
        """What is true now."""
        drift, files = self._reloader.drift, self._reloader.files
        return Report(
            __version__,
            os.getpid(),
            self._started,
            FileReport(
                files[0] if files else None,
                files,
                drift is None,
                since=drift.since if drift else None,
                error=to_json(drift.error) if drift else None,
            ),
            tuple(
                ForwardReport(
                    forward.spec.target.name,
                    forward.spec.index,
                    forward.name,
                    f"{forward.spec.target}:{forward.spec.port.remote}",
                    _state(forward),
                    str(forward.failure or "") or forward.route.reason,
                    self._started,
                    protocol=forward.protocol,
                    listen=tuple(forward.addresses),
                    endpoint=str(forward.route.endpoint) if forward.route.endpoint else None,
                    live=forward.live,
                )
                for forward in self._supervisor.running.forwards.values()
            ),
            0,
            (),
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


def _changes(changes: list[Change]) -> dict[str, Any]:
    return {"changes": [change.as_json() for change in changes]}


def _state(forward: Forward) -> State:
    if forward.listener is not None and forward.route.endpoint is not None:
        return State.READY
    return State.FAILED if forward.failure else State.PENDING


def _forward(forward: Forward) -> dict[str, Any]:
    route = forward.route
    if forward.listener is not None:
        state = "listening"
    else:
        state = "failed" if forward.failure else "waiting"
    reason = str(forward.failure or "") or ("" if route.endpoint else route.reason)
    return {
        "target": forward.spec.target.name,
        "to": f"{forward.spec.target}:{forward.spec.port.remote}",
        "protocol": forward.protocol,
        "listen": forward.addresses,
        "endpoint": str(route.endpoint) if route.endpoint else None,
        "state": state,
        "reason": reason,
        "live": forward.live,
    }
