"""Describe a plan in words: one line for each change, for `krelay plan`, the log and programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from krelay.config.diff import GroupChange, Plan, Spec
from krelay.model import GroupSpec, Kind

_SIGNS = {"added": "+", "removed": "-"}


@dataclass(frozen=True, slots=True)
class Change:
    """One line of a plan.

    `change` is added, removed, re-routed, rebound, replaced or set. `live` counts the connections
    that it affects, and `fate` says what happens to them.
    """

    change: str
    name: str
    before: str = ""
    after: str = ""
    live: int = 0
    fate: str = ""

    @property
    def sign(self) -> str:
        """The sign of the line: `+`, `-` or `~`."""
        return _SIGNS.get(self.change, "~")

    def as_json(self) -> dict[str, Any]:
        """Return the fields for programs; `text` is the line for people."""
        return {**dataclasses.asdict(self), "sign": self.sign, "text": str(self)}

    def __str__(self) -> str:
        text = " -> ".join(part for part in (self.before, self.after) if part)
        if self.live:
            text += f", {self.live} live connection{'s' * (self.live > 1)} {self.fate}"
        return f"{self.name}: {self.change} {text}"


def changes(
    plan: Plan,
    *,
    live: Callable[[Spec], int] = lambda spec: 0,
    carried: Callable[[GroupSpec], int] = lambda group: 0,
    drain: float = 0.0,
) -> Iterator[Change]:
    """Yield the lines of a plan.

    `live` and `carried` count the current connections of a forward and of an agent; connections
    that must end have `drain` seconds.
    """
    ending = f"given {drain:g} s to finish" if drain else "cut"
    for group in plan.groups:
        yield _group(group, carried, ending)
    for pair in plan.pairs:
        old, new = pair.old, pair.new
        if new is None:
            assert old is not None
            yield Change("removed", old.target.name, _whole(old), live=live(old), fate=ending)
        elif old is None:
            yield Change("added", new.target.name, after=_whole(new))
        elif pair.changed:
            count = live(old)
            stay: dict[str, Any] = {"live": count, "fate": "stay" if count > 1 else "stays"}
            if pair.rerouted:
                yield Change("re-routed", new.target.name, *_remotes(old, new), **stay)
            if pair.rebound:
                yield Change("rebound", new.target.name, _local(old), _local(new), **stay)
    for setting in plan.settings:
        yield Change("set", setting.name, _value(setting.before), _value(setting.after))


def _value(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g} s"


def _group(group: GroupChange, carried: Callable[[GroupSpec], int], ending: str) -> Change:
    spec = group.new or group.old
    assert spec is not None
    name = f"agent ({spec.context})" if spec.context else "agent"
    text = "embedded" if spec.agent.embedded else spec.agent.image
    if group.old is None:
        return Change("added", name, after=text)
    live = carried(group.old)
    if group.new is None:
        return Change("removed", name, text, live=live, fate=ending)
    return Change("replaced", name, after=", ".join(_settings(group)), live=live, fate=ending)


def _settings(group: GroupChange) -> Iterator[str]:
    """Yield the keys of the file that differ, with their values if those are short."""
    assert group.old is not None
    assert group.new is not None
    sections: tuple[tuple[str, Any, Any], ...] = (
        ("agent.", group.old.agent, group.new.agent),
        ("tunnel.", group.old, group.new),
        ("tunnel.", group.old.session, group.new.session),
    )
    for prefix, old, new in sections:
        for field in dataclasses.fields(old):
            before, after = getattr(old, field.name), getattr(new, field.name)
            if before == after or field.name in ("agent", "context", "fallbacks", "session"):
                continue
            if prefix == "tunnel." and field.name == "namespace":
                # This is the agent's own namespace, reported above, or that of the file.
                if group.old.agent.namespace == group.new.agent.namespace:
                    yield f"namespace {before} -> {after}"
                continue
            first, *rest = field.name.split("_")
            key = prefix + first + "".join(word.capitalize() for word in rest)
            shown = all(isinstance(value, str | int | float) for value in (before, after))
            yield f"{key} {_short(before)} -> {_short(after)}" if shown else key


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _whole(spec: Spec) -> str:
    return f"{_local(spec)} -> {_remote(spec)}"


def _local(spec: Spec) -> str:
    """Return the local address; `<free>` or `<NAME>` for a port that is not known yet."""
    port, addresses = spec.port, spec.target.listen.split(",")
    local = f"<{port.remote}>" if port.local is None else port.local or "<free>"
    host = ",".join(f"[{each}]" if ":" in each else each for each in addresses)
    return f"{host}:{local}" + (f"/{port.protocol}" if port.protocol else "")


def _remote(spec: Spec) -> str:
    if spec.target.kind is Kind.PROXY:
        return str(spec.target)
    return f"{spec.target}:{spec.port.remote}"


def _remotes(old: Spec, new: Spec) -> tuple[str, str]:
    """Return both remotes, with the namespace, context or credentials if only those differ."""
    texts = _remote(old), _remote(new)
    if texts[0] != texts[1]:
        return texts
    before, after = old.target, new.target
    if before.via != after.via:
        return f"{texts[0]} (via {before.via})", f"{texts[1]} (via {after.via})"
    if before.credentials != after.credentials:
        return texts[0], f"{texts[1]} (other credentials)"
    if before.context != after.context:
        return (
            f"{texts[0]} (context {before.context or 'current'})",
            f"{texts[1]} (context {after.context or 'current'})",
        )
    return f"{texts[0]} (in {before.namespace})", f"{texts[1]} (in {after.namespace})"
