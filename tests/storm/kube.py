"""A fake API server on loopback with a real agent behind each Job, as slow and wrong as told.

It knows Jobs, pods, Services, EndpointSlices and events, lists and watches of them, `pods/proxy`,
and the port-forward by a plain SPDY upgrade (docs of Kubernetes: "API concepts"; moby/spdystream).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from agent.server import Server as AgentServer
from agent.settings import Settings
from tests.pod_proxy import pass_on

Object = dict[str, Any]
NAMESPACE = "team"
_SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"
_SPDY_DATA_STREAM = 3
"""The client's second stream (its first has the errors)."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one request: it waits, and fails before or after it is carried out."""

    delay: float = 0.0
    status: int = 0
    """Of the answer; 0: as it should be, -1: none, the connection is reset."""
    carried_out: bool = True


@dataclass
class Job:
    """One Job, from its creation to its deletion, and the agent of its pod."""

    name: str
    deleted: bool = False
    agent: AgentServer | None = None
    running: asyncio.Task[None] | None = None
    pipes: set[asyncio.StreamWriter] = field(default_factory=set)


class Kube:
    """`fault` decides on each request by its method and path; `pod_starts` on each pod."""

    def __init__(
        self,
        fault: Callable[[str, str], Fault] = lambda method, path: Fault(),
        pod_starts: Callable[[], bool] = lambda: True,
    ) -> None:
        self.jobs: dict[str, Job] = {}
        self.seen = asyncio.Event()
        """A first request has come."""
        self.down = False
        """Every connection is reset."""
        self._fault = fault
        self._pod_starts = pod_starts
        self._pods: dict[str, Object] = {}
        self._version = 1
        self._changed = asyncio.Event()
        self._connections: set[asyncio.StreamWriter] = set()
        self._tasks: asyncio.TaskGroup
        self._port = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Kube]:
        """Serve on loopback; end every agent and connection afterwards."""
        async with asyncio.TaskGroup() as self._tasks:
            server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
            self._port = server.sockets[0].getsockname()[1]
            try:
                yield self
            finally:
                server.close()
                self.cut()
                for job in self.jobs.values():
                    self._end_agent(job)
                for task in list(self._tasks._tasks):
                    task.cancel()

    def kubeconfig(self, path: Path) -> str:
        """Write a kubeconfig that leads here; its path."""
        body = {
            "current-context": "here",
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self._port}"}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [
                {"name": "here", "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}}
            ],
        }
        path.write_text(json.dumps(body))
        return str(path)

    @property
    def left(self) -> list[str]:
        """The names of the Jobs that were not deleted."""
        return [job.name for job in self.jobs.values() if not job.deleted]

    def lose_agent(self) -> None:
        """Delete the pod of each agent that runs; its Job stays."""
        for job in self.jobs.values():
            self._end_agent(job)
            self._pods.pop(job.name, None)
        self._touch()

    def cut(self) -> None:
        """Reset every connection."""
        for writer in list(self._connections):
            writer.transport.abort()

    # -- HTTP ----------------------------------------------------------------------------------

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.down:
            writer.transport.abort()
            return
        self._connections.add(writer)
        self._tasks.create_task(self._serve(reader, writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._request(reader, writer):
                pass
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self._connections.discard(writer)
            writer.transport.abort()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether another may follow."""
        raw = await reader.readuntil(b"\r\n\r\n")
        head = raw.decode().split("\r\n")
        method, target, _ = head[0].split(" ")
        fields = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await reader.readexactly(int(fields.get("content-length", 0)))
        self.seen.set()
        url = urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        fault = self._fault(method, url.path)
        if url.path.endswith("/portforward"):
            await asyncio.sleep(fault.delay)
            if fault.status:
                return await _answer(writer, fault.status, {"message": "a fault"})
            await self._port_forward(url.path.split("/")[-2], reader, writer)
            return False
        if url.path.endswith("/proxy/"):
            await asyncio.sleep(fault.delay)
            if fault.status:
                return await _answer(writer, fault.status, {"message": "a fault"})
            await self._pod_proxy(url.path.split("/")[-3], raw, reader, writer)
            return False
        if method in ("POST", "DELETE"):
            # A request is carried out whole, as a server does whose client has gone.
            done = self._tasks.create_task(self._write(method, url.path, body, fault))
            status, answer = await asyncio.shield(done)
        else:
            await asyncio.sleep(fault.delay)
            if "watch" in query and not fault.status:
                await self._watch(url.path, query, writer)
                return False
            status, answer = self._read(url.path, query)
            status = fault.status or status
        return await _answer(writer, status, answer)

    async def _write(self, method: str, path: str, body: bytes, fault: Fault) -> tuple[int, Object]:
        await asyncio.sleep(fault.delay)
        status, answer = 200, Object()
        if fault.carried_out or not fault.status:
            change = self._create if method == "POST" else self._delete
            status, answer = change(path, body)
        return (fault.status, {"message": "a fault"}) if fault.status else (status, answer)

    def _read(self, path: str, query: dict[str, str]) -> tuple[int, Object]:
        *_, resource, name = path.split("/")
        if resource == "pods":  # one of them
            pod = self._pods.get(name.removesuffix("-pod"))
            return (200, pod) if pod else (404, {"message": f'pods "{name}" not found'})
        return 200, {
            "metadata": {"resourceVersion": str(self._version)},
            "items": list(self._objects(path, query).values()),
        }

    async def _watch(self, path: str, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        shown: dict[str, Object] = {}
        while not writer.is_closing():
            changed, now = self._changed, self._objects(path, query)
            events = [("DELETED", shown[name]) for name in shown.keys() - now.keys()]
            events += [("MODIFIED", now[name]) for name in now if shown.get(name) != now[name]]
            for kind, item in events:
                writer.write(json.dumps({"type": kind, "object": item}).encode() + b"\n")
            await writer.drain()
            shown = dict(now)
            await changed.wait()

    def _objects(self, path: str, query: dict[str, str]) -> dict[str, Object]:
        resource = path.rpartition("/")[2]
        label = unquote(query.get("labelSelector", "")).partition("=")[2]
        name = unquote(query.get("fieldSelector", "")).partition("=")[2]
        if resource == "jobs":
            return {
                job.name: self._metadata(job.name)
                for job in self.jobs.values()
                if not job.deleted and name in ("", job.name)
            }
        if resource != "pods":
            return {}
        return {
            pod["metadata"]["name"]: pod
            for job, pod in self._pods.items()
            if label in ("", job) and name in ("", pod["metadata"]["name"])
        }

    def _metadata(self, name: str) -> Object:
        return {
            "metadata": {
                "name": name,
                "namespace": NAMESPACE,
                "uid": f"uid-{name}",
                "resourceVersion": str(self._version),
            }
        }

    def _touch(self) -> None:
        self._version += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    # -- Jobs and their agents -----------------------------------------------------------------

    def _create(self, path: str, body: bytes) -> tuple[int, Object]:
        manifest = json.loads(body)
        name = manifest["metadata"]["name"]
        if name in self.jobs:
            return 409, {"message": f'jobs.batch "{name}" already exists'}
        job = self.jobs[name] = Job(name)
        env = manifest["spec"]["template"]["spec"]["containers"][0]["env"]
        digest = next(entry["value"] for entry in env if entry["name"] == "KRELAY_KEY_SHA256")
        if self._pod_starts():
            settings = Settings(port=0, key_sha256=digest, pod_ip="127.0.0.1", door_port=0)
            job.agent = AgentServer(settings)
            job.running = self._tasks.create_task(self._run_agent(job))
        else:
            waiting = {"reason": "ErrImagePull", "message": "no such image"}
            self._put_pod(job, {"waiting": waiting}, "Pending")
        self._touch()
        return 201, manifest | self._metadata(name)

    async def _run_agent(self, job: Job) -> None:
        assert job.agent is not None
        serving = self._tasks.create_task(job.agent.run())
        try:
            await job.agent.listening.wait()
            self._put_pod(job, {"running": {}}, "Running")
            await asyncio.wait({serving})
        finally:
            serving.cancel()

    def _put_pod(self, job: Job, state: Object, phase: str) -> None:
        pod = self._metadata(f"{job.name}-pod")
        status = {
            "phase": phase,
            "containerStatuses": [{"name": "krelay-server", "image": "i", "state": state}],
        }
        self._pods[job.name] = pod | {"spec": {"nodeName": "n"}, "status": status}
        self._touch()

    def _delete(self, path: str, body: bytes) -> tuple[int, Object]:
        name = path.rpartition("/")[2]
        job = self.jobs.get(name)
        if job is None or job.deleted:
            return 404, {"message": f'jobs.batch "{name}" not found'}
        job.deleted = True
        self._end_agent(job)
        self._pods.pop(name, None)
        self._touch()
        return 200, {"kind": "Status", "status": "Success"}

    def _end_agent(self, job: Job) -> None:
        if job.running is not None:
            job.running.cancel()
        for writer in list(job.pipes):
            writer.transport.abort()

    # -- the port-forward ----------------------------------------------------------------------

    async def _port_forward(
        self, pod: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        job = self.jobs.get(pod.removesuffix("-pod"))
        if job is None or job.agent is None or job.name not in self._pods:
            await _answer(writer, 404, {"message": f'pods "{pod}" not found'})
            return
        writer.write(_SWITCHED)
        await _spdy_frame(reader)  # SYN_STREAM of the stream for errors
        await _spdy_frame(reader)  # and of the one for data
        agent_reader, agent_writer = await asyncio.open_connection(*job.agent.address)
        job.pipes |= {writer, agent_writer}
        back = self._tasks.create_task(_to_client(agent_reader, writer))
        try:
            while True:
                word, payload = await _spdy_frame(reader)
                if word == _SPDY_DATA_STREAM:
                    agent_writer.write(payload)
                    await agent_writer.drain()
        finally:
            job.pipes -= {writer, agent_writer}
            agent_writer.transport.abort()
            back.cancel()

    async def _pod_proxy(
        self, pod: str, raw: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        name, _, _ = pod.partition(":")
        job = self.jobs.get(name.removesuffix("-pod"))
        agent = job.agent if job is not None and job.name in self._pods else None
        if job is None or agent is None or agent.door is None:
            await _answer(writer, 404, {"message": f'pods "{name}" not found'})
            return
        job.pipes.add(writer)
        try:
            await pass_on(raw, agent.door.address, reader, writer)
        finally:
            job.pipes.discard(writer)


async def _answer(writer: asyncio.StreamWriter, status: int, body: Object) -> bool:
    if status < 0:
        writer.transport.abort()
        return False
    data = json.dumps(body).encode()
    writer.write(
        b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        % (status, len(data), data)
    )
    await writer.drain()
    return True


async def _spdy_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The first word of a frame's head (of a data frame, the stream's id) and its payload."""
    word, tail = struct.unpack(">II", await reader.readexactly(8))
    return word, await reader.readexactly(tail & 0xFFFFFF)


async def _to_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 15):
            writer.write(struct.pack(">II", _SPDY_DATA_STREAM, len(data)) + data)
            await writer.drain()
    writer.transport.abort()
