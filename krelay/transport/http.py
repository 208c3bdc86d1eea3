"""HTTP/1.1: one request and the head of its answer, as upgrades and CONNECT need it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

from krelay.errors import CredentialsError
from krelay.transport.handshake_stream import HandshakeStream

HEAD_LIMIT = 64 << 10
BODY_LIMIT = 64 << 10
BODY_DEADLINE = 1.0
_CHUNK_LINE = 1024
_CHUNK_DIGITS = 8

Headers = Iterable[tuple[str, str]]


class HttpError(OSError):
    """An answer that is no HTTP."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, the headers by lower-case name (the last of equal ones), and `head` as it came."""

    status: int
    headers: dict[str, str]
    head: bytes


def request(method: str, target: str, headers: Headers) -> bytes:
    """The head of a request.

    Raises:
        CredentialsError: a line break in a header, which can come from kubeconfig only.
    """
    lines = [f"{method} {target} HTTP/1.1"]
    for name, value in headers:
        if any(character in name + value for character in "\r\n\0"):
            raise CredentialsError(f"a line break in the HTTP header {name.strip()!r}")
        lines.append(f"{name}: {value}")
    return "\r\n".join([*lines, "", ""]).encode()


async def read_answer(dialogue: HandshakeStream) -> Answer:
    """The next answer's head.

    Raises:
        HttpError: not HTTP.
        OSError, EOFError: as the dialogue.
    """
    head = await dialogue.read_until(b"\r\n\r\n", HEAD_LIMIT)
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    words = first.split(" ", 2)
    status = words[1] if len(words) > 1 else ""
    if not words[0].startswith("HTTP/1.") or len(status) != 3 or not status.isdecimal():
        raise HttpError("its answer is not HTTP")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return Answer(int(status), headers, head)


async def read_body(dialogue: HandshakeStream, answer: Answer) -> bytes:
    """An answer's body: what comes of it within a second, 64 KiB at most."""
    body = b""
    length = answer.headers.get("content-length", "")
    with contextlib.suppress(OSError, EOFError, ValueError):
        async with asyncio.timeout(BODY_DEADLINE):
            if answer.headers.get("transfer-encoding", "").lower() == "chunked":
                body = await _read_chunks(dialogue)
            else:
                size = int(length[:8]) if length.isdecimal() else BODY_LIMIT
                body = await dialogue.read_exactly(min(size, BODY_LIMIT))
    return (body or dialogue.rest())[:BODY_LIMIT]


async def _read_chunks(dialogue: HandshakeStream) -> bytes:
    body = bytearray()
    while len(body) < BODY_LIMIT:
        line = await dialogue.read_until(b"\r\n", _CHUNK_LINE)
        size = int(line.partition(b";")[0].strip()[:_CHUNK_DIGITS], 16)
        if size <= 0:
            break
        wanted = min(size, BODY_LIMIT)
        body += await dialogue.read_exactly(wanted)
        if wanted < size:
            break
        await dialogue.read_exactly(2)
    return bytes(body)
