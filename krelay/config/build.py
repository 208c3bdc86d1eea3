"""The tree of a krelay.yaml -> a Part, with the problems that only meaning shows.

It reads what the schema has left: a value is of the type that the schema says, or missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from krelay.config import patches
from krelay.config.checks import parse_check, read_check
from krelay.config.conflicts import Claim
from krelay.config.duration import parse_duration
from krelay.config.files import Files
from krelay.config.grammar import check_port, parse_listen, parse_port, parse_remote, parse_resource
from krelay.config.line import Line, parse_line, parse_namespace, split
from krelay.config.parse_error import Flaw, quote
from krelay.config.part import MAX_FORWARDS, Part
from krelay.config.serving import parse_serving, unguarded, unguarded_message
from krelay.config.size import parse_size
from krelay.config.targets_txt import target_of
from krelay.config.yaml_reader import Node
from krelay.errors import Problem
from krelay.model import (
    LOOPBACK,
    PROXY_PORT,
    AgentConfig,
    Check,
    Config,
    Kind,
    Patch,
    Port,
    Protocol,
    SessionConfig,
    StatusConfig,
    Target,
    Transport,
    TunnelConfig,
    is_loopback,
    proxy_target,
)

Section = dict[str, Node]

_TUNNEL_TIMES = {"park": "open_timeout", "dial": "connect_timeout", "drain": "drain"}
_SESSION_TIMES = {
    "grace": "resume_timeout",
    "ping": "ping",
    "pingTimeout": "ping_timeout",
    "maxAge": "max_age",
}


def build(root: Node, path: str, files: Files) -> Part:
    """What the file at `path` says; `files` opens the patches that it names. Blocks."""
    return _Builder(_section(root), path, files).part()


def _section(node: Node | None) -> Section:
    """The entries of a mapping that may be missing or empty; a key without a value is missing."""
    if node is None or not isinstance(node.value, dict):
        return {}
    return {key: value for key, value in node.value.items() if value.value is not None}


def _entries(node: Node) -> Section:
    return node.value if isinstance(node.value, dict) else {}


def _items(node: Node | None) -> list[Node]:
    """The items of a list that may be missing."""
    return node.value if node is not None and isinstance(node.value, list) else []


class _Builder:
    def __init__(self, root: Section, path: str, files: Files) -> None:
        self._root = root
        self._path = path
        self._files = files
        self._problems: list[Problem] = []
        self._claims: list[Claim] = []

    def part(self) -> Part:
        namespace = self._text(self._root, "namespace", parse_namespace)
        context = self._text(self._root, "context")
        defaults = _section(self._root.get("defaults"))
        everyone: dict[str, Any] = {
            "namespace": self._text(defaults, "namespace", parse_namespace) or namespace,
            "context": self._text(defaults, "context") or context,
            "listen": self._text(defaults, "listen", parse_listen) or LOOPBACK,
            "check": self._check(defaults) or Check(),
        }
        config = Config(
            targets=(*self._targets(everyone), *self._proxies(everyone)),
            context=context,
            namespace=namespace,
            agent=self._agent(_section(self._root.get("agent"))),
            tunnel=self._tunnel(_section(self._root.get("tunnel"))),
            status=self._status(_section(self._root.get("status"))),
            path=self._path,
        )
        return Part(
            config, self._claims, self._problems, _items(self._root.get("include")), everyone
        )

    def _parsed(self, node: Node, parse: Callable[[Any], Any]) -> Any:
        """What `parse` makes of the scalar, or None and a problem."""
        try:
            return parse(node.value)
        except Flaw as flaw:
            self._problems.append(node.problem(flaw))
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
        for key, name in _TUNNEL_TIMES.items():
            self._duration(given, key, name, fields)
        return TunnelConfig(**fields, session=self._session(given))

    def _session(self, given: Section) -> SessionConfig:
        fields: dict[str, Any] = {}
        for key, name in _SESSION_TIMES.items():
            self._duration(given, key, name, fields)
        if "replay" in given:
            fields["resume_buffer"] = self._parsed(given["replay"], parse_size)
        return SessionConfig(**{key: value for key, value in fields.items() if value is not None})

    def _status(self, given: Section) -> StatusConfig:
        token = self._text(given, "token")
        listen = self._parsed(given["listen"], parse_serving) if "listen" in given else None
        if listen is not None and token is None and not is_loopback(listen[0]):
            flaw = Flaw(
                f"{quote(given['listen'].plain())} is open to other machines, which requires a "
                "`status.token`",
                hint="set one, or listen on `127.0.0.1`",
            )
            self._problems.append(given["listen"].problem(flaw))
        if listen is not None:
            port = Port(0, listen[1], Protocol.TCP)
            stand_in = Target("", Kind.PROXY, "", (port,), listen=listen[0], file=self._path)
            place = given["listen"].line, given["listen"].column
            # First, so that it is a target that is told to go elsewhere.
            self._claims.insert(0, Claim(stand_in, port, *place, what="`status.listen`"))
        return StatusConfig(listen, token)

    def _duration(self, given: Section, key: str, name: str, fields: dict[str, Any]) -> None:
        positive = key in ("dial", "idleTimeout", *_SESSION_TIMES)
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
        if "inject" in given:
            fields["inject_source"] = given["inject"].plain()
        fields["namespace"] = self._text(given, "namespace", parse_namespace)
        self._duration(given, "idleTimeout", "idle_timeout", fields)
        if "replicas" in given:
            fields["replicas"] = int(given["replicas"].plain())
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
            made = [self._patch(_section(entry)) for entry in _items(given["patches"])]
            fields["patches"] = tuple(patch for patch in made if patch is not None)
        return AgentConfig(**fields)

    def _patch(self, entry: Section) -> Patch | None:
        patch, problems = patches.read(entry, self._path, self._files)
        self._problems += problems
        return patch

    def _targets(self, everyone: dict[str, Any]) -> tuple[Target, ...]:
        targets: list[Target] = []
        given = self._root.get("targets")
        for name, node in _section(given).items():
            assert given is not None
            line, places, own = (
                self._short(node) if isinstance(node.value, str) else self._long(_section(node))
            )
            if line is None:
                continue
            said: dict[str, Any] = {**everyone, **own}
            target = target_of(line, name=name, place=given.keys[name], file=self._path, **said)
            targets.append(target)
            self._claims += [
                Claim(target, port, *where) for port, where in zip(line.ports, places, strict=True)
            ]
            if len(self._claims) > MAX_FORWARDS:
                break  # `join` says so
        return tuple(targets)

    def _proxies(self, everyone: dict[str, Any]) -> Iterator[Target]:
        given = self._root.get("proxies")
        for name, node in given.value.items() if given and isinstance(given.value, dict) else ():
            assert given is not None
            entry = _section(node)
            port = int(entry["port"].plain()) if "port" in entry else PROXY_PORT
            texts = {key: entry[key].plain() for key in ("username", "password") if key in entry}
            line, column = given.keys[name]
            # A key without a value here is one that is wrong, and told.
            wrong = bool(node.keys.keys() - _entries(node).keys() & {"username", "password"})
            for key in texts if len(texts) == 1 and not wrong else ():
                other = "password" if key == "username" else "username"
                message = f"`{key}` without `{other}`"
                self._problems.append(Problem(*node.keys[key], message, "write both, or neither"))
            target = proxy_target(
                name,
                port,
                context=self._text(entry, "context") or everyone["context"],
                listen=self._text(entry, "listen", parse_listen) or everyone["listen"],
                credentials=(texts["username"], texts["password"]) if len(texts) == 2 else None,
                insecure="insecure" in entry and entry["insecure"].value is True,
                line=line,
                column=column,
                file=self._path,
            )
            self._claims.append(Claim(target, target.ports[0], line, column))
            if unguarded(target) and not texts and not wrong:
                hint = "write both, listen on `127.0.0.1`, or say `insecure: true`"
                at = entry["listen"] if "listen" in entry else Node(line, column, None)
                self._problems.append(at.problem(Flaw(unguarded_message(target), hint=hint)))
            yield target

    def _short(self, node: Node) -> tuple[Line | None, list[tuple[int, int]], dict[str, Any]]:
        line, flaws = parse_line(split(node.plain()))
        for flaw in flaws:
            self._problems.append(node.problem(flaw))
        if line is None:
            return None, [], {}
        if node.inside is None:
            return line, [(node.line, node.column)] * len(line.ports), {}
        return line, [(node.line, node.inside + offset) for offset in line.offsets], {}

    def _long(self, given: Section) -> tuple[Line | None, list[tuple[int, int]], dict[str, Any]]:
        before = len(self._problems)
        found: tuple[Kind, str] | None = None
        if "target" in given:
            found = self._parsed(given["target"], parse_resource)
        nodes = _items(given.get("ports"))
        nodes = [*nodes, given["port"]] if "port" in given else nodes
        ports = [(self._port(node, found[0] if found else None), node) for node in nodes]
        parts: dict[str, Any] = {
            "namespace": self._text(given, "namespace", parse_namespace),
            "listen": self._text(given, "listen", parse_listen),
        }
        own = {"context": given["context"].plain()} if "context" in given else {}
        if check := self._check(given):
            own["check"] = check
        if found is None or len(self._problems) > before:
            return None, [], own
        whole = [(port, node) for port, node in ports if port is not None]
        line = Line(*found, tuple(port for port, _ in whole), **parts)
        return line, [(node.line, node.column) for _, node in whole], own

    def _check(self, given: Section) -> Check | None:
        if "check" not in given:
            return None
        node = given["check"]
        text = isinstance(node.value, str)
        found: Check | None = self._parsed(
            node, lambda value: parse_check(value) if text else read_check(node.plain())
        )
        return found

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
