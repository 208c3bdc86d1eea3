"""The HTTP request by which a connection enters the door, and its answers. Sans-I/O.

`docs/protocol.md`, section 3.3: `GET /` with `Upgrade: krelay`, and nothing else. The reader is
strict, because every pod of the cluster may connect: it reads line by line, keeps at most
HEAD_LIMIT bytes, and stops at the first line that is not plain HTTP/1.1.
"""

from __future__ import annotations

import re

HEAD_LIMIT = 4 << 10
"""Most bytes of a request's head; an API server sends about 250."""

SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: krelay\r\n\r\n"

_REASONS = {
    400: "Bad Request",
    404: "Not Found",
    426: "Upgrade Required",
    503: "Service Unavailable",
}
_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) ([!-~]+) HTTP/1\.([01])")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([\t -~\x80-\xff]*)")


class UpgradeError(Exception):
    """A request that is refused: the status of the answer, and the reason for its body."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def refusal(error: UpgradeError) -> bytes:
    """Return the answer to a refused request; the connection closes after it."""
    body = f"{error}\n".encode()
    upgrade = "Upgrade: krelay\r\n" if error.status == 426 else ""
    head = (
        f"HTTP/1.1 {error.status} {_REASONS[error.status]}\r\n{upgrade}Connection: close\r\n"
        f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class UpgradeRequest:
    """Reads the head of one request."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._line_at = 0
        self._started = False
        self._hosts = 0
        self._upgrades = False
        self._names_krelay = False

    def receive_data(self, data: bytes) -> bytes | None:
        """Return the bytes that followed the head once it is complete, None before.

        Raises:
            UpgradeError: this is not a request for an upgrade to krelay.
        """
        searched = len(self._buffer)
        self._buffer += data
        while (end := self._buffer.find(b"\n", max(searched, self._line_at), HEAD_LIMIT)) >= 0:
            line = bytes(self._buffer[self._line_at : end])
            self._line_at = end + 1
            if not line.endswith(b"\r"):
                raise UpgradeError(400, "a line without CRLF")
            if line == b"\r" and self._started:
                self._check()
                return bytes(self._buffer[self._line_at :])
            self._read_line(line[:-1])
        if len(self._buffer) >= HEAD_LIMIT:
            raise UpgradeError(400, f"a head of more than {HEAD_LIMIT} bytes")
        return None

    def _read_line(self, line: bytes) -> None:
        if self._started:
            self._read_field(line)
            return
        self._started = True
        match = _REQUEST_LINE.fullmatch(line)
        if match is None:
            raise UpgradeError(400, "a malformed request line")
        method, target, minor = match.groups()
        if method != b"GET":
            raise UpgradeError(400, "only GET is served here")
        if target != b"/":
            raise UpgradeError(404, "only / is served here")
        if minor != b"1":
            raise UpgradeError(426, "an upgrade needs HTTP/1.1")

    def _read_field(self, line: bytes) -> None:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise UpgradeError(400, "a malformed header field")
        name, value = match[1].lower(), match[2].strip(b" \t")
        if name == b"host":
            self._hosts += 1
        elif name == b"connection":
            self._upgrades |= b"upgrade" in _elements(value)
        elif name == b"upgrade":
            self._names_krelay |= b"krelay" in _elements(value)
        elif name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
            raise UpgradeError(400, "a request with a body")

    def _check(self) -> None:
        if self._hosts != 1:
            raise UpgradeError(400, f"{self._hosts} Host fields")
        if not (self._upgrades and self._names_krelay):
            raise UpgradeError(426, "only upgrades to krelay are served here")


def _elements(value: bytes) -> list[bytes]:
    return [element.strip(b" \t") for element in value.lower().split(b",")]
