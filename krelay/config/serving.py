"""The address of `status.listen`: `ADDRESS:PORT`, or a port of this machine alone. Pure."""

from __future__ import annotations

from krelay.config.flaw import Flaw, quote
from krelay.config.target import MAX_PORT, parse_listen
from krelay.model import LOOPBACK

_HINT = "write `127.0.0.1:9527`, `[::1]:9527` or `9527`"


def parse_serving(value: float | str) -> tuple[str, int]:
    """The address and the port; 0 stands for a free one.

    Raises:
        Flaw: neither a port nor `ADDRESS:PORT`.
    """
    text = value if isinstance(value, str) else str(int(value))
    address, colon, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit()):
        raise Flaw(f"{quote(text)} has no port", hint=_HINT)
    number = int(port) if len(port) <= 9 else MAX_PORT + 1
    if number > MAX_PORT:
        raise Flaw(f"port {port[:12]} is out of range", hint=f"ports are 0 to {MAX_PORT}")
    if not colon:
        return LOOPBACK, number
    if ":" in address and not address.startswith("["):
        raise Flaw(f"{quote(text)} is ambiguous: an IPv6 address has brackets", hint=_HINT)
    return parse_listen(address), number
