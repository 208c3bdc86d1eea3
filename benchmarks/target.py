"""The far end of the benchmarks, in a pod: fast enough not to be what is measured.

One process for each port, so that they do not wait for each other: 7001 echoes, 7002 sends as
many bytes as the first line says, 7003 takes as many and answers one byte.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable

BLOCK = 1 << 20


def line(sock: socket.socket) -> int:
    """The number on the first line."""
    text = b""
    while not text.endswith(b"\n"):
        text += sock.recv(1)
    return int(text)


def echo(sock: socket.socket) -> None:
    """Every byte back."""
    while data := sock.recv(65_536):
        sock.sendall(data)


def source(sock: socket.socket) -> None:
    """N bytes."""
    left, block = line(sock), memoryview(os.urandom(BLOCK))
    while left > 0:
        sock.sendall(block[: min(left, BLOCK)])
        left -= BLOCK


def sink(sock: socket.socket) -> None:
    """N bytes taken, one given."""
    left, block = line(sock), bytearray(BLOCK)
    while left > 0:
        left -= sock.recv_into(block, min(left, BLOCK))
    sock.sendall(b"k")


def serve(port: int, handle: Callable[[socket.socket], None]) -> None:
    """A thread for each connection, for ever."""

    def one(sock: socket.socket) -> None:
        with sock:
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                handle(sock)
            except (OSError, ValueError):
                return

    listener = socket.create_server(("", port), backlog=512)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=one, args=(sock,), daemon=True).start()


if __name__ == "__main__":
    for number, program in ((7002, source), (7003, sink)):
        if os.fork() == 0:
            serve(number, program)
    serve(7001, echo)
