"""TLS within TLS, as behind an HTTPS proxy: methods of asyncio, as later Pythons have them."""

from __future__ import annotations

from asyncio import sslproto
from typing import Any


def mend() -> None:
    """Let a handshake that fails within another TLS raise its own error.

    Before Python 3.11.8 and 3.12.2 asyncio calls `_abort` with an argument too many, and a
    transport that has ended calls a method of None (python/cpython#113214).
    """
    protocol: Any = sslproto.SSLProtocol
    abort = protocol._abort
    if abort.__code__.co_argcount > 1:
        return
    protocol._abort = lambda self, exc=None: abort(self)
    transport: Any = sslproto._SSLProtocolTransport
    transport._force_close = _force_close
    transport.abort = _force_close


def _force_close(self: Any, exc: Exception | None = None) -> None:
    self._closed = True
    if self._ssl_protocol is not None:
        self._ssl_protocol._abort(exc)
