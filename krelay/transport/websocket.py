"""WebSocket: carries SPDY bytes in binary messages, as kubectl does since 1.30; sans-I/O.

Kubernetes apiserver pkg/util/proxy/streamtunnel.go is the other end. It sends a message for each
of its writes, often with an empty continuation frame behind: only the order of bytes matters.
"""

from __future__ import annotations

import logging

from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.exceptions import NegotiationError
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from krelay.transport.spdy import Buffer

SUBPROTOCOL = "SPDY/3.1+portforward.k8s.io"
MAX_MESSAGE = 16 << 20

_DATA = (Opcode.BINARY, Opcode.CONT, Opcode.TEXT)

# At DEBUG the library writes of every frame, with parts of what it carries.
_frames = logging.getLogger("krelay.transport.websocket.frames")
_frames.setLevel(logging.INFO)


class _Protocol(ClientProtocol):
    """The slash in the subprotocol's name is illegal in a token: the library refuses it."""

    def process_subprotocol(self, headers: Headers) -> Subprotocol | None:
        if headers.get_all("Sec-WebSocket-Protocol") != [SUBPROTOCOL]:
            raise NegotiationError("another subprotocol")
        return Subprotocol(SUBPROTOCOL)


class WebSocket:
    """A carrier: `headers` ask for it, `accept` reads the answer, then bytes go both ways."""

    def __init__(self) -> None:
        self._protocol = _Protocol(parse_uri("wss://unused/"), max_size=MAX_MESSAGE, logger=_frames)
        self.headers = (
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", self._protocol.key),
            ("Sec-WebSocket-Protocol", SUBPROTOCOL),
        )

    def accept(self, head: bytes) -> str | None:
        """What is wrong with a 101 answer's head, or None."""
        self._protocol.receive_data(head)
        self._protocol.events_received()
        wrong = self._protocol.handshake_exc
        return None if wrong is None else str(wrong)

    def unwrap(self, data: Buffer) -> list[Buffer]:
        """The carried bytes in `data`, in order."""
        protocol = self._protocol
        protocol.receive_data(data)  # type: ignore[arg-type]  # extends a bytearray with it
        return [
            frame.data
            for frame in protocol.events_received()
            if isinstance(frame, Frame) and frame.data and frame.opcode in _DATA
        ]

    def wrap(self, data: bytes) -> bytes:
        """`data` as one message; nothing once either end has closed."""
        if self._protocol.state is not State.OPEN:
            return b""
        self._protocol.send_binary(data)
        return b"".join(self._protocol.data_to_send())

    def replies(self) -> bytes:
        """What the WebSocket itself has to say: pongs, and a Close for a Close."""
        return b"".join(self._protocol.data_to_send())

    @property
    def ended(self) -> str | None:
        """Why nothing more will come, or None."""
        protocol = self._protocol
        close: Close | None = protocol.close_rcvd
        if close is not None:
            return f"the WebSocket was closed: {close}"
        if protocol.parser_exc is not None:
            return f"not a WebSocket: {protocol.parser_exc}"
        return None
