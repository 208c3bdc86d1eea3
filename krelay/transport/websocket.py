"""WebSocket: carries SPDY bytes in binary messages, as kubectl does since 1.30; sans-I/O.

The other end is Kubernetes apiserver pkg/util/proxy/streamtunnel.go. It sends each of its writes as
a message, often with an empty continuation frame behind: only the order of bytes matters.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.exceptions import InvalidHandshake, NegotiationError
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import Protocol, Side, State
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from krelay.transport.spdy import Buffer

SUBPROTOCOL = "SPDY/3.1+portforward.k8s.io"
MAX_MESSAGE = 16 << 20

_DATA = (Opcode.BINARY, Opcode.CONT, Opcode.TEXT)

# At DEBUG the library logs every frame, with parts of its payload.
_frames = logging.getLogger("krelay.transport.websocket.frames")
_frames.setLevel(logging.INFO)


class _Handshake(ClientProtocol):
    """The library's handshake, which refuses the slash in the subprotocol's name."""

    def process_subprotocol(self, headers: Headers) -> Subprotocol | None:
        if headers.get_all("Sec-WebSocket-Protocol") != [SUBPROTOCOL]:
            raise NegotiationError("another subprotocol")
        return Subprotocol(SUBPROTOCOL)


class WebSocket:
    """A carrier: `headers` ask for it, `accept` checks the response, then bytes pass both ways."""

    name = "websocket"

    def __init__(self) -> None:
        self._handshake = _Handshake(parse_uri("wss://unused/"), logger=_frames)
        self._protocol = Protocol(Side.CLIENT, max_size=MAX_MESSAGE, logger=_frames)
        self.headers = (
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", self._handshake.key),
            ("Sec-WebSocket-Protocol", SUBPROTOCOL),
        )

    def accept(self, headers: Iterable[tuple[str, str]]) -> str | None:
        """Return the fault in the headers of a 101 response, or None."""
        try:
            self._handshake.process_response(Response(101, "", Headers(headers)))
        except InvalidHandshake as exc:
            return str(exc)
        return None

    def unwrap(self, data: Buffer) -> list[Buffer]:
        """Return the payloads in `data`, in order."""
        self._protocol.receive_data(data)  # type: ignore[arg-type]  # extends a bytearray with it
        return [
            frame.data
            for frame in self._protocol.events_received()
            if isinstance(frame, Frame) and frame.data and frame.opcode in _DATA
        ]

    def wrap(self, data: bytes) -> bytes:
        """Return `data` as one message, or nothing once either end has closed."""
        if self._protocol.state is not State.OPEN:
            return b""
        self._protocol.send_binary(data)
        return self.replies()

    def replies(self) -> bytes:
        """Return what the WebSocket itself has to send: pongs, and a Close for a Close."""
        return b"".join(self._protocol.data_to_send())

    @property
    def ended(self) -> str | None:
        """Why nothing more will arrive, or None."""
        if self._protocol.close_rcvd is not None:
            return f"the WebSocket was closed: {self._protocol.close_rcvd}"
        if self._protocol.parser_exc is not None:
            return f"not a WebSocket: {self._protocol.parser_exc}"
        return None
