"""Clients: which programs of this machine have the local ends of connections."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from krelay.model import Protocol
from krelay.text import one_line

Client = tuple[Protocol, str, int]
"""The protocol, address and port of a local application."""

_PROTOCOLS = {socket.SOCK_STREAM: Protocol.TCP, socket.SOCK_DGRAM: Protocol.UDP}
_WILDCARDS = ("0.0.0.0", "::")
_LONGEST_NAME = 100


def owners() -> dict[Client, int]:
    """Return the pids behind the sockets of this machine, but for those that listen.

    Leaves out what the system hides from this user. It blocks while it reads the system's tables.
    """
    import psutil

    try:
        connections = psutil.net_connections("inet")
    except (psutil.Error, OSError):  # macOS shows them to root only
        return {}
    found: dict[Client, int] = {}
    for each in connections:
        protocol = _PROTOCOLS[each.type]
        listens = protocol is Protocol.TCP and not each.raddr
        if each.laddr and each.pid is not None and not listens:
            found[protocol, each.laddr.ip, each.laddr.port] = each.pid
    return found


def program(client: Client, known: Mapping[Client, int]) -> str:
    """Return the program behind `client` as `psql (pid 812)`, empty if `known` has no owner."""
    import psutil

    protocol, _, port = client
    # A UDP socket is rarely bound to one address.
    wide = [(protocol, host, port) for host in _WILDCARDS] if protocol is Protocol.UDP else []
    pid = next((known[key] for key in (client, *wide) if key in known), None)
    if pid is None:
        return ""
    try:
        return f"{one_line(psutil.Process(pid).name(), _LONGEST_NAME)} (pid {pid})"
    except psutil.Error:  # it has ended
        return f"pid {pid}"
