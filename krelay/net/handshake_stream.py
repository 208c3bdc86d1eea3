"""HandshakeStream: a connection on which both ends take turns, until a pipe takes it over."""

from __future__ import annotations

import asyncio
import ssl
from typing import cast

from krelay.net import engine

LIMIT = 1 << 20
"""Unread bytes that end the connection: no proxy or API server sends so many before the pipe."""


class HandshakeStream(asyncio.Protocol):
    """Serves one reader at a time, for the proxy, TLS and the upgrade.

    Reading raises EOFError once the peer has ended the connection, OSError once it is lost.
    """

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._changed = asyncio.Event()
        self._ended: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > LIMIT:
            self._end(OSError("more than a megabyte before the upgrade"))
            self.transport.abort()
        self._changed.set()

    def eof_received(self) -> None:
        self._end(EOFError("it closed the connection"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc or EOFError("it closed the connection"))

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    async def read_exactly(self, size: int) -> bytes:
        """Return `size` bytes."""
        while len(self._buffer) < size:
            await self._more()
        return self._take(size)

    async def read(self, limit: int) -> bytes:
        """Return between 1 and `limit` bytes, as soon as any have arrived."""
        while not self._buffer:
            await self._more()
        return self._take(limit)

    def unread(self, data: bytes) -> None:
        """Put `data` back, to be read next."""
        self._buffer[:0] = data

    async def start_tls(self, context: ssl.SSLContext, server_hostname: str) -> None:
        """Continue in TLS.

        Raises:
            ssl.SSLError: the peer does not speak TLS, or its certificate is not trusted.
            OSError, EOFError: the connection failed, or the peer sent bytes in the clear.
        """
        if self._buffer:
            raise OSError("bytes in the clear before TLS")
        try:
            transport = await engine.start_tls(self.transport, self, context, server_hostname)
        except BaseException:
            self.transport.abort()
            raise
        if transport is None or self._ended is not None:
            raise self._ended or EOFError("it closed the connection")
        self.transport = transport

    def hand_over(self, protocol: asyncio.BaseProtocol) -> bytes:
        """Make `protocol` the connection's protocol; return the bytes that arrived before.

        Raises:
            OSError, EOFError: the connection has ended.
        """
        if self._ended is not None or self.transport.is_closing():
            raise self._ended or EOFError("it closed the connection")
        self.transport.set_protocol(protocol)
        return self._take(len(self._buffer))

    def abort(self) -> None:
        """Close the connection at once."""
        self.transport.abort()

    async def _more(self) -> None:
        if self._ended is not None:
            raise self._ended
        self._changed.clear()
        await self._changed.wait()

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _end(self, exc: Exception) -> None:
        self._ended = self._ended or exc
        self._changed.set()
