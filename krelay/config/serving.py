"""What listens besides forwards: the address of `status.listen`, which is `ADDRESS:PORT` or a port
of this machine alone, and what a proxy needs beyond loopback. Pure."""

from __future__ import annotations

from krelay.config.grammar import MAX_PORT, parse_listen
from krelay.config.parse_error import Flaw, quote
from krelay.model import LOOPBACK, Kind, Target, is_loopback

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


def unguarded(target: Target) -> bool:
    """Whether it is a proxy that other machines may use without a password, and nothing says that
    this is meant."""
    open_to_all = target.credentials is None and not target.insecure
    return target.kind is Kind.PROXY and open_to_all and not is_loopback(target.listen)


def unguarded_message(target: Target) -> str:
    """What is wrong with such a one."""
    needed = "a `username` and a `password`"
    return f"{quote(target.listen)} is open to other machines, which requires {needed}"
