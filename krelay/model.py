"""The words of the design as frozen dataclasses; every default of the product lives here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address
from typing import Any


class Protocol(StrEnum):
    """What a forward relays."""

    TCP = "tcp"
    UDP = "udp"


class Kind(StrEnum):
    """What a target names: the prefix before its slash, in the short form."""

    SERVICE = "svc"
    DEPLOYMENT = "deploy"
    STATEFULSET = "sts"
    DAEMONSET = "ds"
    REPLICASET = "rs"
    JOB = "job"
    POD = "pod"
    HOST = "host"
    IP = "ip"
    PROXY = "proxy"
    """Wherever each connection asks for: an entry of `proxies`, and no type that a target has."""

    @property
    def in_cluster(self) -> bool:
        """Whether the API server knows it; a host or an address is dialled as it stands."""
        return self not in (Kind.HOST, Kind.IP, Kind.PROXY)


TYPES = tuple(kind for kind in Kind if kind is not Kind.PROXY)
"""What a target may name."""


@dataclass(frozen=True, slots=True)
class Port:
    """One forward of a target, as the user wrote it.

    `local` is the port to listen on: 0 takes a free one, None the number that `remote`
    resolves to. `remote` is a number or a port's name. `protocol` is None where the user left
    it to the Service (TCP for everything else).
    """

    remote: int | str
    local: int | None = None
    protocol: Protocol | None = None

    def __str__(self) -> str:
        if self.local is None or self.local == self.remote:
            text = str(self.remote)
        else:
            text = f"{self.local or ''}:{self.remote}"
        return f"{text}/{self.protocol}" if self.protocol else text


class CheckKind(StrEnum):
    """How a forward is probed."""

    DIAL = "dial"
    HTTP = "http"
    DNS = "dns"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Check:
    """What shows that a target works, while nothing that is relayed does.

    `http` has a `method`, a `path` and the `status` that is expected, None for 200 to 399; `dns`
    the `name` to ask for.
    """

    kind: CheckKind = CheckKind.DIAL
    method: str = "GET"
    path: str = "/"
    status: int | None = None
    name: str = ""

    def of(self, protocol: Protocol) -> Check:
        """What of it a port of that protocol can be asked: a datagram says nothing without an
        answer, and only DNS has one for everybody."""
        if protocol is Protocol.UDP:
            return self if self.kind is CheckKind.DNS else Check(CheckKind.NONE)
        return Check() if self.kind is CheckKind.DNS else self

    def __str__(self) -> str:
        """As it is written in a file."""
        if self.kind is CheckKind.HTTP:
            expected = f" -> {self.status}" if self.status else ""
            return f"http {self.method} {self.path}{expected}"
        return f"dns {self.name}" if self.kind is CheckKind.DNS else self.kind.value


LOOPBACK = "127.0.0.1"


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches what listens there."""
    return address == "localhost" or ip_address(address).is_loopback


@dataclass(frozen=True, slots=True)
class Target:
    """One entry of the file. Its `name` is unique, and the key of every diff.

    `listen` is an address (v4 or v6) or `localhost`, which is both families or neither.
    `credentials` are the user's name and password that a proxy asks for; `insecure`: it may be open
    to other machines without them. `check` is how it is probed. `namespace` and `context` are None
    where kubeconfig's own apply. `line` and `column`, from 1, are its place in `file`; a target of
    the command line has none.
    """

    name: str
    kind: Kind
    resource: str
    ports: tuple[Port, ...]
    namespace: str | None = None
    context: str | None = None
    listen: str = LOOPBACK
    credentials: tuple[str, str] | None = field(default=None, repr=False)
    insecure: bool = False
    check: Check = Check()
    line: int = field(default=0, compare=False)
    column: int = field(default=0, compare=False)
    file: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.kind}/{self.resource}"


PROXY_PORT = 1080


def proxy_target(name: str, port: int = PROXY_PORT, **fields: Any) -> Target:
    """A proxy as a target: whatever is done to those is done to it. Its remote port is nobody's."""
    ports = (Port(PROXY_PORT, port, Protocol.TCP),)
    return Target(name, Kind.PROXY, "socks5+http", ports, **fields)


@dataclass(frozen=True, slots=True)
class Patch:
    """A change to the agent's pod before it is created.

    `type` is `strategic` (lists merge by their key), `merge` (RFC 7396) or `json` (RFC 6902,
    where `body` is the list of operations); `target` is `pod` or `job`.
    """

    body: Mapping[str, Any] | tuple[Mapping[str, Any], ...]
    type: str = "strategic"
    target: str = "pod"


AGENT_PORT = 9527
AGENT_IMAGE = "python:3.11-slim"


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """The program in the cluster: where it runs and as what. Times are in seconds.

    `namespace` is None for the file's own. `resources` has the shape of a container's.
    `replicas` is how many of it run, on different nodes where that can be.
    `inject_source`: whether the agent's source goes along to the image; None: where the image's
    name ends in `python`. `embedded` runs it as a child process of this machine instead.
    """

    namespace: str | None = None
    image: str = AGENT_IMAGE
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    resources: Mapping[str, Mapping[str, str]] = field(
        default_factory=lambda: {
            "requests": {"cpu": "10m", "memory": "48Mi"},
            "limits": {"cpu": "1", "memory": "256Mi"},
        }
    )
    patches: tuple[Patch, ...] = ()
    idle_timeout: float = 300.0
    replicas: int = 1
    inject_source: bool | None = None
    embedded: bool = False


class Transport(StrEnum):
    """How the SPDY bytes of a port-forward are carried; AUTO tries one, then the other."""

    AUTO = "auto"
    WEBSOCKET = "websocket"
    SPDY = "spdy"


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """What a session outlives, and what it may cost; both ends go by it. Times are in seconds.

    `resume_timeout` is how long it is kept without a tunnel; `resume_buffer` the bytes that it
    keeps until the other end has them. A PING is sent every `ping`, and a tunnel that brings
    nothing for `ping_timeout` after one is dead. One that is `max_age` old is replaced while it
    works.
    """

    resume_timeout: float = 120.0
    resume_buffer: int = 4 << 20
    ping: float = 3.0
    ping_timeout: float = 6.0
    max_age: float = 1500.0


@dataclass(frozen=True, slots=True)
class TunnelConfig:
    """The shared way into the cluster. Times are in seconds.

    `sessions` is the size of a pool; `open_timeout` how long a new connection waits for a route;
    `connect_timeout` the agent's time to reach a target; `drain` how long live streams get to
    finish.
    """

    sessions: int = 2
    transport: Transport = Transport.AUTO
    open_timeout: float = 30.0
    connect_timeout: float = 10.0
    drain: float = 30.0
    session: SessionConfig = SessionConfig()


@dataclass(frozen=True, slots=True)
class StatusConfig:
    """The status service over TCP: `listen` is the address and port, None for no TCP. `token` is
    what whoever asks has to show, None for nothing."""

    listen: tuple[str, int] | None = None
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """What an agent and the pool to it are made from; where that changes, others are made.

    `namespace` is the agent's, None for the context's own.
    """

    context: str | None
    namespace: str | None
    agent: AgentConfig
    sessions: int = 2
    transport: Transport = Transport.AUTO
    connect_timeout: float = 10.0
    session: SessionConfig = SessionConfig()


@dataclass(frozen=True, slots=True)
class Config:
    """A whole file, validated. `targets` is in the file's order, with unique names.

    `files` has the path of every file that was read for it, the main one's first; standard
    input has none.
    """

    targets: tuple[Target, ...]
    context: str | None = None
    namespace: str | None = None
    agent: AgentConfig = AgentConfig()
    tunnel: TunnelConfig = TunnelConfig()
    status: StatusConfig = StatusConfig()
    path: str = field(default="<memory>", compare=False)
    files: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The host (a name or an address) and the port that the agent dials now."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Resolution:
    """What one port of a target means now: an endpoint, or None and the reason.

    `via` says in a word or two what answers, for people (`clusterIP`, `pod web-7d4b9`).
    `missing`: there is no such object, or no such port of it.
    """

    protocol: Protocol
    endpoint: Endpoint | None = None
    reason: str = ""
    via: str = ""
    missing: bool = False

    @classmethod
    def as_given(cls, target: Target, port: Port) -> Resolution:
        """What a host or an address means: itself. Its port is a number (the config sees to it)."""
        endpoint = Endpoint(target.resource, int(port.remote))
        return cls(port.protocol or Protocol.TCP, endpoint, via="as given")
