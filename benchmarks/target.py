"""The far end of the benchmarks: `python target.py [FIRST]` serves ports FIRST to FIRST + 4.

It runs in a pod, and on this machine for the control without a forwarder. Each port has a process,
so that no two share an interpreter.

| port      | what it serves                                                                    |
|-----------|-----------------------------------------------------------------------------------|
| FIRST     | echo, over TCP and UDP                                                            |
| FIRST + 1 | source: the first line says how many bytes, and of which kind (`1048576 json`)    |
| FIRST + 2 | sink: takes as many bytes as the first line says, answers one byte                |
| FIRST + 3 | HTTP: a short body; keeps the connection, unless the request is HTTP/1.0          |
| FIRST + 4 | UDP: counts the datagrams of a flow, or sends them at a pace (`benchmarks/udp.py`) |
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import selectors
import signal
import socket
import struct
import sys
import threading
import time
import uuid
from collections.abc import Callable

FIRST = 7001
BLOCK = 1 << 20
BODY = b"x" * 600
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s" % (
    len(BODY),
    BODY,
)
TEXT = 8 << 20
"""Bytes of different text before a source repeats itself."""


# -- what a source sends -----------------------------------------------------------------------


def json_text(number: random.Random) -> str:
    """One object of an API's answer."""
    row = {
        "id": str(uuid.UUID(int=number.getrandbits(128))),
        "customer": {
            "name": number.choice(NAMES),
            "email": f"u{number.randrange(10**6)}@shop.test",
        },
        "createdAt": f"2026-{number.randrange(1, 13):02}-{number.randrange(1, 29):02}T08:15:30Z",
        "status": number.choice(("open", "paid", "sent", "returned")),
        "total": round(number.uniform(1, 900), 2),
        "items": [
            {"sku": f"A-{number.randrange(10**5):05}", "count": number.randrange(1, 9)}
            for _ in range(number.randrange(1, 5))
        ],
    }
    return json.dumps(row) + ",\n"


def sql_text(number: random.Random) -> str:
    """One line of a dump."""
    return (
        f"INSERT INTO orders VALUES ({number.randrange(10**7)}, '{number.choice(NAMES)}', "
        f"'2026-{number.randrange(1, 13):02}-{number.randrange(1, 29):02} 08:15:30', "
        f"{number.uniform(1, 900):.2f}, '{number.getrandbits(64):016x}', NULL, true);\n"
    )


NAMES = ("Ada Byron", "Grace Hopper", "Alan Turing", "Edsger Dijkstra", "Barbara Liskov")
KINDS = {"json": json_text, "sql": sql_text}


@functools.cache
def content(kind: str) -> memoryview:
    """Return TEXT bytes of a kind; random bytes if it is no kind of text."""
    if kind not in KINDS:
        return memoryview(os.urandom(TEXT))
    number, rows, size = random.Random(1), [], 0
    while size < TEXT:
        rows.append(KINDS[kind](number))
        size += len(rows[-1])
    return memoryview("".join(rows).encode()[:TEXT])


# -- TCP, a thread for each connection ---------------------------------------------------------


def first_line(sock: socket.socket) -> list[str]:
    """Return the words of the first line."""
    text = b""
    while not text.endswith(b"\n"):
        more = sock.recv(1)
        if not more or len(text) > 100:
            raise ValueError("no line")
        text += more
    return text.decode().split()


def source(sock: socket.socket) -> None:
    """Send as many bytes as the peer wants."""
    words = first_line(sock)
    left, data, start = int(words[0]), content(words[1] if len(words) > 1 else "random"), 0
    while left > 0:
        part = data[start : start + min(left, BLOCK)]
        sock.sendall(part)
        left -= len(part)
        start = (start + len(part)) % len(data)


def sink(sock: socket.socket) -> None:
    """Take as many bytes as the peer sends, then answer one."""
    left, block = int(first_line(sock)[0]), bytearray(BLOCK)
    while left > 0:
        received = sock.recv_into(block, min(left, BLOCK))
        if not received:
            return
        left -= received
    sock.sendall(b"k")


def threaded(port: int, handle: Callable[[socket.socket], None]) -> None:
    """Serve each connection in a thread, for ever."""

    def serve(sock: socket.socket) -> None:
        with sock:
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                handle(sock)
            except (OSError, ValueError):
                return

    listener = socket.create_server(("", port), backlog=512)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=serve, args=(sock,), daemon=True).start()


# -- TCP, one loop for many connections --------------------------------------------------------


def echo(data: bytes) -> tuple[bytes, bool]:
    """Answer the same bytes."""
    return data, False


def http(data: bytes) -> tuple[bytes, bool]:
    """Answer each request; the bool says whether the connection ends then."""
    return ANSWER * data.count(b"\r\n\r\n"), b" HTTP/1.0\r\n" in data


def looped(port: int, answer: Callable[[bytes], tuple[bytes, bool]]) -> None:
    """Serve all connections in one thread: a thread for each would cost more than the answers."""
    listener = socket.create_server(("", port), backlog=4096)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                sock, _ = listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(20)
                selector.register(sock, selectors.EVENT_READ)
                continue
            sock = key.fileobj  # type: ignore[assignment]
            try:
                data = sock.recv(1 << 16)
                reply, last = answer(data)
                sock.sendall(reply)
            except OSError:
                data, last = b"", True
            if last or not data:
                selector.unregister(sock)
                sock.close()


# -- UDP ---------------------------------------------------------------------------------------


def udp_socket(port: int) -> socket.socket:
    """Return a bound socket with as much room as the kernel gives."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    sock.bind(("", port))
    return sock


def udp_echo(port: int) -> None:
    """Send each datagram back."""
    sock = udp_socket(port)
    while True:
        data, address = sock.recvfrom(65_536)
        sock.sendto(data, address)


def paced(send: Callable[[bytes], object], rate: float, size: int, seconds: float) -> int:
    """Send datagrams of `size` bytes at `rate` bits a second, in bursts a millisecond apart.

    Return how many. iperf3 paces alike.
    """
    data, began, sent = b"d" * size, time.perf_counter(), 0
    total = int(rate * seconds / 8 / size)
    while sent < total:
        due = min(total, int((time.perf_counter() - began) * rate / 8 / size) + 1)
        while sent < due:
            with contextlib.suppress(OSError):  # the datagram is lost, as UDP may
                send(data)
            sent += 1
        time.sleep(0.001)
    return sent


def udp_counter(port: int) -> None:
    """Count datagrams (`d...`), say how many came (`?`), or send some (`s RATE SIZE SECONDS`)."""
    sock = udp_socket(port)
    counts: dict[tuple[str, int], int] = {}
    while True:
        data, address = sock.recvfrom(65_536)
        if data[:1] == b"d":
            counts[address] = counts.get(address, 0) + 1
        elif data[:1] == b"?":
            sock.sendto(struct.pack("!cI", b"n", counts.get(address, 0)), address)
        elif data[:1] == b"s":
            rate, size, seconds = (float(word) for word in data[1:].split())
            sent = paced(functools.partial(send_to, sock, address), rate, int(size), seconds)
            for _ in range(5):
                time.sleep(0.05)
                sock.sendto(struct.pack("!cI", b"n", sent), address)


def send_to(sock: socket.socket, address: tuple[str, int], data: bytes) -> None:
    """Send a datagram."""
    sock.sendto(data, address)


def main() -> None:
    """Serve until SIGTERM, which ends all processes."""
    first = int(sys.argv[1]) if len(sys.argv) > 1 else FIRST
    parts: list[Callable[[], None]] = [
        functools.partial(looped, first, echo),
        functools.partial(udp_echo, first),
        functools.partial(threaded, first + 1, source),
        functools.partial(threaded, first + 2, sink),
        functools.partial(looped, first + 3, http),
        functools.partial(udp_counter, first + 4),
    ]
    children = []
    for part in parts:
        if (pid := os.fork()) == 0:
            try:
                part()
            finally:
                os._exit(1)
        children.append(pid)

    def end(number: int, frame: object) -> None:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    os.wait()
    end(0, None)


if __name__ == "__main__":
    main()
