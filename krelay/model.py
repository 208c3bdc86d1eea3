"""Model: a validated config, its targets and what they resolve to, with every default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address
from typing import Any


class Protocol(StrEnum):
    """The protocol of a forward."""

    TCP = "tcp"
    UDP = "udp"


class Kind(StrEnum):
    """The type of a target: the prefix before its slash, in its short form."""

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
    """An entry of `proxies`; each connection names its own destination."""

    @property
    def in_cluster(self) -> bool:
        """Whether the target is an object of the API server; others are dialled as given."""
        return self not in (Kind.HOST, Kind.IP, Kind.PROXY)


TYPES = tuple(kind for kind in Kind if kind is not Kind.PROXY)
"""The types that a target of the file may have."""


@dataclass(frozen=True, slots=True)
class Port:
    """One forward of a target, as the user wrote it.

    `remote` is a number or the name of a port. `local` is the port to listen on: 0 takes a free
    one, None the number that `remote` resolves to. `protocol` None means the Service's own, and
    TCP for other targets.
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

    AUTO = "auto"
    DIAL = "dial"
    HTTP = "http"
    DNS = "dns"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Check:
    """How to learn whether a target works while no connection shows it.

    `auto` takes the kubelet's word for the program, and proves only the way to it. `http` uses
    `method`, `path` and the expected `status` (None: 200 to 399), `dns` the `name` to look up.
    """

    kind: CheckKind = CheckKind.AUTO
    method: str = "GET"
    path: str = "/"
    status: int | None = None
    name: str = ""

    def of(self, protocol: Protocol) -> Check:
        """Return the check that fits a port of `protocol`.

        A UDP port answers only requests in its protocol, so only DNS can be probed there.
        """
        if protocol is Protocol.UDP:
            fits = self.kind in (CheckKind.DNS, CheckKind.AUTO)
            return self if fits else Check(CheckKind.NONE)
        return Check(CheckKind.DIAL) if self.kind is CheckKind.DNS else self

    def __str__(self) -> str:
        """Return the check as the file spells it."""
        if self.kind is CheckKind.HTTP:
            expected = f" -> {self.status}" if self.status else ""
            return f"http {self.method} {self.path}{expected}"
        return f"dns {self.name}" if self.kind is CheckKind.DNS else self.kind.value


class Via(StrEnum):
    """The way into the cluster that a target's connections take.

    AGENT relays through the agent. DIRECT forwards into the target's pods, as kubectl does: TCP to
    pods only, without resumption, and nothing is made in the cluster. AUTO takes the agent where
    one can be had.
    """

    AUTO = "auto"
    AGENT = "agent"
    DIRECT = "direct"


class Affinity(StrEnum):
    """Which connections to a Service stay on one endpoint."""

    NONE = "none"
    CLIENT = "client"
    """Those from the same local address."""


LOOPBACK = "127.0.0.1"
UDP_CLIENTS = 1024
"""Clients that a UDP port serves at once."""


def is_loopback(address: str) -> bool:
    """Return whether only this machine reaches a port at `address`."""
    return address == "localhost" or ip_address(address).is_loopback


@dataclass(frozen=True, slots=True)
class Target:
    """One entry of the file. Its `name` is unique and the key of every diff.

    `listen` is an IPv4 or IPv6 address, `localhost` for both families, or from the command line
    several of them with commas. `namespace` and `context` None mean those of the kubeconfig. A
    proxy asks for `credentials` (user name, password); `insecure` allows one without them beyond
    loopback. A UDP port serves `udp_clients` at once. Connections go `via` the agent or directly.
    With `ready`, they wait for a ready pod if none is; without it they use one that runs. `line`
    and `column`, from 1, are the place in `file`; a target of the command line has none.
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
    udp_clients: int = UDP_CLIENTS
    via: Via = Via.AUTO
    ready: bool = True
    affinity: Affinity = Affinity.NONE
    line: int = field(default=0, compare=False)
    column: int = field(default=0, compare=False)
    file: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.kind}/{self.resource}"

    @property
    def may_go_direct(self) -> bool:
        """Whether a port of the target may be reached without an agent."""
        is_tcp = any(port.protocol is not Protocol.UDP for port in self.ports)
        return self.via is not Via.AGENT and self.kind.in_cluster and is_tcp


PROXY_PORT = 1080


def proxy_target(name: str, port: int = PROXY_PORT, **fields: Any) -> Target:
    """Return a proxy as a target, so that it is diffed, bound and drained like any other."""
    ports = (Port(PROXY_PORT, port, Protocol.TCP),)
    return Target(name, Kind.PROXY, "socks5+http", ports, **fields)


@dataclass(frozen=True, slots=True)
class Patch:
    """A change to the agent's manifest before it is created.

    `type` is `strategic` (lists merge by their key), `merge` (RFC 7396) or `json` (RFC 6902;
    `body` is the list of operations). `target` is `pod` or `job`.
    """

    body: Mapping[str, Any] | tuple[Mapping[str, Any], ...]
    type: str = "strategic"
    target: str = "pod"


AGENT_PORT = 9527
AGENT_DOOR_PORT = 10250
"""Port on the pod's own address where the agent takes tunnels through the API server's proxy."""
AGENT_IMAGE = "python:3.11-slim"


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """The agent: where and how it runs. Times are in seconds.

    `namespace` None means the file's. `resources` has the shape of a container's. `replicas` agents
    run on different nodes if possible. `inject_source` says whether the pod carries the agent's
    source; None means yes if the image's name ends in `python`. `embedded` runs the agent as a
    child process on this machine instead. `start_timeout` is how long its pod may wait for a node.
    """

    namespace: str | None = None
    image: str = AGENT_IMAGE
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    resources: Mapping[str, Mapping[str, str]] = field(
        default_factory=lambda: {
            "requests": {"cpu": "100m", "memory": "48Mi"},
            "limits": {"cpu": "1", "memory": "256Mi"},
        }
    )
    patches: tuple[Patch, ...] = ()
    idle_timeout: float = 300.0
    start_timeout: float = 120.0
    replicas: int = 1
    inject_source: bool | None = None
    embedded: bool = False


class Transport(StrEnum):
    """What carries tunnels to an agent in a cluster.

    SPDY and WEBSOCKET are carriers of a port-forward; AUTO begins with the one that works. PROXY is
    the API server's proxy to the pod's own address; AUTO moves there where it works.
    """

    AUTO = "auto"
    PROXY = "proxy"
    SPDY = "spdy"
    WEBSOCKET = "websocket"


class Compression(StrEnum):
    """Whether a session compresses what it sends over a slow path."""

    AUTO = "auto"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """What a session survives and may cost; both ends use the same values. Times are in seconds.

    A session without a tunnel is kept for `resume_timeout`. `resume_buffer` limits the bytes kept
    until the peer acknowledges them. A PING is sent every `ping` seconds; a tunnel that delivers
    nothing for `ping_timeout` afterwards is dead. A tunnel is replaced at the age of `max_age`.
    """

    resume_timeout: float = 120.0
    resume_buffer: int = 4 << 20
    ping: float = 3.0
    ping_timeout: float = 6.0
    max_age: float = 1500.0
    compression: Compression = Compression.AUTO


@dataclass(frozen=True, slots=True)
class TunnelConfig:
    """The tunnels into the cluster, shared by all targets. Times are in seconds.

    `sessions` is the size of a pool, `open_timeout` how long a new connection waits for a stream,
    `connect_timeout` how long the agent tries to reach a target, and `drain` how long live
    connections get to finish.
    """

    sessions: int = 2
    transport: Transport = Transport.AUTO
    open_timeout: float = 30.0
    connect_timeout: float = 10.0
    drain: float = 30.0
    session: SessionConfig = SessionConfig()


@dataclass(frozen=True, slots=True)
class StatusConfig:
    """The status service over TCP: `listen` is its address and port, None for no TCP.

    Requests must show the `token`, if one is set.
    """

    listen: tuple[str, int] | None = None
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """The settings of an agent group; a group with other settings is another group.

    `namespace` is the agent's; None means the context's own. Where the cluster forbids the agent
    there, the agent goes to the first of `fallbacks` that allows it.
    """

    context: str | None
    namespace: str | None
    agent: AgentConfig
    fallbacks: tuple[str, ...] = field(default=(), compare=False)
    sessions: int = 2
    transport: Transport = Transport.AUTO
    connect_timeout: float = 10.0
    session: SessionConfig = SessionConfig()


@dataclass(frozen=True, slots=True)
class DirectSpec:
    """The settings of the way into the pods of a context without an agent."""

    context: str | None
    transport: Transport = Transport.AUTO


@dataclass(frozen=True, slots=True)
class Origin:
    """The command line that a config comes from, for hints that name a command.

    `krelay rbac` with these `words` and, if not None, this `namespace` reads the same config; no
    words, no such command line. `flags` says whether settings of the agent are flags of the
    command, and not lines of a file.
    """

    words: tuple[str, ...] = ()
    namespace: str | None = None
    flags: bool = False


@dataclass(frozen=True, slots=True)
class Config:
    """A whole file, validated. `targets` has unique names, in the file's order.

    `files` are the paths of all files read for it, the main one first; standard input has none.
    """

    targets: tuple[Target, ...]
    context: str | None = None
    namespace: str | None = None
    via: Via = Via.AUTO
    agent: AgentConfig = AgentConfig()
    tunnel: TunnelConfig = TunnelConfig()
    status: StatusConfig = StatusConfig()
    path: str = field(default="<memory>", compare=False)
    files: tuple[str, ...] = field(default=(), compare=False)
    origin: Origin = field(default=Origin(), compare=False)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The host (a name or an address) and the port that the agent dials."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class PodPort:
    """A port of a pod behind a target."""

    namespace: str
    name: str
    uid: str
    port: int
    ready: bool = True

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}:{self.port}"


@dataclass(frozen=True, slots=True)
class Resolution:
    """What one port of a target means now: an endpoint, or None and the reason.

    `via` names the endpoint for people (`clusterIP`, `pod web-7d4b9`). `missing` says that the
    object or its port does not exist. `pods` are the pods that a port-forward could reach in the
    endpoint's place, the best one first and ready ones before others; connections are `balanced`
    over the ready ones, or stay with the first.

    Without an endpoint, `phase` is that of the pod that does not
    run, and `ended` says that no other will come; `fallback` leads to a pod that runs but is not
    ready. Such an endpoint is `unready`, and `ending` if its pod is being deleted.

    `endpoints` are the ready endpoints of a Service if they are known, or a pod's further
    addresses. If `endpoint` is one of them, each connection takes one: the next in turn, or with
    `affinity` that of its client. If not, they are for when it refuses.
    """

    protocol: Protocol
    endpoint: Endpoint | None = None
    reason: str = ""
    via: str = ""
    missing: bool = False
    pods: tuple[PodPort, ...] = ()
    balanced: bool = False
    phase: str = ""
    ended: bool = False
    unready: bool = False
    ending: bool = False
    fallback: Resolution | None = None
    endpoints: tuple[Endpoint, ...] = ()
    affinity: bool = False

    @classmethod
    def as_given(cls, target: Target, port: Port) -> Resolution:
        """Return a host or an address as its own endpoint. Its port is a number."""
        endpoint = Endpoint(target.resource, int(port.remote))
        return cls(port.protocol or Protocol.TCP, endpoint, via="as given")
