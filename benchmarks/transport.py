"""What the pipe under a tunnel costs: each carrier and `kubectl port-forward` beside each other.

`python -m benchmarks.transport [MIB]` on the cluster of $KUBECONFIG; prints MB/s and the CPU
seconds per GiB of the client. A stock Python pod is the source and the sink.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from krelay.cluster.api import Api
from krelay.model import Transport
from krelay.net.api_access import ApiAccess
from krelay.transport.portforward import open_portforward

NAMESPACE = f"transport-bench-{os.getpid()}"
PORT = 9700
SOURCE = """
import asyncio, sys
async def serve(reader, writer):
    head = await reader.readexactly(9)
    size, block = int.from_bytes(head[1:], "big"), bytes(65536)
    if head[:1] == b"d":
        for _ in range(size // len(block)):
            writer.write(block)
            await writer.drain()
    else:
        while size:
            size -= len(await reader.read(65536))
        writer.write(b"k")
    await writer.drain()
    await reader.read()
    writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", PORT, limit=1 << 18)
    print("ready", flush=True)
    await server.serve_forever()
asyncio.run(main())
""".replace("PORT", str(PORT))


class Client(asyncio.Protocol):
    """Asks for one direction, and counts."""

    def __init__(self, direction: str, size: int, block: int) -> None:
        self.direction, self.size, self.block = direction, size, bytes(block)
        self.left = size if direction == "down" else 1
        self.to_send = 0
        self.paused = False
        self.reads = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=256 << 10)
        transport.write(self.direction[:1].encode() + self.size.to_bytes(8, "big"))
        if self.direction == "up":
            self.to_send = self.size
            self.pump()

    def pump(self) -> None:
        while self.to_send and not self.paused:
            self.to_send -= len(self.block)
            self.transport.write(self.block)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self.pump()

    def data_received(self, data: bytes) -> None:
        self.reads += 1
        self.left -= len(data)
        if self.left == 0 and not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or EOFError())


StreamRequester = Callable[[Client], Awaitable[asyncio.BaseTransport]]


async def measure(
    name: str,
    direction: str,
    size: int,
    opener: StreamRequester,
    cpu: Callable[[], float],
    block: int,
) -> None:
    client = Client(direction, size, block)
    before, start = cpu(), time.perf_counter()
    opened = await opener(client)
    await client.done
    took, used = time.perf_counter() - start, cpu() - before
    opened.close()
    print(
        f"{name:34} {direction:5} {size / took / 1e6:6.0f} MB/s  "
        f"{used / (size / (1 << 30)):5.2f} s/GiB  {client.reads:6} reads",
        flush=True,
    )


def own_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def cpu_of(pid: int) -> Callable[[], float]:
    def read() -> float:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    return read


async def kubectl(*args: str, stdin: str | None = None) -> str:
    process = await asyncio.create_subprocess_exec(
        "kubectl", *args, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate(stdin.encode() if stdin else None)
    return out.decode()


@contextlib.asynccontextmanager
async def pod() -> AsyncIterator[str]:
    await kubectl("create", "namespace", NAMESPACE)
    try:
        container = {
            "name": "peer",
            "image": "python:3.11-slim",
            "imagePullPolicy": "IfNotPresent",
            "command": ["python3", "-u", "-c", SOURCE],
        }
        manifest = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "peer", "namespace": NAMESPACE},
            "spec": {"containers": [container], "terminationGracePeriodSeconds": 0},
        }
        await kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
        await kubectl("wait", "-n", NAMESPACE, "pod/peer", "--for=condition=Ready")
        while "ready" not in await kubectl("logs", "-n", NAMESPACE, "peer"):
            pass
        yield "peer"
    finally:
        await kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@contextlib.asynccontextmanager
async def forwarded(name: str, websockets: str) -> AsyncIterator[tuple[int, int]]:
    """`kubectl port-forward`: its process id and the local port."""
    process = await asyncio.create_subprocess_exec(
        "kubectl",
        *("port-forward", "-n", NAMESPACE, name, f":{PORT}"),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "KUBECTL_PORT_FORWARD_WEBSOCKETS": websockets},
    )
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    try:
        yield process.pid, int(line.split("->")[0].rpartition(":")[2])
    finally:
        process.terminate()
        await process.wait()


def piped(access: ApiAccess, name: str, way: Transport) -> StreamRequester:
    async def opener(client: Client) -> asyncio.BaseTransport:
        return await open_portforward(
            access, namespace=NAMESPACE, pod=name, port=PORT, protocol=client, transport=way
        )

    return opener


def local(port: int) -> StreamRequester:
    async def opener(client: Client) -> asyncio.BaseTransport:
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(lambda: client, "127.0.0.1", port))[0]

    return opener


async def main() -> None:
    size = int(sys.argv[1] if len(sys.argv) > 1 else 512) << 20
    block = 128 << 10
    async with await Api.connect() as api, pod() as name:
        access = await api.access()
        for direction in ("down", "up"):
            for way in (Transport.SPDY, Transport.WEBSOCKET):
                await measure(
                    f"pipe, {way}", direction, size, piped(access, name, way), own_cpu, block
                )
            for flag, label in (("false", "spdy"), ("true", "websocket")):
                async with forwarded(name, flag) as (pid, port):
                    await measure(
                        f"kubectl port-forward, {label}",
                        direction,
                        size,
                        local(port),
                        cpu_of(pid),
                        block,
                    )


if __name__ == "__main__":
    asyncio.run(main())
