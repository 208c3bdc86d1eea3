"""Socket owner: which users of this machine have a socket at an address. Linux only."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

_TABLES = Path("/proc/net")
_ESTABLISHED = "01"

Address = tuple[str, int]


def same_user(client: Address, senders: Collection[Address]) -> set[Address]:
    """Return the UDP `senders` that belong to the user of the TCP connection from `client`: all of
    them where the system does not say whose that is. Blocks while it reads."""
    users = {
        user
        for host, port, state, user in _sockets("tcp")
        if (host, port) == client and state == _ESTABLISHED
    }
    if not users:
        return set(senders)
    found: dict[Address, set[int]] = {sender: set() for sender in senders}
    ports = {port for _, port in senders}
    for host, port, _, user in _sockets("udp"):
        if port in ports:
            for sender, owners in found.items():
                if sender[1] == port and host in (sender[0], "0.0.0.0", "::"):
                    owners.add(user)
    return {sender for sender, owners in found.items() if owners and owners <= users}


def _sockets(protocol: str) -> Iterator[tuple[str, int, str, int]]:
    """Yield the local address, port, state and user of each socket."""
    for name in (protocol, f"{protocol}6"):
        try:
            lines = (_TABLES / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            host, _, port = fields[1].partition(":")
            yield _host(host), int(port, 16), fields[3], int(fields[7])


def _host(text: str) -> str:
    words = (int(text[at : at + 8], 16) for at in range(0, len(text), 8))
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    address = ipaddress.ip_address(packed)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)
