"""The near end of the benchmarks over UDP."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import time

from benchmarks.target import paced

ROOM = 8 << 20
ASKED = 20
"""Times that the target is asked for its count, because a question may be lost."""
LOST = 1.0
"""Seconds after which a question has no answer."""


def flow(port: int) -> socket.socket:
    """Return a socket that is connected to a local port, with much room for what comes."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for option in (socket.SO_RCVBUF, 33):  # SO_RCVBUFFORCE, for root
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, option, ROOM)
    sock.connect(("127.0.0.1", port))
    return sock


def udp_up(port: int, mbit: str, size: str, seconds: str) -> dict[str, float]:
    """Send datagrams at a pace; `loss` is the share that did not reach the target."""
    with flow(port) as sock:
        sent = paced(sock.send, float(mbit) * 1e6, int(size), float(seconds))
        sock.settimeout(0.2)
        received = 0
        for _ in range(ASKED):
            with contextlib.suppress(OSError):
                sock.send(b"?")
                answer = sock.recv(65_536)
                count = struct.unpack("!cI", answer)[1]
                if count == received:
                    break
                received = count
    return {"loss": 1 - received / sent, "sent": sent}


def udp_down(port: int, mbit: str, size: str, seconds: str) -> dict[str, float]:
    """Let the target send datagrams at a pace; `loss` is the share that did not come."""
    with flow(port) as sock:
        sock.settimeout(2)
        sock.send(f"s {float(mbit) * 1e6:.0f} {size} {seconds}".encode())
        received = 0
        with contextlib.suppress(TimeoutError):
            while (data := sock.recv(65_536))[:1] == b"d":
                received += 1
            sent = struct.unpack("!cI", data)[1]
            return {"loss": 1 - received / sent, "sent": sent}
    return {"loss": 1.0, "sent": 0}


def questions(port: int, clients: str, seconds: str) -> dict[str, float]:
    """Ask small questions from many sockets, each the next one after its answer.

    `rate` is a second; `lost` counts questions without an answer.
    """
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(flow(port)) for _ in range(int(clients))]
        return ask(sockets, float(seconds))


def ask(sockets: list[socket.socket], seconds: float) -> dict[str, float]:
    """Ask from each socket until the time is over."""
    question, answers, lost = os.urandom(45), 0, 0
    began = checked = time.perf_counter()
    asked = dict.fromkeys(sockets, began)
    with selectors.DefaultSelector() as selector:
        for sock in sockets:
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ)
            sock.send(question)
        while (now := time.perf_counter()) < began + seconds:
            for key, _ in selector.select(0.1):
                sock = key.fileobj  # type: ignore[assignment]
                sock.recv(65_536)
                answers += 1
                sock.send(question)
                asked[sock] = now
            if now > checked + LOST:
                checked = now
                for sock, since in asked.items():
                    if since < now - LOST:
                        lost += 1
                        sock.send(question)
                        asked[sock] = now
    return {"rate": answers / (now - began), "lost": lost}
