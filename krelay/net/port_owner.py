"""Who has a local address that cannot be bound; for the message, where the system tells it."""

from __future__ import annotations

import os

from krelay.model import Protocol

_WILDCARDS = ("0.0.0.0", "::")


def holder(protocol: Protocol, address: str, port: int) -> str | None:
    """`nginx (pid 812)`; None where that is hidden from this user. Blocks while it looks."""
    import psutil

    try:
        connections = psutil.net_connections(protocol.value)
    except (psutil.Error, OSError):  # macOS tells only root
        return None
    for connection in connections:
        if connection.pid is None or connection.status not in (
            psutil.CONN_LISTEN,
            psutil.CONN_NONE,
        ):
            continue
        local = connection.laddr
        if local and local.port == port and _overlap(local.ip, address):
            if connection.pid == os.getpid():
                return "this krelay"
            try:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
            except psutil.Error:
                return f"pid {connection.pid}"
    return None


def _overlap(held: str, wanted: str) -> bool:
    if wanted == "localhost":
        return held in ("127.0.0.1", "::1", *_WILDCARDS)
    return held == wanted or held in _WILDCARDS or wanted in _WILDCARDS
