"""SubprocessAgent: an agent that runs as a child process (`agent: {embedded: true}`)."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import sys
from collections.abc import Callable

from krelay import payload
from krelay.agents.base import AgentEvents, log
from krelay.errors import AgentError, PodGoneError
from krelay.model import GroupSpec
from krelay.processes import end
from krelay.state.bus import EventBus
from krelay.threads import in_thread

_PROCESS_DEADLINE = 10.0
_STOP_DEADLINE = 5.0


class SubprocessAgent:
    """An agent that runs as a child process and is reached over loopback TCP."""

    name = "tcp"
    private = False
    expires = math.inf
    shortcut = None
    shortcut_only = False
    starting = None

    def __init__(self, spec: GroupSpec, key: bytes, bus: EventBus) -> None:
        self.lost = ""
        self.on_delay: Callable[[str], None] = lambda delay: None
        self._spec = spec
        self._key = key
        self._process: asyncio.subprocess.Process | None = None
        self._log: asyncio.Task[None] | None = None
        self._port = 0
        self._where = ""
        self._events = AgentEvents(bus, spec.context)
        self._starting = asyncio.Lock()

    @property
    def where(self) -> str:
        runs = self._process is not None and self._process.returncode is None
        return self._where if runs else ""

    async def start(self) -> None:
        async with self._starting:
            if self._process is not None and self._process.returncode is None:
                return
            source = await in_thread(payload.payload)
            environ = {**os.environ, payload.ENV_NAME: source, "KRELAY_KEY": self._key.hex()}
            session = self._spec.session
            # Loopback is never cut: an agent without a client has lost its parent and may end soon.
            arguments = [
                "--port=0",
                "--idle-timeout=5s",
                f"--grace={min(session.resume_timeout, 2.0):g}",
                f"--connect-timeout={self._spec.connect_timeout:g}",
                f"--replay={session.resume_buffer}",
                f"--ping={session.ping:g}",
                f"--ping-timeout={session.ping_timeout:g}",
            ]
            pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
            process = await asyncio.create_subprocess_exec(
                *payload.command(sys.executable),
                *arguments,
                env=environ,
                stdin=null,
                stdout=pipe,
                stderr=pipe if log.isEnabledFor(logging.DEBUG) else null,
                start_new_session=True,
            )
            if process.stderr is not None:
                lines = _log_lines(process.stderr)
                self._log = asyncio.get_running_loop().create_task(lines, name="agent's log")
            self._port = await self._read_port(process)
            self._process = process
            self._where = f"process {process.pid}, port {self._port}"
            self._events.started(self._where, f"embedded, {self._where}")

    async def dial(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        from krelay.transport.connect import open_tcp

        if self._process is None:
            await self.start()
        elif self._process.returncode is not None:
            await self._replace(self._process)
        return await open_tcp("127.0.0.1", self._port, protocol=protocol, timeout=_PROCESS_DEADLINE)

    def reached(self) -> None:
        """Do nothing: `start` returns only when the agent listens."""

    async def reachable_again(self) -> None:
        """Wait forever: loopback is never unreachable."""
        await asyncio.get_running_loop().create_future()

    async def abandon(self, reason: str) -> None:
        """Kill a child that has not answered for too long."""
        if self._process is not None and self._process.returncode is None:
            log.warning("killed: %s", reason)
            self._process.kill()

    def access_changed(self) -> None:
        """Do nothing: it needs no credentials."""

    async def gone(self) -> str:
        return ""

    async def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await end(process, grace=_STOP_DEADLINE)

    async def _replace(self, ended: asyncio.subprocess.Process) -> None:
        """Start another agent in the place of one that has ended, and raise PodGoneError: the
        sessions of the former are lost."""
        reason = f"the embedded agent ended with {ended.returncode}"
        where, self._where = self._where, ""
        if where:
            self._events.lost(where, reason)
        await self.start()
        self.lost = reason
        raise PodGoneError(reason)

    async def _read_port(self, process: asyncio.subprocess.Process) -> int:
        assert process.stdout is not None
        try:
            async with asyncio.timeout(_PROCESS_DEADLINE):
                line = await process.stdout.readline()
            return int(line.rpartition(b":")[2])
        except BaseException as exc:
            # Its port will never be known.
            await end(process)
            if isinstance(exc, TimeoutError | ValueError):
                raise AgentError("the embedded agent did not start", hint="run with -vv") from exc
            raise


async def _log_lines(stream: asyncio.StreamReader) -> None:
    """Log what an embedded agent writes, until it has ended."""
    while True:
        try:
            line = await stream.readline()
        except ValueError:
            continue  # too long a line: the rest of it follows
        if not line:
            return
        log.debug("%s", line.decode(errors="replace").rstrip())
