"""The environment variables by which a command of `krelay run` finds its forwards."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from krelay.errors import UsageError
from krelay.model import Config, Target
from krelay.state.snapshot import ForwardState, reached

Key = tuple[str, int]
"""A target and the number of its port."""


def prefixes(config: Config) -> dict[Key, list[str]]:
    """`KRELAY_WEB` and the like, for each forward; a target's first port has its name alone.

    Raises:
        UsageError: two would have the same.
    """
    found: dict[Key, list[str]] = {}
    owners: dict[str, Target] = {}
    for target in config.targets:
        for index, names in enumerate(_of(target)):
            for name in names:
                owner = owners.setdefault(name, target)
                if owner is not target:
                    raise UsageError(
                        f"targets `{owner.name}` and `{target.name}` would both be {name}_ADDR",
                        hint="name the targets that the command needs, or rename one",
                    )
            found[target.name, index] = names
    return found


def variables(config: Config, forwards: Iterable[ForwardState]) -> dict[str, str]:
    """What they hold; a forward that is not bound has none."""
    wanted = prefixes(config)
    found: dict[str, str] = {}
    for forward in forwards:
        if not forward.listen:
            continue
        at = reached(forward.listen[0])
        for prefix in wanted[forward.target, forward.index]:
            found[f"{prefix}_HOST"] = at.host
            found[f"{prefix}_PORT"] = str(at.port)
            found[f"{prefix}_ADDR"] = str(at)
    return found


def _of(target: Target) -> list[list[str]]:
    """For each port. One that the target has by both protocols has them in its name as well."""
    base = _word("KRELAY", target.name)
    if len(target.ports) == 1:
        return [[base]]
    counts = Counter(port.remote for port in target.ports)
    found: list[list[str]] = []
    for index, port in enumerate(target.ports):
        names = [base] if index == 0 else []
        by_port = _word(base, port.remote)
        if not any(by_port in others for others in found):
            names.append(by_port)
        if counts[port.remote] > 1 and port.protocol:
            names.append(_word(by_port, port.protocol))
        found.append(names)
    return found


def _word(*parts: object) -> str:
    return "_".join(re.sub(r"[^A-Z0-9]", "_", str(part).upper()) for part in parts)
