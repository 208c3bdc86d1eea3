"""Join the files of a configuration, and report the problems that only show across all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import chain, islice, starmap
from typing import Any

from krelay.config.grammar import quote
from krelay.config.validation import MAX_PROBLEMS
from krelay.config.yaml_reader import Node
from krelay.errors import Problem
from krelay.model import Config, Kind, Port, Protocol, Target, Via

MAX_FORWARDS = 10_000
"""Ports of all targets in all files together."""
_LOCALHOST = (IPv4Address("127.0.0.1"), IPv6Address("::1"))


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """The local address of one forward, and the place in the file that asks for it.

    `line` and `column` count from 1. `owner` names a listener that is not a target, such as
    `status.listen`; `target` then only carries the address and the file.
    """

    target: Target
    port: Port
    line: int
    column: int
    owner: str = ""

    @property
    def protocol(self) -> Protocol:
        """The protocol to compare by: TCP if the file leaves it to the Service.

        A TCP forward therefore conflicts with one whose Service turns out to be UDP; a protocol
        suffix in the file resolves that.
        """
        return self.port.protocol or Protocol.TCP

    def __str__(self) -> str:
        listen = self.target.listen
        host = f"[{listen}]" if ":" in listen else listen
        return f"{host}:{self.port.local}/{self.protocol}"


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """One file by itself; `config` is complete if `problems` is empty.

    `include` names other files, and `defaults` holds what the lines of an included targets.txt
    take from this file (the keyword arguments of `target_of`).
    """

    config: Config
    listen_addresses: list[ListenAddress] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    include: list[Node] = field(default_factory=list)
    defaults: dict[str, Any] = field(default_factory=dict)


def join(files: Sequence[ParsedFile]) -> tuple[Config, list[Problem]]:
    """Return the first file's config with the targets of all files, and every problem."""
    main = files[0].config
    problems = [
        problem if problem.path else dataclasses.replace(problem, path=file.config.path)
        for file in files
        for problem in file.problems
    ]
    forwards = 0
    targets: dict[str, Target] = {}
    duplicates: list[tuple[Target, Target]] = []
    for target in chain.from_iterable(file.config.targets for file in files):
        first = targets.setdefault(target.name, target)
        if first is not target:
            duplicates.append((first, target))
        forwards += len(target.ports)
        if forwards > MAX_FORWARDS:
            message = f"more than {MAX_FORWARDS} forwards"
            problems.append(_at(target, message, "remove forwards that are not used"))
            break
    addresses = (
        address
        for file in files
        for address in file.listen_addresses
        # Only the first file may listen for anything besides targets.
        if (
            file is files[0]
            if address.owner
            else targets.get(address.target.name) is address.target
        )
    )
    for found in (
        starmap(_duplicate, duplicates),
        starmap(_conflict, conflicts(addresses)),
        unreachable(targets.values()) if main.agent.embedded else not_direct(targets.values()),
    ):
        problems += islice(found, MAX_PROBLEMS + 1)
    return dataclasses.replace(main, targets=tuple(targets.values())), problems


def conflicts(
    addresses: Iterable[ListenAddress],
) -> Iterator[tuple[ListenAddress, ListenAddress]]:
    """Yield (earlier, later) for each address that overlaps an earlier one.

    A wildcard overlaps every address of its family, and `localhost` is both 127.0.0.1 and ::1. The
    families do not overlap, since krelay's IPv6 listeners are IPv6 only. A local port that is free
    or not yet known overlaps nothing. The time is linear in the number of addresses.
    """
    taken: dict[tuple[Protocol, int, int], dict[IPv4Address | IPv6Address, ListenAddress]] = {}
    for later in addresses:
        if not later.port.local:
            continue
        earlier: ListenAddress | None = None
        listen = later.target.listen
        for ip in _LOCALHOST if listen == "localhost" else (ip_address(listen),):
            family = taken.setdefault((later.protocol, later.port.local, ip.version), {})
            wildcard = (IPv4Address if ip.version == 4 else IPv6Address)(0)
            if ip.is_unspecified and family:
                hit: ListenAddress | None = next(iter(family.values()))
            else:
                hit = family.get(ip) or family.get(wildcard)
            earlier = earlier or hit
            family.setdefault(ip, later)
        if earlier is not None:
            yield earlier, later


def unreachable(targets: Iterable[Target]) -> Iterator[Problem]:
    """Yield a problem for each target that an embedded agent, on this machine, cannot reach."""
    for target in targets:
        if target.kind.in_cluster:
            message = f"`{target}` is in a cluster, but the agent is embedded"
            yield _at(target, message, "use `host/` or `ip/` targets, or leave out `embedded`")


def not_direct(targets: Iterable[Target]) -> Iterator[Problem]:
    """Yield a problem for each target that is to be reached without an agent, and cannot be."""
    for target in targets:
        if target.via is not Via.DIRECT:
            continue
        if target.kind is Kind.PROXY:
            message = f"the proxy {quote(target.name)} needs an agent, unlike `via: direct`"
            yield _at(target, message, "write `via: direct` at the targets instead")
        elif not target.kind.in_cluster:
            message = f"`{target}` needs an agent: `via: direct` reaches pods only"
            yield _at(target, message, "write `via: agent` at this target")
        elif any(port.protocol is Protocol.UDP for port in target.ports):
            message = f"`{target}` has a UDP port, and `via: direct` forwards TCP only"
            yield _at(target, message, "write `via: agent` at this target")


def _at(target: Target, message: str, hint: str) -> Problem:
    return Problem(target.line, target.column, message, hint, target.file)


def _duplicate(first: Target, later: Target) -> Problem:
    message = f"the name {quote(later.name)} is taken by {first.file}, line {first.line}"
    return _at(later, message, "give one of them another name, or remove it")


def _conflict(earlier: ListenAddress, later: ListenAddress) -> Problem:
    place = f"{earlier.owner or f'target {quote(earlier.target.name)}'}, line {earlier.line}"
    if earlier.target.file != later.target.file:
        place += f" of {earlier.target.file}"
    if str(earlier) == str(later):
        message = f"`{later}` is taken by {place}"
    else:
        message = f"`{later}` overlaps `{earlier}` of {place}"
    hint = "give one of them another local port"
    both = earlier, later
    if Kind.PROXY not in {address.target.kind for address in both} and None in {
        address.port.protocol for address in both
    }:
        hint += ", or add `/udp` to the one that is UDP"
    return Problem(later.line, later.column, message, hint, later.target.file)
