"""Compare two configs by name and content: the Plan of what an edit changes. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

from krelay.model import (
    Config,
    DirectSpec,
    Endpoint,
    GroupSpec,
    Port,
    Protocol,
    StatusConfig,
    Target,
    Via,
)

_FALLBACKS = 8
"""Namespaces that are tried for an agent at most, besides the first one."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One forward of a file: the port at `index` of its target."""

    target: Target
    index: int

    @property
    def port(self) -> Port:
        return self.target.ports[self.index]

    @property
    def name(self) -> str:
        """The target's name, with the port if the target has several.

        A target of a command line has no name but `svc/web`; its forwards are `svc/web:80`.
        """
        target, port = self.target, self.port
        if target.name == str(target):
            protocol = f"/{port.protocol}" if port.protocol else ""
            return f"{target.name}:{port.remote}{protocol}"
        return f"{target.name}[{port}]" if len(target.ports) > 1 else target.name

    @property
    def protocol(self) -> Protocol | None:
        """The protocol of the file; None if the Service or pod decides it later."""
        return self.port.protocol or (None if self.target.kind.in_cluster else Protocol.TCP)

    @property
    def key(self) -> tuple[str, int]:
        """The key of the forward within its config."""
        return self.target.name, self.index

    def __hash__(self) -> int:
        # Hashing the whole target for each of its ports would take quadratic time.
        return hash(self.key)

    @property
    def listens(self) -> tuple[Hashable, ...]:
        """The local address without the protocol. An unresolved local port is compared by what it
        will be resolved from."""
        *leads, _via = self.leads
        local = tuple(leads) if self.port.local is None else self.port.local
        return self.target.listen, local

    @property
    def leads(self) -> tuple[Hashable, ...]:
        """The destination of new streams."""
        target = self.target
        where = (target.context, target.namespace) if target.kind.in_cluster else (target.context,)
        what = target.kind, target.resource, self.port.remote, target.credentials
        return *where, *what, target.via


@dataclass(frozen=True, slots=True)
class Pair:
    """A forward before and after the edit; None if it does not exist."""

    old: Spec | None
    new: Spec | None

    @property
    def rebound(self) -> bool:
        """Whether the local address changes. An unknown protocol counts as unchanged if the forward
        is re-routed."""
        if not (self.old and self.new):
            return False
        protocols = {self.old.protocol, self.new.protocol}
        other = len(protocols) > 1 and not (self.rerouted and None in protocols)
        return other or self.old.listens != self.new.listens

    @property
    def rerouted(self) -> bool:
        """Whether the destination of new streams changes."""
        return bool(self.old and self.new and self.old.leads != self.new.leads)

    @property
    def changed(self) -> bool:
        """Whether the forward changes at all."""
        return not (self.old and self.new) or self.rebound or self.rerouted


@dataclass(frozen=True, slots=True)
class GroupChange:
    """The agent of one context before and after the edit; both are set if it is replaced."""

    old: GroupSpec | None
    new: GroupSpec | None

    @property
    def key(self) -> str | None:
        """The context."""
        return self.new.context if self.new else self.old.context if self.old else None


@dataclass(frozen=True, slots=True)
class Setting:
    """A changed value that takes effect at once: seconds, or text."""

    name: str
    before: float | str
    after: float | str


@dataclass(frozen=True, slots=True)
class Plan:
    """What an edit changes. `pairs` has the unchanged forwards too."""

    pairs: tuple[Pair, ...]
    groups: tuple[GroupChange, ...] = ()
    settings: tuple[Setting, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.groups or self.settings or any(pair.changed for pair in self.pairs))

    @property
    def changed(self) -> list[Pair]:
        """The forwards that change."""
        return [pair for pair in self.pairs if pair.changed]


def specs(config: Config | None) -> list[Spec]:
    """Return every forward of a config, in the file's order."""
    targets = config.targets if config else ()
    return [Spec(target, index) for target in targets for index in range(len(target.ports))]


def groups(config: Config | None) -> dict[str | None, GroupSpec]:
    """Return the agents that a config needs, by context; an embedded agent serves all targets.

    A context whose targets are all reached directly has none.
    """
    if config is None:
        return {}
    tunnel = config.tunnel
    common: dict[str, Any] = {
        "agent": config.agent,
        "sessions": tunnel.sessions,
        "transport": tunnel.transport,
        "connect_timeout": tunnel.connect_timeout,
        "session": tunnel.session,
    }
    if config.agent.embedded:
        return {None: GroupSpec(None, None, **common)}
    namespace = config.agent.namespace or config.namespace
    fallbacks: dict[str | None, dict[str, None]] = {}
    for target in config.targets:
        if target.via is Via.DIRECT:
            continue
        places = fallbacks.setdefault(target.context or config.context, {})
        if config.agent.namespace is None and target.namespace not in (None, namespace):
            places[str(target.namespace)] = None
    return {
        context: GroupSpec(context, namespace, fallbacks=tuple(places)[:_FALLBACKS], **common)
        for context, places in fallbacks.items()
    }


def directs(config: Config | None) -> dict[str | None, DirectSpec]:
    """Return the ways without an agent that targets of a config take or may take, by context."""
    if config is None or config.agent.embedded:
        return {}
    contexts = dict.fromkeys(
        target.context or config.context for target in config.targets if target.may_go_direct
    )
    return {context: DirectSpec(context, config.tunnel.transport) for context in contexts}


def group_of(config: Config, target: Target) -> str | None:
    """Return the context of a target, the key of its agent in `groups`, if it has one."""
    return None if config.agent.embedded else target.context or config.context


def diff(old: Config | None, new: Config | None) -> Plan:
    """Return the plan that leads from one config to the other; None relays nothing."""
    before, after = groups(old), groups(new)
    changes = [GroupChange(before.get(key), after.get(key)) for key in {**before, **after}]
    settings: tuple[Setting, ...] = ()
    if old and new:
        settings = tuple(
            Setting(f"tunnel.{key}", getattr(old.tunnel, name), getattr(new.tunnel, name))
            for key, name in (("openTimeout", "open_timeout"), ("drain", "drain"))
            if getattr(old.tunnel, name) != getattr(new.tunnel, name)
        ) + (*_directs(old, new), *_targets(old, new), *_status(old.status, new.status))
    return Plan(
        tuple(_pairs(specs(old), specs(new))),
        tuple(change for change in changes if change.old != change.new),
        settings,
    )


def _status(old: StatusConfig, new: StatusConfig) -> Iterator[Setting]:
    """Yield the changed settings, without the token's values."""
    if old.listen != new.listen:
        before, after = (
            str(Endpoint(*listen)) if listen else "nowhere" for listen in (old.listen, new.listen)
        )
        yield Setting("status.listen", before, after)
    if old.token != new.token:
        yield Setting("status.token", "", "another one" if new.token else "none")


def needs_no_agent(config: Config, context: str | None) -> bool:
    """Return whether a target of a context works without the agent, and none insists on it."""
    targets = [target for target in config.targets if group_of(config, target) == context]
    insists = any(target.via is Via.AGENT for target in targets)
    return not insists and any(target.may_go_direct for target in targets)


def _directs(old: Config, new: Config) -> Iterator[Setting]:
    """Yield the transport, if contexts without an agent stay and have another one."""
    before, after = directs(old), directs(new)
    stay = (before.keys() & after.keys()) - groups(new).keys()
    if any(before[context] != after[context] for context in stay):
        yield Setting("tunnel.transport", str(old.tunnel.transport), str(new.tunnel.transport))


_OF_TARGET = (
    *(("check", "check"), ("udpClients", "udp_clients")),
    *(("ready", "ready"), ("affinity", "affinity")),
)
"""Keys and fields of a target that take effect without another listener or route."""


def _targets(old: Config, new: Config) -> Iterator[Setting]:
    """Yield the changed settings of the targets that stay."""
    before = {target.name: target for target in old.targets}
    for target in new.targets:
        former = before.get(target.name, target)
        for key, field in _OF_TARGET:
            values = getattr(former, field), getattr(target, field)
            if values[0] != values[1]:
                yield Setting(f"{target.name}.{key}", *map(_spelled, values))


def _spelled(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


# How a new forward is matched with an old one of the same target, the closest likeness first; None
# matches nothing.
_LIKENESSES: tuple[Callable[[Spec], Hashable], ...] = (
    lambda spec: (spec.listens, spec.leads, spec.protocol),
    lambda spec: (spec.port.local, _protocol(spec)) if spec.port.local else None,
    lambda spec: (spec.port.remote, _protocol(spec)),
    lambda spec: "its only port" if len(spec.target.ports) == 1 else None,
)


def _protocol(spec: Spec) -> Protocol:
    return spec.protocol or Protocol.TCP


def _pairs(old: list[Spec], new: list[Spec]) -> Iterator[Pair]:
    """Yield every forward once: those of the new config in its order, then the removed ones."""
    found: dict[tuple[str, int], Spec] = {}
    left = {spec.key: spec for spec in old}
    for likeness in _LIKENESSES:
        alike: dict[Hashable, deque[Spec]] = {}
        for spec in left.values():
            alike.setdefault((spec.target.name, likeness(spec)), deque()).append(spec)
        for spec in new:
            like = likeness(spec)
            candidates = None if like is None else alike.get((spec.target.name, like))
            if spec.key not in found and candidates:
                found[spec.key] = candidates.popleft()
                del left[found[spec.key].key]
    yield from (Pair(found.get(spec.key), spec) for spec in new)
    yield from (Pair(spec, None) for spec in left.values())
