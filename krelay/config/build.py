"""Build the ParsedFile of a krelay.yaml from its tree, and report what only its meaning shows.

The tree has passed the schema: each value has the type that the schema says, or is missing. One
table per section maps the keys of the file to fields of the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from krelay.config import validation, yaml_reader
from krelay.config.files import Files, decode
from krelay.config.grammar import (
    Line,
    ParseError,
    check_port,
    parse_check,
    parse_duration,
    parse_line,
    parse_listen,
    parse_listen_address,
    parse_namespace,
    parse_port,
    parse_remote,
    parse_resource,
    parse_size,
    quote,
    read_check,
    split,
    target_of,
)
from krelay.config.parsed_file import MAX_FORWARDS, ListenAddress, ParsedFile
from krelay.config.yaml_reader import Node
from krelay.errors import ConfigError, Problem
from krelay.model import (
    LOOPBACK,
    PROXY_PORT,
    Affinity,
    AgentConfig,
    Compression,
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
    Via,
    is_loopback,
    proxy_target,
)

Section = dict[str, Node]
Table = Mapping[str, tuple[str, Callable[[Any], Any]]]
"""For each key: the field that it sets, and how its value is parsed."""


def _check(value: Any) -> Any:
    return parse_check(value) if isinstance(value, str) else read_check(value)


def _quantities(value: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Return amounts of resources as text; Kubernetes also accepts numbers."""
    return {
        when: {resource: str(quantity) for resource, quantity in amounts.items()}
        for when, amounts in value.items()
    }


def _same(value: Any) -> Any:
    return value


_positive = partial(parse_duration, positive=True)

_OF_FILE: Table = {
    "namespace": ("namespace", parse_namespace),
    "context": ("context", _same),
    "via": ("via", Via),
}
_OF_TARGET: Table = {
    **_OF_FILE,
    "listen": ("listen", parse_listen),
    "check": ("check", _check),
    "udpClients": ("udp_clients", int),
    "ready": ("ready", _same),
    "affinity": ("affinity", Affinity),
}
_AGENT: Table = {
    "namespace": ("namespace", parse_namespace),
    "image": ("image", _same),
    "labels": ("labels", _same),
    "annotations": ("annotations", _same),
    "nodeSelector": ("node_selector", _same),
    "tolerations": ("tolerations", tuple),
    "resources": ("resources", _quantities),
    "idleTimeout": ("idle_timeout", _positive),
    "startTimeout": ("start_timeout", _positive),
    "replicas": ("replicas", int),
    "injectSource": ("inject_source", _same),
    "embedded": ("embedded", _same),
}
_TUNNEL: Table = {
    "sessions": ("sessions", int),
    "transport": ("transport", Transport),
    "openTimeout": ("open_timeout", parse_duration),
    "connectTimeout": ("connect_timeout", _positive),
    "drain": ("drain", parse_duration),
}
_SESSION: Table = {
    "resumeTimeout": ("resume_timeout", _positive),
    "resumeBuffer": ("resume_buffer", parse_size),
    "ping": ("ping", _positive),
    "pingTimeout": ("ping_timeout", _positive),
    "maxAge": ("max_age", _positive),
    "compression": ("compression", Compression),
}
_STATUS: Table = {"listen": ("listen", parse_listen_address), "token": ("token", _same)}
_PROXY: Table = {
    "port": ("port", int),
    "listen": ("listen", parse_listen),
    "context": ("context", _same),
    "insecure": ("insecure", _same),
}


def build(
    root: Node, path: str, files: Files, general: Mapping[str, str] | None = None
) -> ParsedFile:
    """Build what the file at `path` says; `files` opens the patches that it names. Blocks.

    `general` has fields that replace those of the file and its `defaults`.
    """
    return _Builder(_section(root), path, files, general or {}).build()


def exposure(target: Target) -> str | None:
    """Return the problem with a proxy that other machines may use without a password, or None."""
    private = all(map(is_loopback, target.listen.split(",")))
    protected = target.credentials is not None or target.insecure or private
    if target.kind is not Kind.PROXY or protected:
        return None
    needed = "a `username` and a `password`"
    return f"{quote(target.listen)} is open to other machines, which requires {needed}"


def _section(node: Node | None) -> Section:
    """Return the entries of a mapping that may be missing; a key without a value is missing too."""
    if node is None or not isinstance(node.value, dict):
        return {}
    return {key: value for key, value in node.value.items() if value.value is not None}


def _items(node: Node | None) -> list[Node]:
    """Return the items of a list that may be missing."""
    return node.value if node is not None and isinstance(node.value, list) else []


def _named(node: Node | None) -> Iterator[tuple[str, tuple[int, int], Node]]:
    """Yield the name, place and value of each entry of a mapping that may be missing."""
    if node is not None and isinstance(node.value, dict):
        for name, value in node.value.items():
            yield name, node.keys[name], value


class _Builder:
    def __init__(self, root: Section, path: str, files: Files, general: Mapping[str, str]) -> None:
        self._general = general
        self._root = root
        self._path = path
        self._files = files
        self._problems: list[Problem] = []
        self._addresses: list[ListenAddress] = []

    def build(self) -> ParsedFile:
        general = self._fields(self._root, _OF_FILE)
        defaults = {**general, **self._fields(_section(self._root.get("defaults")), _OF_TARGET)}
        defaults.update(self._general)
        tunnel = _section(self._root.get("tunnel"))
        session = SessionConfig(**self._fields(tunnel, _SESSION))
        config = Config(
            targets=(*self._targets(defaults), *self._proxies(defaults)),
            **general,
            agent=self._agent(_section(self._root.get("agent"))),
            tunnel=TunnelConfig(**self._fields(tunnel, _TUNNEL), session=session),
            status=self._status(_section(self._root.get("status"))),
            path=self._path,
        )
        include = _items(self._root.get("include"))
        return ParsedFile(config, self._addresses, self._problems, include, defaults)

    def _parse(self, node: Node, parse: Callable[[Any], Any]) -> Any:
        """Return what `parse` makes of the value, or None after adding its problem."""
        try:
            return parse(node.plain())
        except ParseError as error:
            self._problems.append(node.problem(error))
            return None

    def _fields(self, section: Section, table: Table) -> dict[str, Any]:
        """Return the fields that the section sets, without those that have a problem."""
        fields = {
            field: self._parse(section[key], parse)
            for key, (field, parse) in table.items()
            if key in section
        }
        return {field: value for field, value in fields.items() if value is not None}

    def _status(self, given: Section) -> StatusConfig:
        status = StatusConfig(**self._fields(given, _STATUS))
        if status.listen is None:
            return status
        (address, number), node = status.listen, given["listen"]
        if status.token is None and not is_loopback(address):
            error = ParseError(
                f"{quote(node.plain())} is open to other machines, which requires a `status.token`",
                hint="set one, or listen on `127.0.0.1`",
            )
            self._problems.append(node.problem(error))
        port = Port(0, number, Protocol.TCP)
        listener = Target("", Kind.PROXY, "", (port,), listen=address, file=self._path)
        # It comes first, so that a conflict is reported at the target.
        self._addresses.insert(
            0, ListenAddress(listener, port, node.line, node.column, owner="`status.listen`")
        )
        return status

    def _agent(self, given: Section) -> AgentConfig:
        fields = self._fields(given, _AGENT)
        if "patches" in given:
            patches = [self._patch(_section(entry)) for entry in _items(given["patches"])]
            fields["patches"] = tuple(patch for patch in patches if patch is not None)
        return AgentConfig(**fields)

    def _patch(self, entry: Section) -> Patch | None:
        """Return the patch of an entry; None if it has a problem.

        The problems of a patch in a separate file have the path of that file.
        """
        words: dict[str, str] = {
            key: entry[key].plain() for key in ("type", "target") if key in entry
        }
        if "patch" in entry:
            return _make_patch(entry["patch"], words, self._problems)
        if "file" not in entry:
            return None
        name = entry["file"]
        try:
            path, data = self._files.named(name.plain(), self._path)
        except ParseError as error:
            self._problems.append(name.problem(error))
            return None
        patch, problems = _parse_patch(data, path, self._files, words)
        self._problems += [dataclasses.replace(problem, path=path) for problem in problems]
        return patch

    def _targets(self, defaults: dict[str, Any]) -> Iterator[Target]:
        for name, place, node in _named(self._root.get("targets")):
            line, places, own = (
                self._short(node) if isinstance(node.value, str) else self._long(_section(node))
            )
            if line is None:
                continue
            fields: dict[str, Any] = {**defaults, **own}
            target = target_of(line, name=name, place=place, file=self._path, **fields)
            self._addresses += [
                ListenAddress(target, port, *at)
                for port, at in zip(line.ports, places, strict=True)
            ]
            yield target
            if len(self._addresses) > MAX_FORWARDS:
                break  # `join` reports it

    def _short(self, node: Node) -> tuple[Line | None, list[tuple[int, int]], dict[str, Any]]:
        """Read a target that is one line: the line, the place of each port, and no fields."""
        line, errors = parse_line(split(node.plain()))
        self._problems += map(node.problem, errors)
        if line is None:
            return None, [], {}
        if node.inside is None:
            return line, [(node.line, node.column)] * len(line.ports), {}
        return line, [(node.line, node.inside + offset) for offset in line.offsets], {}

    def _long(self, given: Section) -> tuple[Line | None, list[tuple[int, int]], dict[str, Any]]:
        """Read a target that is a mapping: its line, the place of each port, its other fields."""
        before = len(self._problems)
        found: tuple[Kind, str] | None = None
        if "target" in given:
            found = self._parse(given["target"], parse_resource)
        nodes = _items(given.get("ports")) + ([given["port"]] if "port" in given else [])
        ports = [(self._port(node, found[0] if found else None), node) for node in nodes]
        own = self._fields(given, _OF_TARGET)
        if found is None or len(self._problems) > before:
            return None, [], own
        whole = [(port, node) for port, node in ports if port is not None]
        line = Line(*found, tuple(port for port, _ in whole))
        return line, [(node.line, node.column) for _, node in whole], own

    def _port(self, node: Node, kind: Kind | None) -> Port | None:
        def checked(port: Port) -> Port:
            if kind is not None:
                check_port(kind, port)
            return port

        def text(value: Any) -> str:
            return value if isinstance(value, str) else str(int(value))

        if not isinstance(node.value, dict):
            found: Port | None = self._parse(node, lambda value: checked(parse_port(text(value))))
            return found
        given = _section(node)
        if "remote" not in given:
            return None
        far = self._parse(
            given["remote"], lambda value: checked(Port(parse_remote(text(value)))).remote
        )
        if far is None:
            return None
        local = int(given["local"].plain()) if "local" in given else None
        return Port(
            far,
            local=far if local is None and isinstance(far, int) else local,
            protocol=Protocol(given["protocol"].plain()) if "protocol" in given else None,
        )

    def _proxies(self, defaults: dict[str, Any]) -> Iterator[Target]:
        for name, (line, column), node in _named(self._root.get("proxies")):
            entry = _section(node)
            fields = self._fields(entry, _PROXY)
            texts = {key: entry[key].plain() for key in ("username", "password") if key in entry}
            # A key that the tree has lost was invalid, and has been reported.
            left = node.value if isinstance(node.value, dict) else {}
            invalid = bool((node.keys.keys() - left.keys()) & {"username", "password"})
            for key in texts if len(texts) == 1 and not invalid else ():
                other = "password" if key == "username" else "username"
                message = f"`{key}` without `{other}`"
                self._problems.append(Problem(*node.keys[key], message, "write both, or neither"))
            target = proxy_target(
                name,
                fields.pop("port", PROXY_PORT),
                **{
                    "context": defaults.get("context"),
                    "listen": defaults.get("listen", LOOPBACK),
                    "via": defaults.get("via", Via.AUTO),
                    **fields,
                },
                credentials=(texts["username"], texts["password"]) if len(texts) == 2 else None,
                line=line,
                column=column,
                file=self._path,
            )
            self._addresses.append(ListenAddress(target, target.ports[0], line, column))
            message = exposure(target) or ""
            if message and not texts and not invalid:
                hint = "write both, listen on `127.0.0.1`, or set `insecure: true`"
                at = entry["listen"] if "listen" in entry else Node(line, column, None)
                self._problems.append(at.problem(ParseError(message, hint=hint)))
            yield target


# -- patches of the agent ----------------------------------------------------------------------


def parse_patch(
    data: bytes, path: str, environ: Mapping[str, str], *, kind: str | None = None
) -> Patch:
    """Parse a patch in JSON or YAML. `kind` is its type; by default a list is json, else strategic.

    Raises:
        ConfigError: the data is not a patch; carries every problem.
    """
    patch, problems = _parse_patch(data, path, Files(environ), {"type": kind or ""})
    if patch is None or problems:
        raise ConfigError(path, problems)
    return patch


def _parse_patch(
    data: bytes, path: str, files: Files, words: dict[str, str]
) -> tuple[Patch | None, list[Problem]]:
    """Return the patch in a file, or None, and every problem; `words` has its type and target."""
    try:
        root, problems = yaml_reader.read(decode(data, path), files.environ)
    except ConfigError as exc:
        return None, exc.problems
    if root is None:
        return None, problems or [Problem(1, 1, "the file is empty", "write the patch into it")]
    body, more = validation.check(root, *validation.PATCH)
    problems += more
    return None if body is None else _make_patch(body, words, problems), problems


def _make_patch(body: Node, words: dict[str, str], problems: list[Problem]) -> Patch | None:
    """Return the patch; an empty type in `words` stands for that of a list or a mapping."""
    is_list = isinstance(body.value, list)
    if words.get("type") == "":
        words = {**words, "type": "json" if is_list else "strategic"}
    patch = Patch(tuple(body.plain()) if is_list else body.plain(), **words)
    if is_list == (patch.type == "json"):
        return patch
    if is_list:
        message, hint = "a list is a patch of type json", "write `type: json` beside it"
    else:
        message, hint = "a patch of type json is a list", "write `- {op: ..., path: ...}`"
    problems.append(Problem(body.line, body.column, message, hint))
    return None
