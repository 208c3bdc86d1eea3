"""HandshakeStream: read and write a connection in turns (proxy, TLS, upgrade) before its pipe."""

from __future__ import annotations

import asyncio
import ssl
from typing import cast

LIMIT = 1 << 20
"""Bytes that may lie here unread: far more than a proxy or an API server says before the pipe."""
MARK_LIMIT = 64 << 10
"""Bytes before a mark, unless the reader says otherwise."""


class HandshakeStream(asyncio.Protocol):
    """Reads for one reader at a time. The connection's end is EOFError, its loss OSError."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._waiter: asyncio.Future[None] | None = None
        self._ended: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > LIMIT:
            self._end(OSError("more than a megabyte before the connection stands"))
            self.transport.abort()
        self._wake()

    def eof_received(self) -> None:
        self._end(EOFError("it closed the connection"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc or EOFError("it closed the connection"))

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    async def read_exactly(self, size: int) -> bytes:
        """`size` bytes."""
        while len(self._buffer) < size:
            await self._more()
        return self._take(size)

    async def read_until(self, mark: bytes, limit: int = MARK_LIMIT) -> bytes:
        """Bytes up to the first `mark` and with it. OSError if it is not among the first `limit`
        bytes."""
        searched = 0  # what was searched once is not searched again, however small the pieces
        while (at := self._buffer.find(mark, searched, limit)) < 0:
            if len(self._buffer) >= limit:
                raise OSError(f"more than {limit} bytes without an end")
            searched = max(0, len(self._buffer) - len(mark) + 1)
            await self._more()
        return self._take(at + len(mark))

    async def start_tls(self, context: ssl.SSLContext, server_hostname: str) -> None:
        """Go on in TLS.

        Raises:
            ssl.SSLError: no TLS, or a certificate that is not trusted.
        """
        if self._buffer:
            raise OSError("bytes in the clear before TLS")
        try:
            transport = await self._loop.start_tls(
                self.transport, self, context, server_hostname=server_hostname
            )
        except BaseException:
            self.transport.abort()
            raise
        if transport is None or self._ended is not None:
            raise self._ended or EOFError("it closed the connection")
        self.transport = transport

    def hand_over(self, protocol: asyncio.BaseProtocol) -> bytes:
        """Have `protocol` told of all that comes from now on; returns what has come already."""
        if self._ended is not None or self.transport.is_closing():
            raise self._ended or EOFError("it closed the connection")
        self.transport.set_protocol(protocol)
        return self.rest()

    def rest(self) -> bytes:
        """What has come and was not read."""
        return self._take(len(self._buffer))

    def abort(self) -> None:
        """Drop the connection now."""
        self.transport.abort()

    async def _more(self) -> None:
        if self._ended is not None:
            raise self._ended
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _end(self, exc: Exception) -> None:
        self._ended = self._ended or exc
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
