"""The near end of the benchmarks: `python -m benchmarks.load MODE PORT [ARGUMENT]...` prints JSON.

Each load has a process, so that it shares no interpreter with what it measures or runs beside.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable

from benchmarks import udp
from benchmarks.target import content

BLOCK = 1 << 20
PATIENCE = 60.0
"""Seconds for one call of a socket."""


class BrokenOffError(Exception):
    """The other end ended too early."""


def dial(port: int) -> socket.socket:
    """Return a connection that sends small writes at once."""
    sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def receive(sock: socket.socket, size: int) -> None:
    """Receive `size` bytes."""
    left, block = size, bytearray(min(size, BLOCK))
    while left > 0:
        received = sock.recv_into(block, min(left, BLOCK))
        if not received:
            raise BrokenOffError(f"ended {left} bytes early")
        left -= received


def together(count: int, work: Callable[[], object]) -> None:
    """Run `work` in so many threads; raise the first error of any."""
    failed: list[Exception] = []

    def run() -> None:
        try:
            work()
        except (OSError, BrokenOffError) as exc:
            failed.append(exc)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def bulk(count: int, size: int, transfer: Callable[[], None]) -> dict[str, float]:
    """Run `count` transfers at once; report all of their bytes."""
    began = time.perf_counter()
    together(count, transfer)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "bytes": count * size, "rate": count * size / seconds / 1e6}


def down(port: int, size: str, count: str = "1", kind: str = "random") -> dict[str, float]:
    """Receive `size` bytes of a kind over each of `count` connections; `rate` is in MB/s."""

    def transfer() -> None:
        with dial(port) as sock:
            sock.sendall(f"{size} {kind}\n".encode())
            receive(sock, int(size))

    return bulk(int(count), int(size), transfer)


def up(port: int, size: str, count: str = "1", kind: str = "random") -> dict[str, float]:
    """Send `size` bytes over each connection, until the target says that it has them."""
    data = content(kind)

    def transfer() -> None:
        with dial(port) as sock:
            sock.sendall(f"{size}\n".encode())
            left, start = int(size), 0
            while left > 0:
                part = data[start : start + min(left, BLOCK)]
                sock.sendall(part)
                left -= len(part)
                start = (start + len(part)) % len(data)
            receive(sock, 1)

    return bulk(int(count), int(size), transfer)


def quantiles(times: list[float]) -> dict[str, float]:
    """Return the median and the 99th percentile in ms, and how many there are."""
    ordered = sorted(times)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return {"p50": statistics.median(ordered) * 1e3, "p99": p99 * 1e3, "count": len(ordered)}


def timed(
    seconds: float, step: Callable[[], None], pause: float = 0.0, least: int = 3
) -> list[float]:
    """Repeat `step` for so long, at least `least` times; return how long each took."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < least:
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
        if pause:
            time.sleep(pause)
    return times


def connect(port: int, seconds: str) -> dict[str, float]:
    """Open connections one after the other, each with one byte sent and echoed."""

    def step() -> None:
        with dial(port) as sock:
            sock.sendall(b"x")
            receive(sock, 1)

    return quantiles(timed(float(seconds), step))


def connect16(port: int, seconds: str) -> dict[str, float]:
    """Do the same from 16 clients at once, four in each process; `rate` is a second."""
    pipes = []
    for _ in range(4):
        reader, writer = os.pipe()
        if (pid := os.fork()) == 0:
            done: list[float] = []
            lock = threading.Lock()

            def client(done: list[float] = done, lock: threading.Lock = lock) -> None:
                count = connect(port, seconds)["count"]
                with lock:
                    done.append(count)

            try:
                together(4, client)
                os.write(writer, f"{sum(done)}".encode())
            finally:
                os._exit(0)
        os.close(writer)
        pipes.append((pid, reader))
    began, total = time.perf_counter(), 0.0
    for pid, reader in pipes:
        text = os.read(reader, 100)
        os.waitpid(pid, 0)
        if not text:
            raise BrokenOffError("a client failed")
        total += float(text)
    return {"rate": total / (time.perf_counter() - began)}


def echo(port: int, seconds: str) -> dict[str, float]:
    """Send 64 bytes there and back, 2 ms apart."""
    with dial(port) as sock:

        def step() -> None:
            sock.sendall(b"x" * 64)
            receive(sock, 64)

        step()
        return quantiles(timed(float(seconds), step, 0.002))


def end(port: int, seconds: str) -> dict[str, float]:
    """GET over HTTP/1.0: from the first byte sent to the end of the connection."""
    times: list[float] = []

    def step() -> None:
        with dial(port) as sock:
            began = time.perf_counter()
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            while sock.recv(1 << 16):
                pass
            times.append(time.perf_counter() - began)

    timed(float(seconds), step, least=1)
    return quantiles(times)


def fetch(port: int, size: str, seconds: str) -> dict[str, float]:
    """Receive `size` bytes over a new connection, again and again."""

    def step() -> None:
        with dial(port) as sock:
            sock.sendall(f"{size}\n".encode())
            receive(sock, int(size))

    return quantiles(timed(float(seconds), step, least=1))


def hold(port: int, count: str) -> dict[str, float]:
    """Open so many connections, each with a byte echoed; keep them until stdin ends."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    held, reason = [], ""
    began = time.perf_counter()
    for _ in range(int(count)):
        try:
            sock = dial(port)
            sock.settimeout(5)
            sock.sendall(b"x")
            receive(sock, 1)
        except (OSError, BrokenOffError) as exc:
            reason = str(exc)
            break
        held.append(sock)
    seconds = time.perf_counter() - began
    print(
        json.dumps({"open": len(held), "rate": len(held) / seconds, "reason": reason}), flush=True
    )
    sys.stdin.read()
    return {"open": len(held)}


MODES: dict[str, Callable[..., dict[str, float]]] = {
    function.__name__: function
    for function in (
        *(down, up, connect, connect16, echo, end, fetch, hold),
        *(udp.udp_down, udp.udp_up, udp.questions),
    )
}

if __name__ == "__main__":
    mode, port, *arguments = sys.argv[1:]
    try:
        result = MODES[mode](int(port), *arguments)
    except (OSError, BrokenOffError) as error:
        raise SystemExit(f"{mode}: {error}") from None
    print(json.dumps(result))
