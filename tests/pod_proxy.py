"""An API server's `pods/proxy` before a real agent's door, and the shortcut of a link to it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from krelay.net.api_access import ApiAccess
from krelay.transport.pod_proxy import open_pod_proxy

Address = tuple[str, int]


async def pass_on(
    head: bytes,
    address: Address,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    open_gate: asyncio.Event | None = None,
) -> None:
    """Pass a request to `pods/NAME:PORT/proxy/` on, and then bytes both ways until either end.

    Like Go's reverse proxy: credentials are removed, and the pod sees the rest of the path. Bytes
    pass while `open_gate` is set.
    """
    kept = [
        line
        for line in head.decode("latin-1").split("\r\n")[1:]
        if line and not line.lower().startswith(("authorization", "impersonate"))
    ]
    try:
        pod_reader, pod_writer = await asyncio.open_connection(*address)
    except OSError as exc:
        why = os.strerror(exc.errno or 0).lower()
        text = f"error dialing backend: dial tcp {address[0]}:{address[1]}: connect: {why}"
        writer.write(refusal(500, text))
        return
    request = ["GET / HTTP/1.1", *kept, "X-Forwarded-For: 127.0.0.1", "", ""]
    pod_writer.write("\r\n".join(request).encode("latin-1"))

    async def copy(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                if open_gate is not None:
                    await open_gate.wait()
                to.write(data)
                await to.drain()

    loop = asyncio.get_running_loop()
    copies = [
        loop.create_task(copy(reader, pod_writer)),
        loop.create_task(copy(pod_reader, writer)),
    ]
    try:
        await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
        with contextlib.suppress(OSError):
            await writer.drain()
    finally:
        for task in copies:
            task.cancel()
        await asyncio.gather(*copies, return_exceptions=True)
        pod_writer.transport.abort()


def refusal(status: int, message: str, reason: str = "") -> bytes:
    """An API server's answer: a Status."""
    body = (
        f'{{"kind":"Status","apiVersion":"v1","status":"Failure","message":"{message}",'
        f'"reason":"{reason}","code":{status}}}'
    )
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


FORBIDDEN = refusal(
    403,
    'pods \\"agent:10250\\" is forbidden: User \\"dev\\" cannot get resource '
    '\\"pods/proxy\\" in API group \\"\\" in the namespace \\"team\\"',
    "Forbidden",
)


class Shortcut:
    """The way to an agent's door through `pods/proxy` of an API server on loopback.

    `answer` is sent instead of passing a request on. While `open_gate` is clear, requests and bytes
    are swallowed, as by a firewall. `cut` breaks what is up.
    """

    name = "proxy"
    private = False

    def __init__(self, door: Address) -> None:
        self.door = door
        self.expires = math.inf
        self.available = True
        self.dials = 0
        self.answer: bytes | None = None
        self.open_gate = asyncio.Event()
        self.open_gate.set()
        self.heads: list[bytes] = []
        self._port = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def prepare(self) -> None:
        """Do nothing: its credentials are fixed."""

    async def dial(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        self.dials += 1
        headers = (("Authorization", "Bearer t"), ("Impersonate-Group", "a"))
        access = ApiAccess(f"http://127.0.0.1:{self._port}/prefix", None, None, headers)
        return await open_pod_proxy(
            access, namespace="team", pod="agent", port=10250, protocol=protocol
        )

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Shortcut]:
        """Serve on loopback."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.cut()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            await self.open_gate.wait()
            if self.answer is not None:
                writer.write(self.answer)
                await writer.drain()
            else:
                await pass_on(head, self.door, reader, writer, self.open_gate)
            writer.close()
        except (asyncio.IncompleteReadError, OSError):
            writer.transport.abort()
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
