"""The environment variables that tell a command where forwards listen: `KRELAY_WEB_ADDR`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from krelay.errors import UsageError
from krelay.model import Config, Protocol
from krelay.state.snapshot import connect_address
from krelay.state.states import ForwardState

Ports = Sequence[tuple[str, Protocol | None]]
"""The ports of a target: what it forwards to, and the protocol, if that is known."""


def ports_of(config: Config) -> dict[str, Ports]:
    """Return the ports of each target of the config."""
    return {
        target.name: [(str(port.remote), port.protocol) for port in target.ports]
        for target in config.targets
    }


def prefixes(targets: Mapping[str, Ports]) -> dict[tuple[str, int], list[str]]:
    """Return the prefixes of each forward's variables (`KRELAY_WEB`), by target and port index.

    The first port of a target has the target's name alone.

    Raises:
        UsageError: two targets would share a prefix.
    """
    found: dict[tuple[str, int], list[str]] = {}
    owners: dict[str, str] = {}
    for target, ports in targets.items():
        for index, names in enumerate(_prefixes_of(target, ports)):
            for name in names:
                owner = owners.setdefault(name, target)
                if owner != target:
                    raise UsageError(
                        f"targets `{owner}` and `{target}` would both be {name}_ADDR",
                        hint="name the targets that the command needs, or rename one",
                    )
            found[target, index] = names
    return found


def variables(targets: Mapping[str, Ports], forwards: Iterable[ForwardState]) -> dict[str, str]:
    """Return the variables of the forwards that are bound."""
    wanted = prefixes(targets)
    found: dict[str, str] = {}
    for forward in forwards:
        if not forward.listen:
            continue
        at = connect_address(forward.listen[0])
        for prefix in wanted[forward.target, forward.index]:
            found[f"{prefix}_HOST"] = at.host
            found[f"{prefix}_PORT"] = str(at.port)
            found[f"{prefix}_ADDR"] = str(at)
    return found


def _prefixes_of(target: str, ports: Ports) -> list[list[str]]:
    """Return the prefixes of each port; a port relayed by TCP and UDP also has the protocol."""
    base = _word("KRELAY", target)
    if len(ports) == 1:
        return [[base]]
    counts = Counter(remote for remote, _ in ports)
    found: list[list[str]] = []
    for index, (remote, protocol) in enumerate(ports):
        names = [base] if index == 0 else []
        by_port = _word(base, remote)
        if not any(by_port in others for others in found):
            names.append(by_port)
        if counts[remote] > 1 and protocol:
            names.append(_word(by_port, protocol))
        found.append(names)
    return found


def _word(*parts: object) -> str:
    return "_".join(re.sub(r"[^A-Z0-9]", "_", str(part).upper()) for part in parts)
