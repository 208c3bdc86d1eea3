"""Parse the texts that a value of the file can be: targets, ports, addresses, checks, durations.

Every parser here is pure, raises `ParseError` for a text that it refuses, and is the only one of
its kind: krelay.yaml, targets.txt and the command line share them. Names and API groups of types
are those that kubectl knows (`kubectl api-resources`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from itertools import takewhile
from typing import Any, TypeVar

from krelay.errors import Problem
from krelay.model import (
    LOOPBACK,
    TYPES,
    UDP_CLIENTS,
    Affinity,
    Check,
    CheckKind,
    Kind,
    Port,
    Protocol,
    Target,
    Via,
)

MAX_PORT = 65535
_T = TypeVar("_T")


class ParseError(ValueError):
    """One thing wrong in one text; `offset` counts characters from its start, from 0."""

    def __init__(self, message: str, *, hint: str | None = None, offset: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.offset = offset

    def moved(self, by: int) -> ParseError:
        """Return the error for a longer text that holds this one `by` characters further in."""
        return ParseError(self.message, hint=self.hint, offset=self.offset + by)

    def at(self, line: int, column: int) -> Problem:
        """Return the error as a problem of a file; `column` (from 1) is where the text starts."""
        return Problem(line, column + self.offset, self.message, self.hint)


def quote(value: object, limit: int = 60) -> str:
    """Return a user's value for a message: in backticks, printable, at most `limit` characters."""
    shown = str(value)[: limit + 1]
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)
    if not text:
        return '`""`'
    mark = "'" if "`" in text else "`"
    return f"{mark}{text[:limit]}{'…' if len(text) > limit else ''}{mark}"


# -- targets: TYPE/NAME ------------------------------------------------------------------------

NAMES: dict[Kind, tuple[tuple[str, ...], str]] = {
    Kind.SERVICE: (("services", "service", "svc"), ""),
    Kind.DEPLOYMENT: (("deployments", "deployment", "deploy"), "apps"),
    Kind.STATEFULSET: (("statefulsets", "statefulset", "sts"), "apps"),
    Kind.DAEMONSET: (("daemonsets", "daemonset", "ds"), "apps"),
    Kind.REPLICASET: (("replicasets", "replicaset", "rs"), "apps"),
    Kind.JOB: (("jobs", "job"), "batch"),
    Kind.POD: (("pods", "pod", "po"), ""),
}
"""For each kind of object: its plural, singular and short names, and its API group."""
_KINDS = {name: kind for kind, (names, _) in NAMES.items() for name in names}
_ALL_KINDS = ", ".join(f"`{kind}/`" for kind in TYPES)

_LABEL = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_OBJECT = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_HOST = re.compile(
    r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
    r"(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?"
)
_NAME_OF_TARGET = re.compile(r"[a-z0-9][a-z0-9.:-]*")
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def parse_resource(text: str) -> tuple[Kind, str]:
    """Parse `svc/nginx`, `deployments.apps/web`, `ip/[::1]` or the bare name of a pod."""
    prefix, slash, name = text.partition("/")
    if not slash:
        return Kind.POD, _object_name(prefix)
    kind = parse_kind(prefix)
    parse = {Kind.IP: _address, Kind.HOST: _host_name}.get(kind, _object_name)
    try:
        return kind, parse(name)
    except ParseError as error:
        raise error.moved(len(prefix) + 1) from None


def parse_kind(text: str) -> Kind:
    """Parse a type as kubectl does: in any case, with or without its API group and version."""
    if not text:
        raise ParseError("no type", hint=f"the types are {_ALL_KINDS}")
    name, dot, group = text.lower().partition(".")
    if not dot and name in (Kind.HOST, Kind.IP):
        return Kind(name)
    kind = _KINDS.get(name)
    if kind is not None:
        own = NAMES[kind][1]
        # kubectl's full form of a core type ends in a dot, for example `pods.v1.`
        if not dot or group in (own, f"v1.{own}") or (not own and group == "v1"):
            return kind
    near = difflib.get_close_matches(name[:80], [*_KINDS, Kind.HOST, Kind.IP], n=1, cutoff=0.7)
    if near and near[0] != name:
        hint = f"did you mean `{near[0]}/`?"
    else:
        hint = f"the types are {_ALL_KINDS}"
    raise ParseError(f"{quote(text)} is not a type of target", hint=hint)


def parse_namespace(text: str) -> str:
    """Parse the name of a namespace (an RFC 1123 label)."""
    if not _NAMESPACE.fullmatch(text):
        raise ParseError(
            f"{quote(text)} cannot be a namespace",
            hint="lower-case letters, digits and `-`, at most 63",
        )
    return text


def _object_name(name: str) -> str:
    # RFC 1123 subdomain: apimachinery/pkg/util/validation, IsDNS1123Subdomain
    if not name:
        raise ParseError("no name", hint="write `TYPE/NAME`, for example `svc/nginx`")
    if len(name) > 253 or not _OBJECT.fullmatch(name):
        raise ParseError(
            f"{quote(name)} cannot be the name of an object",
            hint="names have lower-case letters, digits, `-` and `.`",
        )
    return name


def _host_name(name: str) -> str:
    if len(name) > 253 or not _HOST.fullmatch(name):
        hint = "an IPv6 address is written `ip/ADDRESS`" if ":" in name else None
        raise ParseError(
            f"{quote(name)} is not a host name", hint=hint or "for example `host/db.corp`"
        )
    return name


def _address(text: str) -> str:
    try:
        address = ip_address(_unbracketed(text))
    except ValueError:
        raise ParseError(
            f"{quote(text)} is not an IP address",
            hint="for example `ip/10.0.0.7` or `ip/fd00::7`; a name is written `host/NAME`",
        ) from None
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise ParseError(
            f"{quote(text)} has a scope, which means nothing in the cluster",
            hint="leave out the part from `%` on",
        )
    return str(address)


def _unbracketed(text: str) -> str:
    return text[1:-1] if text.startswith("[") and text.endswith("]") else text


# -- ports: [LOCAL:]REMOTE[/PROTOCOL] ----------------------------------------------------------

_PORT_NAME = re.compile(_LABEL)
_PORT_HINT = "write `8080:80`, `8080`, `:80` or `8080:http`, with `/udp` or `/tcp` after it"


def parse_port(text: str) -> Port:
    """Parse a forward: `[LOCAL:]REMOTE[@PROTOCOL]` or `[LOCAL:]REMOTE[/PROTOCOL]`."""
    ports, protocol = _split_protocol(text)
    local_text, colon, remote_text = ports.rpartition(":")
    if ":" in local_text:
        raise ParseError(f"{quote(text)} has one `:` too many", hint=_PORT_HINT)
    try:
        remote = parse_remote(remote_text)
    except ParseError as error:
        raise error.moved(len(local_text) + len(colon)) from None
    if not colon:
        return Port(remote, local=remote if isinstance(remote, int) else None, protocol=protocol)
    if local_text and not _is_number(local_text):
        raise ParseError(f"the local port {quote(local_text)} is not a number", hint=_PORT_HINT)
    return Port(remote, local=_number(local_text, lowest=0) if local_text else 0, protocol=protocol)


def parse_remote(text: str) -> int | str:
    """Parse the remote port: a number, or the name of a port."""
    if _is_number(text):
        return _number(text, lowest=1)
    if not text:
        raise ParseError("no remote port", hint=_PORT_HINT)
    named = len(text) <= 63 and _PORT_NAME.fullmatch(text) and re.search("[a-z]", text)
    if not named:
        raise ParseError(f"{quote(text)} is neither a port nor a port's name", hint=_PORT_HINT)
    return text


def check_port(kind: Kind, port: Port) -> None:
    """Check that a target of this kind can have this port."""
    if isinstance(port.remote, str) and not kind.in_cluster:
        raise ParseError(
            f"{quote(port.remote)} is a port's name, and `{kind}/` has none",
            hint="write the port's number",
        )


def _split_protocol(text: str) -> tuple[str, Protocol | None]:
    found = re.search("[@/]", text)
    if found is None:
        return text, None
    before, word = text[: found.start()], text[found.end() :]
    try:
        return before, Protocol(word.lower())
    except ValueError:
        is_kind = before in _KINDS or before in (Kind.HOST, Kind.IP)
        if found.group() == "/" and is_kind and _NAME_OF_TARGET.fullmatch(word):
            raise ParseError(
                f"{quote(text)} is a second target",
                hint="a line has one target; a file has several (`-f FILE`)",
            ) from None
        raise ParseError(
            f"{quote(word)} is not a protocol", hint="`tcp` or `udp`", offset=found.end()
        ) from None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _number(text: str, *, lowest: int) -> int:
    # int() takes quadratic time for a very long text, and then raises.
    number = int(text) if len(text) <= 9 else MAX_PORT + 1
    if not lowest <= number <= MAX_PORT:
        raise ParseError(
            f"port {text[:12]} is out of range", hint=f"ports are {lowest} to {MAX_PORT}"
        )
    return number


# -- local addresses ---------------------------------------------------------------------------

_LISTEN_HINT = "write `127.0.0.1:9527`, `[::1]:9527` or `9527`"


def parse_listen(text: str) -> str:
    """Parse an address to listen on: `localhost`, IPv4, or IPv6 (also with brackets or a scope)."""
    if text.lower() == "localhost":
        return "localhost"
    try:
        address = ip_address(_unbracketed(text))
    except ValueError:
        raise ParseError(
            f"{quote(text)} is not an address to listen on",
            hint="write an IP address such as `127.0.0.1`, `0.0.0.0` or `::1`, or `localhost`",
        ) from None
    # krelay's IPv6 sockets are IPv6 only, and cannot bind an IPv4-mapped address.
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def parse_listen_address(value: float | str) -> tuple[str, int]:
    """Parse `ADDRESS:PORT`, or a port of 127.0.0.1; port 0 means a free one."""
    text = value if isinstance(value, str) else str(int(value))
    address, colon, port = text.rpartition(":")
    if not _is_number(port):
        raise ParseError(f"{quote(text)} has no port", hint=_LISTEN_HINT)
    number = _number(port, lowest=0)
    if not colon:
        return LOOPBACK, number
    if ":" in address and not address.startswith("["):
        raise ParseError(
            f"{quote(text)} is ambiguous: an IPv6 address needs brackets", hint=_LISTEN_HINT
        )
    return parse_listen(address), number


# -- durations and sizes -----------------------------------------------------------------------

LONGEST_DURATION = 86_400.0
SMALLEST_SIZE, LARGEST_SIZE = 128 << 10, 256 << 20
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DECIMAL = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")
_DURATION_PART = re.compile(rf"({_DECIMAL.pattern})(ms|[hms])")
_MAX_DURATION_TEXT = 100  # four parts are shorter
_BYTES = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20}
_SIZE = re.compile(r"([0-9]{1,12})(Ki|Mi)?")


def parse_duration(value: float | str, *, positive: bool = False) -> float:
    """Parse `30s`, `5m`, `1h30m`, `500ms` or a number of seconds; return seconds.

    The result is at least 0 (more than 0 if `positive`) and at most one day.
    """
    seconds = _seconds(value) if isinstance(value, str) else float(value)
    if not 0 <= seconds <= LONGEST_DURATION:
        raise ParseError(f"{quote(value)} is out of range", hint="at most one day, `24h`")
    if positive and not seconds:
        raise ParseError(f"{quote(value)} is out of range", hint="more than 0")
    return seconds


def _seconds(text: str) -> float:
    if _DECIMAL.fullmatch(text):
        return float(text)
    parts = _DURATION_PART.findall(text[:_MAX_DURATION_TEXT])
    # Each unit appears at most once, from the largest down.
    ranks = [list(_SECONDS).index(unit) for _, unit in parts]
    whole = "".join(number + unit for number, unit in parts) == text
    if not parts or not whole or ranks != sorted(set(ranks)):
        raise ParseError(
            f"{quote(text)} is not a duration", hint="for example `30s`, `1h30m` or `500ms`"
        )
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def parse_size(value: float | str) -> int:
    """Parse `4Mi`, `512Ki` or a number of bytes; return bytes, from 128 KiB to 256 MiB."""
    match = _SIZE.fullmatch(value if isinstance(value, str) else f"{value:.15g}")
    if match is None:
        raise ParseError(f"{quote(value)} is not a size", hint="for example `4Mi` or `512Ki`")
    size = int(match[1]) * _BYTES[match[2] or ""]
    if not SMALLEST_SIZE <= size <= LARGEST_SIZE:
        raise ParseError(f"{quote(value)} is out of range", hint="from `128Ki` to `256Mi`")
    return size


# -- checks: auto, dial, none, dns NAME, http [METHOD] /PATH [-> STATUS] ---------------------------

# [METHOD] /PATH [-> STATUS]; the arrow needs a space on one side, since a path may contain it
_REQUEST = re.compile(
    r"(?:(?P<method>[A-Za-z]+) (?!->))?(?P<path>\S+?)(?:(?: -> ?|-> (?!->))(?P<status>\S+))?"
)
_HTTP_METHOD = re.compile(r"[A-Z]{1,20}")
_HTTP_PATH = re.compile(r"/[!-~]{0,2000}")
_HTTP_STATUS = re.compile("[1-5][0-9][0-9]")
_DNS_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_MAX_NAME = 253
_CHECK_HINT = "`auto`, `dial`, `http GET /healthz -> 200`, `dns example.com` or `none`"


def parse_check(text: str) -> Check:
    """Parse a check written on one line."""
    words = text.split()
    kind = words[0].lower() if words else ""
    if len(words) == 1 and kind in (CheckKind.AUTO, CheckKind.DIAL, CheckKind.NONE):
        return Check(CheckKind(kind))
    if kind == CheckKind.HTTP and (found := _REQUEST.fullmatch(" ".join(words[1:]))):
        return _http(found["method"] or "GET", found["path"], found["status"])
    if kind == CheckKind.DNS and len(words) == 2:
        return _dns(words[1])
    hint = "for example `http GET /healthz`" if kind == CheckKind.HTTP else _CHECK_HINT
    raise ParseError(f"{quote(text)} is not a check", hint=hint)


def read_check(parts: Mapping[str, Any]) -> Check:
    """Read a check written as a mapping, which has passed the schema."""
    if len(parts) > 1:
        raise ParseError("has both `http` and `dns`", hint="a target has one check: remove one")
    if not parts:
        return Check()  # the schema has reported what stood here
    if parts.get("dns") is not None:
        return _dns(parts["dns"])
    given = parts.get("http") or {}
    status = given.get("status")
    return _http(
        given.get("method") or "GET",
        given.get("path") or "/",
        None if status is None else str(int(status)),
    )


def _http(method: str, path: str, status: str | None) -> Check:
    method = method.upper()
    for text, pattern, what, hint in (
        (method, _HTTP_METHOD, "an HTTP method", "for example `GET` or `HEAD`"),
        (path, _HTTP_PATH, "a path", "it starts with `/`, for example `/healthz`"),
        (status, _HTTP_STATUS, "an HTTP status", "100 to 599, for example `200`"),
    ):
        if text is not None and not pattern.fullmatch(text):
            raise ParseError(f"{quote(text)} is not {what}", hint=hint)
    return Check(CheckKind.HTTP, method, path, int(status) if status else None)


def _dns(name: str) -> Check:
    labels = name.removesuffix(".").split(".")
    if len(name) > _MAX_NAME or not all(map(_DNS_LABEL.fullmatch, labels)):
        raise ParseError(f"{quote(name)} is not a DNS name", hint="for example `example.com`")
    return Check(CheckKind.DNS, name=name)


# -- lines: [-n NAMESPACE] [-l ADDRESS] TYPE/NAME PORT..., in any order ------------------------

MAX_ERRORS = 100
"""Errors reported for one line."""
_WORD = re.compile(r"\S+")
_EXAMPLE = "for example `svc/nginx 8080:80`"
_OPTIONS: dict[str, tuple[str, Callable[[str], str]]] = {
    "-n": ("namespace", parse_namespace),
    "--namespace": ("namespace", parse_namespace),
    "-l": ("listen", parse_listen),
    "--address": ("listen", parse_listen),
}


@dataclass(frozen=True, slots=True)
class Word:
    """A word and its offset in its line, from 0."""

    text: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Line:
    """A parsed line. `offsets` has the offset of each port's word."""

    kind: Kind
    resource: str
    ports: tuple[Port, ...]
    namespace: str | None = None
    listen: str | None = None
    offsets: tuple[int, ...] = ()

    def __str__(self) -> str:
        """The line in its normal form, which parses to an equal line."""
        words = [f"{self.kind}/{self.resource}", *map(str, self.ports)]
        if self.namespace is not None:
            words += ["-n", self.namespace]
        if self.listen is not None:
            words += ["-l", self.listen]
        return " ".join(words)


def split(text: str) -> list[Word]:
    """Split a line into words, without its comment: a word that starts with `#` or `//`."""
    words = (Word(match[0], match.start()) for match in _WORD.finditer(text))
    return list(takewhile(lambda word: not word.text.startswith(("#", "//")), words))


def parse_line(words: Sequence[Word]) -> tuple[Line | None, list[ParseError]]:
    """Parse the words of a line; return the line, or None and every error in it.

    The first word that is not an option is the target; the others are its ports. `-n X`, `-n=X` and
    `-nX` are the same, and so are the two forms of the long options.
    """
    errors: list[ParseError] = []
    fields: dict[str, Any] = {}
    plain: list[Word] = []
    rest = iter(words)
    for word in rest:
        if not word.text.startswith("-"):
            plain.append(word)
            continue
        name, value = _split_option(word)
        if name not in _OPTIONS:
            # The next word may or may not be its value, so parsing stops here.
            hint = "`-n NAMESPACE` and `-l ADDRESS` are known"
            errors.append(
                ParseError(f"unknown option {quote(name)}", hint=hint, offset=word.offset)
            )
            return None, errors
        field, parse = _OPTIONS[name]
        value = next(rest, None) if value is None else value
        if value is None:
            hint = f"write `{name} {field.upper()}`"
            errors.append(ParseError(f"`{name}` has no value", hint=hint, offset=word.offset))
        elif len(errors) > MAX_ERRORS:
            break
        elif field in fields:
            message = f"`{name}` sets the {field} again"
            errors.append(ParseError(message, hint="write it once", offset=word.offset))
        else:
            fields[field] = _parse_word(value, parse, errors)
    if not plain:
        end = words[-1].offset + len(words[-1].text) if words else 0
        return None, [*errors, ParseError("no target", hint=_EXAMPLE, offset=end)]

    found, ports = _parse_target(plain, errors)
    if found is None or errors:
        return None, errors
    return Line(*found, tuple(ports), **fields, offsets=tuple(w.offset for w in plain[1:])), []


def target_of(
    line: Line,
    *,
    name: str | None = None,
    namespace: str | None = None,
    context: str | None = None,
    listen: str = LOOPBACK,
    check: Check = Check(),  # noqa: B008
    udp_clients: int = UDP_CLIENTS,
    via: Via = Via.AUTO,
    ready: bool = True,
    affinity: Affinity = Affinity.NONE,
    place: tuple[int, int] = (0, 0),
    file: str = "",
) -> Target:
    """Return the target of a line; the arguments supply what the line leaves out."""
    return Target(
        name=str(line) if name is None else name,
        kind=line.kind,
        resource=line.resource,
        ports=line.ports,
        namespace=namespace if line.namespace is None else line.namespace,
        context=context,
        listen=listen if line.listen is None else line.listen,
        check=check,
        udp_clients=udp_clients,
        via=via,
        ready=ready,
        affinity=affinity,
        line=place[0],
        column=place[1],
        file=file,
    )


def _parse_target(
    words: list[Word], errors: list[ParseError]
) -> tuple[tuple[Kind, str] | None, list[Port]]:
    found = _parse_word(words[0], parse_resource, errors)
    if not words[1:]:
        end = words[0].offset + len(words[0].text)
        errors.append(ParseError(f"{quote(words[0].text)} has no port", hint=_EXAMPLE, offset=end))

    def parse(text: str) -> Port:
        port = parse_port(text)
        if found is not None:
            check_port(found[0], port)
        return port

    ports: list[Port] = []
    for word in words[1:]:
        port = _parse_word(word, parse, errors)
        if port is not None:
            ports.append(port)
        if len(ports) > MAX_PORT:
            hint = f"a machine has {MAX_PORT} of them"
            errors.append(ParseError(f"more than {MAX_PORT} ports", hint=hint, offset=word.offset))
        if len(ports) > MAX_PORT or len(errors) > MAX_ERRORS:
            break
    return found, ports


def _parse_word(word: Word, parse: Callable[[str], _T], errors: list[ParseError]) -> _T | None:
    try:
        return parse(word.text)
    except ParseError as error:
        errors.append(error.moved(word.offset))
        return None


def _split_option(word: Word) -> tuple[str, Word | None]:
    """Return the name of an option, and its value if that is in the same word."""
    name, equals, value = word.text.partition("=")
    if name not in _OPTIONS and name[:2] in ("-n", "-l"):
        name, equals, value = name[:2], "", word.text[2:]
    if not equals and not value:
        return name, None
    return name, Word(value, word.offset + len(name) + len(equals))
