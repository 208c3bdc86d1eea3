"""A hostile API server: TLS that krelay trusts, and answers that no API server gives.

It never says what would be a truth to act on, such as that a pod does not exist.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

PKI = Path(__file__).parents[1] / "cluster" / "pki"
CA = PKI / "ca.pem"

_ESCAPES = "\x1b]0;owned\x07\x1b[2J\nforged line \u202e"
_ODD: tuple[object, ...] = (
    5,
    None,
    [],
    "object",
    {"metadata": 5},
    {"metadata": {"name": ["x"], "uid": {}, "resourceVersion": 7}},
    {"metadata": {"name": "x", "uid": "x", "resourceVersion": "1"}, "status": {"conditions": 5}},
    {"metadata": {"name": "x", "uid": "x", "resourceVersion": "1"}, "spec": {"ports": [[]]}},
    {"metadata": {"name": "x", "uid": "x", "resourceVersion": "1"}, "endpoints": "none"},
)


def _answer(status: int, body: bytes, *fields: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


def _events() -> bytes:
    events = [{"type": kind, "object": odd} for odd in _ODD for kind in ("ADDED", "MODIFIED", 5)]
    body = b"".join(json.dumps(event).encode() + b"\n" for event in events)
    return b"HTTP/1.1 200 X\r\nContent-Type: application/json\r\n\r\n" + body


def _refusal(status: int) -> bytes:
    message = f'pods is forbidden: User "{_ESCAPES}" cannot list resource "pods" in API group ""'
    return _answer(status, json.dumps({"message": message}).encode())


ANSWERS: dict[str, Callable[[], bytes]] = {
    "a large body of markup": lambda: _answer(500, b"<" * (160 << 10)),
    "a page": lambda: _answer(200, b"<html>log in</html>", "Content-Type: text/html"),
    "deep JSON": lambda: _answer(200, b"[" * 100_000 + b"]" * 100_000),
    "a long number": lambda: _answer(200, b'{"items": [' + b"9" * 100_000 + b"]}"),
    "a list of odd objects": lambda: _answer(
        200, json.dumps({"metadata": {"resourceVersion": "1"}, "items": _ODD}).encode()
    ),
    "a list without items": lambda: _answer(200, b'{"metadata": [], "items": {}}'),
    "odd events": _events,
    "a line without an end": lambda: b"HTTP/1.1 200 X\r\n\r\n" + b'{"type": "' * (1 << 19),
    "a large header": lambda: _answer(200, b"{}", "X: " + "y" * 100_000),
    "many headers": lambda: _answer(200, b"{}", *(f"X{n}: y" for n in range(5_000))),
    "no HTTP": lambda: b"\x00\xff" * 2_000,
    "a redirect": lambda: _answer(302, b"", "Location: http://127.0.0.1:9/"),
    "an upgrade to nonsense": lambda: (
        b"HTTP/1.1 101 X\r\nUpgrade: SPDY/3.1\r\n"
        b"Connection: Upgrade\r\n\r\n" + bytes(range(256)) * 64
    ),
    "nothing": lambda: b"",
    "an error of its own": lambda: _answer(500, json.dumps({"message": _ESCAPES}).encode()),
    "unauthorized": lambda: _refusal(401),
    "forbidden": lambda: _refusal(403),
}


@asynccontextmanager
async def hostile(chance: random.Random) -> AsyncIterator[tuple[str, int]]:
    """Serve such answers, each request another one; the address."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(PKI / "server.pem", PKI / "server-key.pem")
    names = list(ANSWERS)
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ANSWERS[chance.choice(names)]())
            await writer.drain()
        writers.discard(writer)
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[:2]
    finally:
        server.close()
        for writer in list(writers):
            writer.transport.abort()
