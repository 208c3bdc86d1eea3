"""Errors of the protocol and their codes, which both ends share (protocol.md, section 9).

::

    WireError
    ├─ ProtocolError(code)     the peer broke the protocol; the session ends
    │   └─ FlowControlError    the peer sent more than its credit
    └─ HandshakeError(code)    the peer refused, or does not speak session mode
"""

from __future__ import annotations

from enum import IntEnum


class ErrorCode(IntEnum):
    """Why a stream, a session or a handshake ended. The numbers never change."""

    NONE = 0
    PROTOCOL = 1
    FLOW_CONTROL = 2
    INTERNAL = 3
    VERSION = 4
    DENIED = 5
    UNKNOWN_SESSION = 6
    LIMIT = 7
    GOING_AWAY = 8
    IDLE = 9
    CANCELLED = 10
    NO_SUCH_HOST = 16
    RESOLVE_TIMEOUT = 17
    CONNECT_TIMEOUT = 18
    REFUSED = 19
    UNREACHABLE = 20
    UNKNOWN_PROTOCOL = 21
    RESET = 22
    DIAL_FAILED = 23

    @classmethod
    def of(cls, number: int) -> ErrorCode:
        """Return the code for a number from the wire; INTERNAL for one of a newer peer."""
        try:
            return cls(number)
        except ValueError:
            return cls.INTERNAL

    @property
    def text(self) -> str:
        """The code in words."""
        return _TEXTS[self]


_TEXTS = {
    ErrorCode.NONE: "no error",
    ErrorCode.PROTOCOL: "protocol error",
    ErrorCode.FLOW_CONTROL: "flow control error",
    ErrorCode.INTERNAL: "internal error",
    ErrorCode.VERSION: "no common protocol version",
    ErrorCode.DENIED: "wrong secret",
    ErrorCode.UNKNOWN_SESSION: "unknown session",
    ErrorCode.LIMIT: "over a limit",
    ErrorCode.GOING_AWAY: "going away",
    ErrorCode.IDLE: "idle for too long",
    ErrorCode.CANCELLED: "cancelled",
    ErrorCode.NO_SUCH_HOST: "no such host",
    ErrorCode.RESOLVE_TIMEOUT: "name resolution timed out",
    ErrorCode.CONNECT_TIMEOUT: "connect timed out",
    ErrorCode.REFUSED: "connection refused",
    ErrorCode.UNREACHABLE: "unreachable",
    ErrorCode.UNKNOWN_PROTOCOL: "unknown protocol",
    ErrorCode.RESET: "connection reset",
    ErrorCode.DIAL_FAILED: "dial failed",
}


class WireError(Exception):
    """Base class of these errors; `code` is sent to the peer."""

    code = ErrorCode.INTERNAL

    def __init__(self, message: str, code: ErrorCode | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class ProtocolError(WireError):
    code = ErrorCode.PROTOCOL


class FlowControlError(ProtocolError):
    code = ErrorCode.FLOW_CONTROL


class HandshakeError(WireError):
    code = ErrorCode.DENIED
