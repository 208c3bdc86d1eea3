"""Clients: which programs of this machine have the local ends of connections."""

from __future__ import annotations

import socket
from collections.abc import Collection

from krelay.model import Protocol

Client = tuple[Protocol, str, int]
"""The protocol, address and port of a local application."""

_PROTOCOLS = {socket.SOCK_STREAM: Protocol.TCP, socket.SOCK_DGRAM: Protocol.UDP}
_WILDCARDS = ("0.0.0.0", "::")


def programs(clients: Collection[Client]) -> dict[Client, str]:
    """Return the programs behind `clients`, each as `psql (pid 812)`.

    Leaves out those that the system hides from this user, and clients of other machines. It blocks
    while it reads the system's tables.
    """
    import psutil

    try:
        connections = psutil.net_connections("inet")
    except (psutil.Error, OSError):  # macOS shows them to root only
        return {}
    owners: dict[Client, int] = {}
    for found in connections:
        protocol = _PROTOCOLS[found.type]
        listens = protocol is Protocol.TCP and not found.raddr
        if found.laddr and found.pid is not None and not listens:
            owners[protocol, found.laddr.ip, found.laddr.port] = found.pid
    names: dict[int, str] = {}
    result: dict[Client, str] = {}
    for client in clients:
        protocol, _, port = client
        # A UDP socket is rarely bound to one address.
        wide = [(protocol, host, port) for host in _WILDCARDS] if protocol is Protocol.UDP else []
        pid = next((owners[key] for key in (client, *wide) if key in owners), None)
        if pid is None:
            continue
        if pid not in names:
            try:
                names[pid] = f"{psutil.Process(pid).name()} (pid {pid})"
            except psutil.Error:  # it has ended
                names[pid] = f"pid {pid}"
        result[client] = names[pid]
    return result
