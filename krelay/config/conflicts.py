"""Two that want one local address: known from the file alone, before anything binds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from krelay.model import Port, Protocol, Target

_LOCALHOST = (IPv4Address("127.0.0.1"), IPv6Address("::1"))


@dataclass(frozen=True, slots=True)
class Claim:
    """A forward and where its port is written, `line` and `column` from 1; or something else that
    listens, which `what` names, in a target's clothes."""

    target: Target
    port: Port
    line: int
    column: int
    what: str = ""

    @property
    def protocol(self) -> Protocol:
        """The protocol to compare by; one that is left open is TCP, as nearly all of them are.

        So a TCP forward beside one whose Service turns out to be UDP is reported: a suffix
        settles it.
        """
        return self.port.protocol or Protocol.TCP

    def __str__(self) -> str:
        listen = self.target.listen
        host = f"[{listen}]" if ":" in listen else listen
        return f"{host}:{self.port.local}/{self.protocol}"


def conflicts(claims: Iterable[Claim]) -> Iterator[tuple[Claim, Claim]]:
    """Each claim that overlaps an earlier one, and the first such one: (earlier, later).

    A wildcard overlaps every address of its family, `localhost` is 127.0.0.1 and ::1, and the
    families do not overlap (an IPv6 listener is IPv6 only). A free or a yet unknown local port
    overlaps nothing. Time grows with the number of claims, not with its square.
    """
    taken: dict[tuple[Protocol, int, int], dict[IPv4Address | IPv6Address, Claim]] = {}
    for claim in claims:
        if not claim.port.local:
            continue
        earlier: Claim | None = None
        for address in _addresses(claim.target.listen):
            key = (claim.protocol, claim.port.local, address.version)
            family = taken.setdefault(key, {})
            wildcard = (IPv4Address if address.version == 4 else IPv6Address)(0)
            if address.is_unspecified and family:
                hit: Claim | None = next(iter(family.values()))
            else:
                hit = family.get(address) or family.get(wildcard)
            earlier = earlier or hit
            family.setdefault(address, claim)
        if earlier is not None:
            yield earlier, claim


def _addresses(listen: str) -> tuple[IPv4Address | IPv6Address, ...]:
    if listen == "localhost":
        return _LOCALHOST
    return (ip_address(listen),)
