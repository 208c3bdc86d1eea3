"""HTTP/1.1 by h11: one request and the head of its response, for upgrades and CONNECT."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Sequence

import h11

from krelay.errors import CredentialsError
from krelay.net.handshake_stream import HandshakeStream

HEAD_LIMIT = 64 << 10  # bytes that may arrive without completing a head
INFORMATIONAL_LIMIT = 5
"""Informational responses (1xx) before the final one; Go's net/http has the same limit."""
BODY_LIMIT = 64 << 10  # bytes of an error's body that are kept
BODY_DEADLINE = 1.0  # seconds that an error's body has to arrive
_PIECES_LIMIT = 1024  # pieces of a body that are read; a server may send one byte in each chunk

_FORBIDDEN = re.compile("[\0\n\v\f\r]")

Headers = Sequence[tuple[str, str]]


class HttpError(OSError):
    """The peer did not answer in HTTP/1.1."""


class Exchange:
    """One request on `stream`, written at once, and its response.

    Raises:
        CredentialsError: a header has a line break; only kubeconfig can have brought it in.
        HttpError: `target` has characters that no request may have.
    """

    def __init__(self, stream: HandshakeStream, method: str, target: str, headers: Headers) -> None:
        for name, value in headers:
            if _FORBIDDEN.search(name + value):
                raise CredentialsError(f"a line break in the HTTP header {name.strip()!r}")
        fields = [(name.encode(), value.strip(" \t").encode()) for name, value in headers]
        self._stream = stream
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_LIMIT)
        try:
            head = self._connection.send(h11.Request(method=method, target=target, headers=fields))
        except h11.LocalProtocolError as exc:
            raise HttpError(f"{target!r} cannot be sent in a request") from exc
        self._connection.send(h11.EndOfMessage())
        stream.write(head)

    async def read_head(self) -> tuple[int, Headers]:
        """Return the status and the headers (names in lower case) of a 101 or the final response.

        After a 101, or a 2xx to CONNECT, the stream continues behind that head.

        Raises:
            HttpError: the peer does not speak HTTP, or its head is too long.
            OSError, EOFError: as HandshakeStream.read.
        """
        for _ in range(INFORMATIONAL_LIMIT + 1):
            try:
                event = await self._next_event()
            except h11.RemoteProtocolError as exc:
                raise HttpError("its answer is not HTTP") from exc
            match event:
                case h11.Response() | h11.InformationalResponse(status_code=101):
                    break
        else:
            raise HttpError(f"more than {INFORMATIONAL_LIMIT} informational responses")
        if self._connection.their_state is h11.SWITCHED_PROTOCOL:
            self._stream.unread(self._connection.trailing_data[0])
        headers = [(name.decode(), value.decode("latin-1")) for name, value in event.headers]
        return event.status_code, headers

    async def read_body(self) -> bytes:
        """Return what arrives of the body in time, at most `BODY_LIMIT` bytes.

        A body that is cut short or framed wrongly is returned up to that point.
        """
        body = b""
        with contextlib.suppress(OSError, EOFError, h11.RemoteProtocolError):
            async with asyncio.timeout(BODY_DEADLINE):
                for _ in range(_PIECES_LIMIT):
                    event = await self._next_event()
                    if not isinstance(event, h11.Data) or len(body) >= BODY_LIMIT:
                        break
                    body += event.data
        return (body or self._connection.trailing_data[0])[:BODY_LIMIT]

    async def _next_event(self) -> h11.Event | type[h11.PAUSED]:
        while True:
            event = self._connection.next_event()
            if isinstance(event, h11.Event) or event is h11.PAUSED:
                return event
            self._connection.receive_data(await self._stream.read(HEAD_LIMIT))
