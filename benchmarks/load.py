"""The near end of the benchmarks: `python benchmarks/load.py MODE PORT [N]` prints one number.

Modes: `down` and `up` (N MiB; MB/s), `connections` (N of them, each with a byte back; a second),
`connections16` (the same from 16 clients at once), `echo` (N of 64 bytes, 5 ms apart; p50 in ms).
"""

from __future__ import annotations

import os
import socket
import statistics
import sys
import threading
import time

BLOCK = 1 << 20


def dial(port: int) -> socket.socket:
    """A connection that sends small writes at once."""
    sock = socket.create_connection(("127.0.0.1", port), 120)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def down(port: int, mib: int) -> float:
    """MB/s of `mib` MiB from the target."""
    with dial(port) as sock:
        began = time.perf_counter()
        sock.sendall(b"%d\n" % (mib * BLOCK))
        received, block = 0, bytearray(BLOCK)
        while received < mib * BLOCK:
            received += sock.recv_into(block) or sys.exit("the transfer broke off")
        return received / (time.perf_counter() - began) / 1e6


def up(port: int, mib: int) -> float:
    """MB/s of `mib` MiB to the target, until it says that it has them."""
    with dial(port) as sock:
        block = os.urandom(BLOCK)
        began = time.perf_counter()
        sock.sendall(b"%d\n" % (mib * BLOCK))
        for _ in range(mib):
            sock.sendall(block)
        assert sock.recv(1) == b"k"
        return mib * BLOCK / (time.perf_counter() - began) / 1e6


def connections(port: int, count: int) -> float:
    """New connections a second, one after the other, each with one byte sent and echoed."""
    began = time.perf_counter()
    for _ in range(count):
        with dial(port) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
    return count / (time.perf_counter() - began)


def connections16(port: int, count: int) -> float:
    """The same from 16 clients at once, a process for every four."""
    began = time.perf_counter()
    children = []
    for _ in range(4):
        if (pid := os.fork()) == 0:
            clients = [
                threading.Thread(target=connections, args=(port, count // 16)) for _ in range(4)
            ]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
            os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    return count / (time.perf_counter() - began)


def echo(port: int, count: int) -> float:
    """The median time, in ms, of 64 bytes there and back."""
    times = []
    with dial(port) as sock:
        for _ in range(count):
            began = time.perf_counter()
            sock.sendall(b"x" * 64)
            received = 0
            while received < 64:
                received += len(sock.recv(64)) or sys.exit("the echo broke off")
            times.append(time.perf_counter() - began)
            time.sleep(0.005)
    return statistics.median(times) * 1e3


MODES = {f.__name__: f for f in (down, up, connections, connections16, echo)}

if __name__ == "__main__":
    mode, port, amount = sys.argv[1:4]
    print(MODES[mode](int(port), int(amount)))
