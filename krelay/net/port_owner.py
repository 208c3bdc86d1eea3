"""Port owner: the program that occupies a local port, for the error that it cannot be bound."""

from __future__ import annotations

import os

from krelay.model import Protocol

_WILDCARDS = ("0.0.0.0", "::")


def port_owner(protocol: Protocol, address: str, port: int) -> str | None:
    """Return the owner as `nginx (pid 812)`, None if the system hides it from this user.

    It blocks while it reads the system's tables.
    """
    import psutil

    try:
        connections = psutil.net_connections(protocol.value)
    except (psutil.Error, OSError):  # macOS shows them to root only
        return None
    for connection in connections:
        if connection.pid is None or connection.status not in (
            psutil.CONN_LISTEN,
            psutil.CONN_NONE,
        ):
            continue
        local = connection.laddr
        if local and local.port == port and _overlaps(local.ip, address):
            if connection.pid == os.getpid():
                return "this krelay"
            try:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
            except psutil.Error:
                return f"pid {connection.pid}"
    return None


def _overlaps(held: str, wanted: str) -> bool:
    if wanted == "localhost":
        return held in ("127.0.0.1", "::1", *_WILDCARDS)
    return held == wanted or held in _WILDCARDS or wanted in _WILDCARDS
