"""Entries: the clusters, users and contexts of kubeconfig files, as client-go reads them.

As tools/clientcmd/loader.go, and api/v1/types.go and conversion.go beside it. Of several files, the
first that defines an entry, or the current context, wins. Paths are relative to the file that holds
them. All functions block: call them in a thread.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from krelay import typed
from krelay.cluster.auth.files import decode_base64, read_once
from krelay.cluster.auth.go_yaml import NotYamlError, read_yaml
from krelay.errors import CredentialsError
from krelay.typed import AnyValue, Boolean, ListOf, MapOf, Mismatch, Schema, Shape, String, fields


@dataclass(frozen=True, slots=True)
class _OrEmpty:
    """`schema`, or `empty` for null: what Go makes of a null in a list."""

    schema: Schema
    empty: Any

    def read(self, value: Any) -> Any:
        return self.empty if value is None else self.schema.read(value)


class _Base64:
    """Text in base64."""

    def read(self, value: Any) -> str:
        text = String().read(value)
        try:
            decode_base64(text)
        except ValueError:
            raise Mismatch("expected base64") from None
        return text


_OS_STRING = String(without="\0")
"""A path, an argument or a variable: the operating system takes no NUL."""
_STRING, _BOOLEAN, _DATA = String(), Boolean(), _Base64()
_STRINGS = ListOf(_OrEmpty(_STRING, ""))


class _Extensions:
    """A list of extensions, as a dict of their values by name."""

    def read(self, value: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for item in ListOf(_OrEmpty(_EXTENSION, {})).read(value):
            if (name := item.get("name", "")) in found:
                raise Mismatch(f"{_quoted(name)} is there twice")
            found[name] = item.get("extension")
        return found


_EXTENSION = Shape({"name": _STRING, "extension": AnyValue()})
_EXTENSIONS: dict[str, Schema] = {"extensions": _Extensions()}
_CLUSTER = Shape(
    fields(_STRING, "server", "tls-server-name", "proxy-url")
    | fields(_BOOLEAN, "insecure-skip-tls-verify", "disable-compression")
    | {"certificate-authority": _OS_STRING, "certificate-authority-data": _DATA}
    | _EXTENSIONS
)
_VARIABLE = Shape({"name": String(without="\0="), "value": _OS_STRING})
_EXEC = Shape(
    {
        "command": _OS_STRING,
        "args": ListOf(_OrEmpty(_OS_STRING, "")),
        "env": ListOf(_OrEmpty(_VARIABLE, {})),
        "apiVersion": _STRING,
        "installHint": _STRING,
        "provideClusterInfo": _BOOLEAN,
        "interactiveMode": _STRING,
    }
)
_USER = Shape(
    fields(_OS_STRING, "client-certificate", "client-key", "tokenFile")
    | fields(_DATA, "client-certificate-data", "client-key-data")
    | fields(_STRING, "token", "username", "password", "as", "as-uid")
    | {"as-groups": _STRINGS, "as-user-extra": MapOf(_STRINGS)}
    | {"auth-provider": Shape({"name": _STRING, "config": MapOf(_STRING)})}
    | {"exec": _EXEC}
    | _EXTENSIONS
)
_CONTEXT = Shape(fields(_STRING, "cluster", "user", "namespace") | _EXTENSIONS)
_NAMED = Shape({"name": _STRING})
_FILE = Shape(
    fields(_STRING, "apiVersion", "kind", "current-context")
    | fields(ListOf(AnyValue()), "clusters", "users", "contexts")
    | {"preferences": Shape(fields(_BOOLEAN, "colors") | _EXTENSIONS)}
    | _EXTENSIONS
)
"""As client-go's tools/clientcmd/api/v1/types.go; kubectl refuses a field of another type too."""


@dataclass(frozen=True, slots=True)
class Entries:
    """The entries of kubeconfig by name, with absolute paths, and the current context."""

    clusters: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    users: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    contexts: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    current: str | None = None


_SHOWN = 100
_KEPT = 32
_SETTLED = 2 * 10**9  # nanoseconds after which another edit has another time on any file system
_lock = threading.Lock()
_piped: dict[tuple[object, ...], bytes] = {}


@dataclass(frozen=True, slots=True)
class _Reading:
    """What a file had when it was read; `stamp` is None if it may have changed within its time."""

    stamp: tuple[int, ...] | None
    digest: bytes
    entries: Entries


_readings: dict[str, _Reading] = {}
"""All contexts share one reading of a file."""


def read_entries(paths: Sequence[str]) -> Entries:
    """Return the entries of those of the files that exist.

    Raises:
        CredentialsError: a file cannot be read, or is not a kubeconfig.
    """
    found = Entries()
    current = None
    for path in paths:
        try:
            with _lock:
                entries = _read_file(path)
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise CredentialsError(f"cannot read {path}: {exc.strerror}") from exc
        for ours, theirs in (
            (found.clusters, entries.clusters),
            (found.users, entries.users),
            (found.contexts, entries.contexts),
        ):
            ours |= theirs | ours
        current = current or entries.current
    return Entries(found.clusters, found.users, found.contexts, current)


def _read_file(path: str) -> Entries:
    known = _readings.pop(path, None)
    found = os.stat(path)
    stamp = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    if known is None or known.stamp != stamp:
        settled = found.st_mtime_ns < time.time_ns() - _SETTLED
        data = read_once(path, _piped)
        digest = hashlib.sha256(data).digest()
        entries = known.entries if known and known.digest == digest else _parse(path, data)
        known = _Reading(stamp if settled else None, digest, entries)
    _readings[path] = known
    while len(_readings) > _KEPT:
        del _readings[next(iter(_readings))]
    return known.entries


def _parse(path: str, data: bytes) -> Entries:
    try:
        document = read_yaml(data)
    except NotYamlError as exc:
        raise CredentialsError(f"{path} is not a kubeconfig: {exc}") from None
    if document is None:
        return Entries()
    source = f"kubeconfig {path}"
    body = typed.read(_FILE, document, source, error=CredentialsError)
    for name, expected in (("apiVersion", "v1"), ("kind", "Config")):
        if body.get(name) not in (None, "", expected):
            raise CredentialsError(f"{path} is not a kubeconfig: its {name} is not {expected}")
    folder = Path(path).absolute().parent

    def named(kind: str, schema: Schema) -> dict[str, Mapping[str, Any]]:
        found = _read_named(kind, schema, body.get(f"{kind}s", ()), source)
        return {name: _with_absolute_paths(entry, folder) for name, entry in found}

    return Entries(
        named("cluster", _CLUSTER),
        named("user", _USER),
        named("context", _CONTEXT),
        body.get("current-context") or None,
    )


def _read_named(
    kind: str, schema: Schema, items: Sequence[Any], source: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the entries of a list by name. As in Go, null is an entry without a name."""
    seen = set()
    for index, given in enumerate(items):
        item = {} if given is None else given
        head = typed.read(_NAMED, item, f"{source}: {kind}s[{index}]", error=CredentialsError)
        if (name := head.get("name", "")) in seen:
            raise CredentialsError(f"{source}: the {kind} {_quoted(name)} is there twice")
        seen.add(name)
        where = f"{source}: {kind} {_quoted(name)}"
        body = {} if item.get(kind) is None else item[kind]
        yield name, typed.read(schema, body, where, error=CredentialsError)


def _quoted(name: str) -> str:
    return f'"{name if len(name) <= _SHOWN else name[:_SHOWN] + "..."}"'


def _with_absolute_paths(entry: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Return the entry with its paths resolved against `folder`."""
    out = dict(entry)
    for key in ("certificate-authority", "client-certificate", "client-key", "tokenFile"):
        if out.get(key):
            out[key] = os.path.join(folder, out[key])
    if (plugin := out.get("exec")) and os.sep in plugin.get("command", ""):
        out["exec"] = {**plugin, "command": os.path.join(folder, plugin["command"])}
    return out
