"""The target of the cluster's tests: runs in pods as it is, on the standard library.

Port 8000 speaks HTTP: `/` names the pod, `/ready` is its readiness. Port 9000 takes a line with
a command and then the connection is that command's. Port 9001 echoes datagrams. On SIGTERM it
serves on for a while, as pods that end gracefully do.

If this program ends before them, `duplex` and `ask` connections end by RST, and `/outcomes` lists
the result of each `duplex`: so no end goes unnoticed.
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
PIECE = 4 << 10
_LINGER = 3.0
_NOISE = hashlib.shake_128(b"krelay").digest(BLOCK)


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


def piece(key: int, number: int, size: int) -> bytes:
    """The piece of this number in a transfer of `size` bytes: it says whose it is and which."""
    length = max(0, min(PIECE, size - number * PIECE))
    start = (key * 7919 + number * 104_729) % (BLOCK - PIECE)
    return (struct.pack(">QQ", key, number) + _NOISE[start : start + PIECE - 16])[:length]


class Check:
    """Tells what is wrong with the bytes of a transfer: `wrong` is empty while nothing is."""

    def __init__(self, key: int, size: int) -> None:
        self.key, self.size = key, size
        self.received = 0
        self.wrong = ""
        self._number = 0
        self._buffer = bytearray()

    @property
    def complete(self) -> bool:
        """Whether all of it has come, and nothing else."""
        return self.received == self.size and not self.wrong

    def feed(self, data: bytes) -> None:
        """The next bytes."""
        self.received += len(data)
        self._buffer += data
        while self._buffer and not self.wrong:
            due = piece(self.key, self._number, self.size)
            if not due:
                self.wrong = "too much"
            elif len(self._buffer) < len(due):
                return
            elif self._buffer.startswith(due):
                del self._buffer[: len(due)]
                self._number += 1
            else:
                self.wrong = f"{self._kind(bytes(self._buffer))} at piece {self._number}"

    def _kind(self, data: bytes) -> str:
        at = data.find(struct.pack(">Q", self.key))
        if at < 0 or len(data) < at + 16:
            return "foreign or corrupt"
        (number,) = struct.unpack_from(">Q", data, at + 8)
        if at == 0 and number == self._number:
            return "corrupt"
        return "lost or reordered" if number > self._number else "repeated"


async def send(writer: asyncio.StreamWriter, key: int, size: int, rate: int) -> None:
    """A transfer's bytes, at `rate` bytes a second where they can go (0: as fast as they go)."""
    clock = asyncio.get_running_loop().time
    due = clock()
    for number in range(-(-size // PIECE)):
        writer.write(piece(key, number, size))
        await writer.drain()
        if rate:
            # What was held up is not made up for in one burst.
            due = max(due + PIECE / rate, clock() - 1)
            await asyncio.sleep(max(0.0, due - clock()))


class Abrupt:
    """Whatever ends the block early ends the connection by RST, as does this program's end."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._sock = writer.get_extra_info("socket")

    def _linger(self, on: int) -> None:
        if self._sock.fileno() >= 0:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", on, 0))

    def __enter__(self) -> None:
        self._linger(1)

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._linger(0)


outcomes: list[str] = []


async def duplex(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: int, size: int, rate: int
) -> None:
    """A transfer each way at once; at the end the verdict on what has come."""
    check = Check(2 * key, size)
    outcome = "reset"
    try:
        with Abrupt(writer):
            writer.write(os.environ.get("HOSTNAME", "").encode() + b"\n")
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(send(writer, 2 * key + 1, size, rate))
                while data := await reader.read(1 << 16):
                    check.feed(data)
            outcome = check.wrong or ("ok" if check.complete else f"short {check.received}")
            writer.write(f"{outcome}\n".encode())
            writer.write_eof()
            await writer.drain()
    except* ConnectionError:
        outcome = check.wrong or "reset"
    finally:
        outcomes.append(f"{key} {outcome}")


async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request, one answer."""
    try:
        request = (await reader.readuntil(b"\r\n\r\n")).split(b" ")
        path = request[1].decode()
        body = os.environ.get("HOSTNAME", "").encode() + b"\n"
        if path == "/outcomes":
            body = "".join(f"{line}\n" for line in outcomes).encode()
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
    """One command: echo, ask, send N, receive, duplex KEY SIZE RATE, shut NAME, heard NAME, reset
    or tick."""
    try:
        name, _, argument = (await reader.readline()).decode().strip().partition(" ")
        if name == "echo":
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        elif name == "ask":
            with Abrupt(writer):
                while data := await reader.read(65_536):
                    writer.write(data)
                    await writer.drain()
        elif name == "duplex":
            key, size, rate = (int(number) for number in argument.split())
            await duplex(reader, writer, key, size, rate)
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
