"""The grammar of a target: `TYPE/NAME`, `[LOCAL:]REMOTE[@PROTOCOL]`, and an address to listen on.

Pure, and the same for the file, targets.txt and the command line. Names and groups are the
ones that kubectl knows (`kubectl api-resources`).
"""

from __future__ import annotations

import difflib
import re
from ipaddress import IPv6Address, ip_address

from krelay.config.parse_error import Flaw, quote
from krelay.model import TYPES, Kind, Port, Protocol

# plural, singular, short names; the API group
_NAMES: dict[Kind, tuple[tuple[str, ...], str]] = {
    Kind.SERVICE: (("services", "service", "svc"), ""),
    Kind.DEPLOYMENT: (("deployments", "deployment", "deploy"), "apps"),
    Kind.STATEFULSET: (("statefulsets", "statefulset", "sts"), "apps"),
    Kind.DAEMONSET: (("daemonsets", "daemonset", "ds"), "apps"),
    Kind.REPLICASET: (("replicasets", "replicaset", "rs"), "apps"),
    Kind.JOB: (("jobs", "job"), "batch"),
    Kind.POD: (("pods", "pod", "po"), ""),
}
_KINDS = {name: kind for kind, (names, _) in _NAMES.items() for name in names}
_ALL_KINDS = ", ".join(f"`{kind}/`" for kind in TYPES)

_LABEL = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_OBJECT = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_HOST = re.compile(
    r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
    r"(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?"
)
_PORT_NAME = re.compile(_LABEL)
_PORT_HINT = "write `8080:80`, `8080`, `:80` or `8080:http`, with `/udp` or `/tcp` after it"
MAX_PORT = 65535


def parse_resource(text: str) -> tuple[Kind, str]:
    """What `svc/nginx`, `deployments.apps/web`, `ip/[::1]` or a pod's bare name means.

    Raises:
        Flaw: an unknown type, or a name that nothing can have.
    """
    prefix, slash, name = text.partition("/")
    if not slash:
        return Kind.POD, _object_name(prefix)
    kind = parse_kind(prefix)
    try:
        if kind is Kind.IP:
            return kind, _address(name)
        if kind is Kind.HOST:
            return kind, _host_name(name)
        return kind, _object_name(name)
    except Flaw as flaw:
        raise flaw.moved(len(prefix) + 1) from None


def parse_kind(text: str) -> Kind:
    """A type as kubectl takes it: any case, with or without its group and version."""
    name, dot, group = text.lower().partition(".")
    if not dot and name in (Kind.HOST, Kind.IP):
        return Kind(name)
    kind = _KINDS.get(name)
    if kind is not None:
        own = _NAMES[kind][1]
        # kubectl's full form ends in a dot where the group is the core one: `pods.v1.`
        if not dot or group in (own, f"v1.{own}") or (not own and group == "v1"):
            return kind
    near = difflib.get_close_matches(name[:80], [*_KINDS, Kind.HOST, Kind.IP], n=1, cutoff=0.7)
    if near and near[0] != name:
        hint = f"did you mean `{near[0]}/`?"
    else:
        hint = f"the types are {_ALL_KINDS}"
    raise Flaw(f"{quote(text)} is not a type of target", hint=hint)


def parse_port(text: str) -> Port:
    """A forward from `[LOCAL:]REMOTE[@PROTOCOL]` or `[LOCAL:]REMOTE[/PROTOCOL]`.

    Raises:
        Flaw: not of that form, a port out of range, an unknown protocol.
    """
    ports, protocol = _split_protocol(text)
    local_text, colon, remote_text = ports.rpartition(":")
    offset = len(local_text) + len(colon)
    if ":" in local_text:
        raise Flaw(f"{quote(text)} has one `:` too many", hint=_PORT_HINT)
    try:
        remote = parse_remote(remote_text)
    except Flaw as flaw:
        raise flaw.moved(offset) from None
    if not colon:
        return Port(remote, local=remote if isinstance(remote, int) else None, protocol=protocol)
    if local_text and not _is_number(local_text):
        raise Flaw(f"the local port {quote(local_text)} is not a number", hint=_PORT_HINT)
    return Port(remote, local=_number(local_text, lowest=0) if local_text else 0, protocol=protocol)


def parse_remote(text: str) -> int | str:
    """The port on the far side: a number, or a port's name.

    Raises:
        Flaw: neither.
    """
    if _is_number(text):
        return _number(text, lowest=1)
    if not text:
        raise Flaw("no remote port", hint=_PORT_HINT)
    named = len(text) <= 63 and _PORT_NAME.fullmatch(text) and re.search("[a-z]", text)
    if not named:
        raise Flaw(f"{quote(text)} is neither a port nor a port's name", hint=_PORT_HINT)
    return text


def check_port(kind: Kind, port: Port) -> None:
    """What only shows when type and port are seen together.

    Raises:
        Flaw: a port's name on something that has no named ports.
    """
    if isinstance(port.remote, str) and not kind.in_cluster:
        raise Flaw(
            f"{quote(port.remote)} is a port's name, and `{kind}/` has none",
            hint="write the port's number",
        )


def parse_listen(text: str) -> str:
    """An address to listen on: IPv4, IPv6 (brackets or not, a scope or not), or `localhost`.

    Raises:
        Flaw: none of these.
    """
    if text.lower() == "localhost":
        return "localhost"
    try:
        address = ip_address(_unbracketed(text))
    except ValueError:
        raise Flaw(
            f"{quote(text)} is not an address to listen on",
            hint="write an IP address such as `127.0.0.1`, `0.0.0.0` or `::1`, or `localhost`",
        ) from None
    # an IPv6 socket that is IPv6 only, as krelay's are, cannot bind an IPv4-mapped address
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def _split_protocol(text: str) -> tuple[str, Protocol | None]:
    found = re.search("[@/]", text)
    if found is None:
        return text, None
    word = text[found.end() :]
    try:
        return text[: found.start()], Protocol(word.lower())
    except ValueError:
        raise Flaw(
            f"{quote(word)} is not a protocol", hint="`tcp` or `udp`", offset=found.end()
        ) from None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _number(text: str, *, lowest: int) -> int:
    # int() of a very long text costs quadratic time, and raises
    number = int(text) if len(text) <= 9 else MAX_PORT + 1
    if not lowest <= number <= MAX_PORT:
        raise Flaw(f"port {text[:12]} is out of range", hint=f"ports are {lowest} to {MAX_PORT}")
    return number


def _object_name(name: str) -> str:
    # RFC 1123 subdomain: apimachinery/pkg/util/validation, IsDNS1123Subdomain
    if not name:
        raise Flaw("no name", hint="write `TYPE/NAME`, for example `svc/nginx`")
    if len(name) > 253 or not _OBJECT.fullmatch(name):
        raise Flaw(
            f"{quote(name)} cannot be the name of an object",
            hint="names have lower-case letters, digits, `-` and `.`",
        )
    return name


def _host_name(name: str) -> str:
    if len(name) > 253 or not _HOST.fullmatch(name):
        hint = "an IPv6 address is written `ip/ADDRESS`" if ":" in name else None
        raise Flaw(f"{quote(name)} is not a host name", hint=hint or "for example `host/db.corp`")
    return name


def _address(text: str) -> str:
    try:
        address = ip_address(_unbracketed(text))
    except ValueError:
        raise Flaw(
            f"{quote(text)} is not an IP address",
            hint="for example `ip/10.0.0.7` or `ip/fd00::7`; a name is written `host/NAME`",
        ) from None
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise Flaw(
            f"{quote(text)} has a scope, which means nothing in the cluster",
            hint="leave out the part from `%` on",
        )
    return str(address)


def _unbracketed(text: str) -> str:
    return text[1:-1] if text.startswith("[") and text.endswith("]") else text
