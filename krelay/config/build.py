"""The tree of a krelay.yaml -> Config, and the problems that only meaning shows.

It reads what the schema has left: a value is of the type that the schema says, or missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from krelay.config.conflicts import Claim
from krelay.config.document import Node
from krelay.config.duration import parse_duration
from krelay.config.flaw import Flaw
from krelay.config.line import Line, parse_line, parse_namespace, split
from krelay.config.target import check_port, parse_listen, parse_port, parse_remote, parse_resource
from krelay.config.targets_txt import target_of
from krelay.errors import Problem
from krelay.model import (
    LOOPBACK,
    AgentConfig,
    Config,
    Kind,
    Patch,
    Port,
    Protocol,
    Target,
    Transport,
    TunnelConfig,
)

Section = dict[str, Node]


def build(root: Node, path: str) -> tuple[Config, list[Claim], list[Problem]]:
    """The config, its claims to local addresses, and every problem; it is whole without any."""
    builder = _Builder(_section(root))
    return builder.config(path), builder.claims, builder.problems


def _section(node: Node | None) -> Section:
    """The entries of a mapping that may be missing or empty; a key without a value is missing."""
    if node is None or not isinstance(node.value, dict):
        return {}
    return {key: value for key, value in node.value.items() if value.value is not None}


class _Builder:
    def __init__(self, root: Section) -> None:
        self.problems: list[Problem] = []
        self.claims: list[Claim] = []
        self._root = root
        self._namespace = self._text(root, "namespace", parse_namespace)
        self._context = self._text(root, "context")

    def config(self, path: str) -> Config:
        agent = self._agent(_section(self._root.get("agent")))
        return Config(
            targets=self._targets(embedded=agent.embedded),
            context=self._context,
            namespace=self._namespace,
            agent=agent,
            tunnel=self._tunnel(_section(self._root.get("tunnel"))),
            path=path,
        )

    def _flaw(self, node: Node, flaw: Flaw) -> None:
        """A problem in a scalar: at the very character where the file has it as it is."""
        if node.inside is not None:
            self.problems.append(flaw.at(node.line, node.inside))
        else:
            self.problems.append(Problem(node.line, node.column, flaw.message, flaw.hint))

    def _parsed(self, node: Node, parse: Callable[[Any], Any]) -> Any:
        """What `parse` makes of the scalar, or None and a problem."""
        try:
            return parse(node.value)
        except Flaw as flaw:
            self._flaw(node, flaw)
            return None

    def _text(self, section: Section, key: str, parse: Callable[[str], str] = str) -> str | None:
        found: str | None = self._parsed(section[key], parse) if key in section else None
        return found

    def _tunnel(self, given: Section) -> TunnelConfig:
        fields: dict[str, Any] = {}
        if "sessions" in given:
            fields["sessions"] = int(given["sessions"].plain())
        if "transport" in given:
            fields["transport"] = Transport(given["transport"].plain())
        for key in ("park", "dial", "drain"):
            self._duration(given, key, key, fields)
        return TunnelConfig(**fields)

    def _duration(self, given: Section, key: str, name: str, fields: dict[str, Any]) -> None:
        positive = key in ("dial", "idleTimeout")
        if key in given:
            fields[name] = self._parsed(
                given[key], lambda value: parse_duration(value, positive=positive)
            )

    def _agent(self, given: Section) -> AgentConfig:
        fields: dict[str, Any] = {
            key: given[key].plain()
            for key in ("image", "labels", "annotations", "embedded")
            if key in given
        }
        fields["namespace"] = self._text(given, "namespace", parse_namespace)
        self._duration(given, "idleTimeout", "idle_timeout", fields)
        if "nodeSelector" in given:
            fields["node_selector"] = given["nodeSelector"].plain()
        if "tolerations" in given:
            fields["tolerations"] = tuple(given["tolerations"].plain())
        if "resources" in given:
            # Kubernetes takes a quantity as a number too, and the model has texts only
            fields["resources"] = {
                when: {resource: str(quantity) for resource, quantity in amounts.items()}
                for when, amounts in given["resources"].plain().items()
            }
        if "patches" in given:
            patches = given["patches"].value
            assert isinstance(patches, list)
            fields["patches"] = tuple(
                patch for patch in map(self._patch, patches) if patch is not None
            )
        return AgentConfig(**fields)

    def _patch(self, node: Node) -> Patch | None:
        given = _section(node)
        if "patch" not in given:
            return None
        node = given["patch"]
        words = {key: given[key].plain() for key in ("type", "target") if key in given}
        is_list = isinstance(node.value, list)
        patch = Patch(tuple(node.plain()) if is_list else node.plain(), **words)
        if is_list == (patch.type == "json"):
            return patch
        if is_list:
            message, hint = "a list is a patch of type json", "write `type: json` beside it"
        else:
            message, hint = "a patch of type json is a list", "write `- {op: ..., path: ...}`"
        self.problems.append(Problem(node.line, node.column, message, hint))
        return None

    def _targets(self, *, embedded: bool) -> tuple[Target, ...]:
        defaults = _section(self._root.get("defaults"))
        everyone: dict[str, Any] = {
            "namespace": self._text(defaults, "namespace", parse_namespace) or self._namespace,
            "context": self._text(defaults, "context") or self._context,
            "listen": self._text(defaults, "listen", parse_listen) or LOOPBACK,
        }
        targets: list[Target] = []
        given = self._root.get("targets")
        for name, node in _section(given).items():
            assert given is not None
            place = given.keys[name]
            line, places, own = (
                self._short(node) if isinstance(node.value, str) else self._long(_section(node))
            )
            if line is None:
                continue
            target = target_of(line, name=name, at=place[0], **{**everyone, **own})
            targets.append(target)
            self.claims += [
                Claim(target, port, *where) for port, where in zip(line.ports, places, strict=True)
            ]
            if embedded and target.kind.in_cluster:
                self.problems.append(
                    Problem(
                        *place,
                        f"`{target}` is in a cluster, and an embedded agent is not",
                        "remove `agent.embedded`, or use `host/` and `ip/` targets",
                    )
                )
        return tuple(targets)

    def _short(self, node: Node) -> tuple[Line | None, list[tuple[int, int]], dict[str, Any]]:
        line, flaws = parse_line(split(node.plain()))
        for flaw in flaws:
            self._flaw(node, flaw)
        if line is None:
            return None, [], {}
        if node.inside is None:
            return line, [(node.line, node.column)] * len(line.ports), {}
        return line, [(node.line, node.inside + offset) for offset in line.offsets], {}

    def _long(self, given: Section) -> tuple[Line | None, list[tuple[int, int]], dict[str, Any]]:
        before = len(self.problems)
        found: tuple[Kind, str] | None = None
        if "target" in given:
            found = self._parsed(given["target"], parse_resource)
        nodes = given["ports"].value if "ports" in given else []
        assert isinstance(nodes, list)
        nodes = [*nodes, given["port"]] if "port" in given else nodes
        ports = [(self._port(node, found[0] if found else None), node) for node in nodes]
        parts: dict[str, Any] = {
            "namespace": self._text(given, "namespace", parse_namespace),
            "listen": self._text(given, "listen", parse_listen),
        }
        own = {"context": given["context"].plain()} if "context" in given else {}
        if found is None or len(self.problems) > before:
            return None, [], own
        whole = [(port, node) for port, node in ports if port is not None]
        line = Line(*found, tuple(port for port, _ in whole), **parts)
        return line, [(node.line, node.column) for _, node in whole], own

    def _port(self, node: Node, kind: Kind | None) -> Port | None:
        def parse(value: Any) -> Port:
            port = parse_port(value if isinstance(value, str) else str(int(value)))
            if kind is not None:
                check_port(kind, port)
            return port

        if not isinstance(node.value, dict):
            found: Port | None = self._parsed(node, parse)
            return found
        given = _section(node)
        if "remote" not in given:
            return None
        far = given["remote"]

        def parse_far(value: Any) -> int | str:
            remote = parse_remote(value if isinstance(value, str) else str(int(value)))
            if kind is not None:
                check_port(kind, Port(remote))
            return remote

        remote = self._parsed(far, parse_far)
        if remote is None:
            return None
        local = int(given["local"].plain()) if "local" in given else None
        return Port(
            remote,
            local=remote if local is None and isinstance(remote, int) else local,
            protocol=Protocol(given["protocol"].plain()) if "protocol" in given else None,
        )
