"""The target of the cluster's tests: runs in pods as it is, on the standard library.

Port 8000 speaks HTTP: `/` names the pod, `/ready` is its readiness. Port 9000 takes a line with
a command and then the connection is that command's. Port 9001 echoes datagrams. On SIGTERM it
serves on for a while, as pods that end gracefully do.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import struct
from collections.abc import Iterator

BLOCK = 1 << 20
_LINGER = 3.0


def blocks(size: int) -> Iterator[bytes]:
    """`size` bytes that no relay could make up, in blocks."""
    noise = hashlib.shake_128(b"krelay").digest(BLOCK)
    for number in range(-(-size // BLOCK)):
        block = number.to_bytes(8, "big") + noise[8:]
        yield block[: min(BLOCK, size - number * BLOCK)]


def digest(size: int) -> str:
    """The SHA-256 of those bytes."""
    whole = hashlib.sha256()
    for block in blocks(size):
        whole.update(block)
    return whole.hexdigest()


async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request, one answer."""
    try:
        request = (await reader.readuntil(b"\r\n\r\n")).split(b" ")
        path = request[1].decode()
        body = os.environ.get("HOSTNAME", "").encode() + b"\n"
        if path.startswith("/slow"):
            await asyncio.sleep(0.2)
        size = int(path.partition("=")[2]) if path.startswith("/bytes") else len(body)
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        if path.startswith("/bytes"):
            for block in blocks(size):
                writer.write(block)
                await writer.drain()
        else:
            writer.write(body)
        await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


heard: dict[str, int] = {}


async def command(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One command: echo, send N, receive, shut NAME, heard NAME, reset or tick."""
    try:
        name, _, argument = (await reader.readline()).decode().strip().partition(" ")
        if name == "echo":
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        elif name == "send":
            for block in blocks(int(argument)):
                writer.write(block)
                await writer.drain()
        elif name == "receive":
            count, whole = 0, hashlib.sha256()
            while data := await reader.read(BLOCK):
                count += len(data)
                whole.update(data)
            writer.write(f"{count} {whole.hexdigest()}\n".encode())
        elif name == "shut":
            writer.write(b"bye")
            writer.write_eof()
            count = 0
            while data := await reader.read(65_536):
                count += len(data)
            heard[argument] = count
        elif name == "heard":
            writer.write(str(heard.get(argument, -1)).encode())
        elif name == "reset":
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        elif name == "tick":
            number = 0
            while not reader.at_eof():
                writer.write(f"{number}\n".encode())
                await writer.drain()
                number += 1
                await asyncio.sleep(0.05)
        await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


class Echo(asyncio.DatagramProtocol):
    """Sends each datagram back; `who` is answered with the pod's name."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: object) -> None:
        answer = os.environ.get("HOSTNAME", "").encode() if data == b"who" else data
        self.transport.sendto(answer, addr)  # type: ignore[attr-defined]


async def main() -> None:
    """Serve until SIGTERM, and a little longer."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    await asyncio.start_server(http, "", 8000, limit=BLOCK, backlog=512)
    await asyncio.start_server(command, "", 9000, limit=BLOCK, backlog=512)
    await loop.create_datagram_endpoint(Echo, local_addr=("0.0.0.0", 9001))
    await stop.wait()
    await asyncio.sleep(_LINGER)


if __name__ == "__main__":
    asyncio.run(main())
