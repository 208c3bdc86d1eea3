"""Kubeconfig: find the API server and the user of a context.

krelay reads the files that kubectl reads, by its rules (kubernetes.io, "Organizing Cluster Access
Using kubeconfig Files"; client-go tools/clientcmd). Of several files, the first that defines an
entry, or the current context, wins. Paths are relative to the file that holds them. krelay never
writes a kubeconfig. All functions block: call them in a thread.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import difflib
import errno
import functools
import importlib
import importlib.util
import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from krelay import typed
from krelay.errors import CredentialsError
from krelay.typed import AnyValue, Boolean, ListOf, MapOf, OneOf, Shape, String, fields

MAX_FILE = 8 << 20  # bytes of a kubeconfig, or of a file that it names
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

_OS_STRING = String(without="\0")
"""A path, an argument or a variable: the operating system takes no NUL."""
_STRING, _BOOLEAN = String(), Boolean()
_EXTENSIONS = ListOf(Shape({"name": _STRING, "extension": AnyValue()}, needs=("name",)))
_CLUSTER = Shape(
    fields(_STRING, "server", "tls-server-name", "proxy-url")
    | fields(_BOOLEAN, "insecure-skip-tls-verify", "disable-compression")
    | {"certificate-authority": _OS_STRING, "certificate-authority-data": _STRING}
    | {"extensions": _EXTENSIONS}
)
_VARIABLE = Shape({"name": String(without="\0="), "value": _OS_STRING}, needs=("name",))
_EXEC = Shape(
    {
        "command": _OS_STRING,
        "args": ListOf(_OS_STRING),
        "env": ListOf(_VARIABLE),
        "apiVersion": _STRING,
        "installHint": _STRING,
        "provideClusterInfo": _BOOLEAN,
        "interactiveMode": OneOf(("Never", "IfAvailable", "Always")),
    }
)
_USER = Shape(
    fields(_OS_STRING, "client-certificate", "client-key", "tokenFile")
    | fields(_STRING, "client-certificate-data", "client-key-data", "token")
    | fields(_STRING, "username", "password", "as", "as-uid")
    | {"as-groups": ListOf(_STRING), "as-user-extra": MapOf(ListOf(_STRING))}
    | {"auth-provider": Shape({"name": _STRING, "config": MapOf(_STRING)})}
    | {"exec": _EXEC, "extensions": _EXTENSIONS}
)
_CONTEXT = Shape(fields(_STRING, "cluster", "user", "namespace") | {"extensions": _EXTENSIONS})
_NAMED = Shape({"name": _STRING}, needs=("name",))
_KINDS = {"cluster": _CLUSTER, "user": _USER, "context": _CONTEXT}
_Entries = dict[str, dict[str, Mapping[str, Any]]]
"""The entries of kubeconfig by kind and name."""
_FILE = Shape(
    fields(_STRING, "apiVersion", "kind", "current-context")
    | fields(ListOf(AnyValue()), "clusters", "users", "contexts")
)
"""As client-go's tools/clientcmd/api/v1/types.go; kubectl refuses a field of another type too."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """kubectl's connection flags; each one that is set wins over kubeconfig.

    `cluster` and `user` name entries of kubeconfig. `request_timeout` is in seconds.
    """

    cluster: str | None = None
    user: str | None = None
    server: str | None = None
    token: str | None = field(default=None, repr=False)
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    client_certificate: str | None = None
    client_key: str | None = None
    as_: str | None = None
    as_uid: str | None = None
    as_group: tuple[str, ...] = ()
    certificate_authority: str | None = None
    tls_server_name: str | None = None
    insecure_skip_tls_verify: bool | None = None
    request_timeout: float | None = None


NO_OVERRIDES = Overrides()


@dataclass(frozen=True, slots=True)
class Login:
    """The server and the user of one context.

    `server` is a URL without a trailing slash, perhaps with a path. `cluster` and `user` are the
    entries of kubeconfig, with absolute paths. `context` is None inside a cluster. `current` is
    kubeconfig's current context, whichever context this is.
    """

    server: str
    namespace: str
    cluster: Mapping[str, Any] = field(repr=False)
    user: Mapping[str, Any] = field(default_factory=dict, repr=False)
    context: str | None = None
    current: str | None = field(default=None, compare=False)
    in_cluster: bool = False

    def __str__(self) -> str:
        return f"context {self.context}, {self.address}" if self.context else self.address

    @property
    def address(self) -> str:
        """The server without a user name or a password."""
        parts = urlsplit(self.server)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def load(
    context: str | None = None,
    kubeconfig: str | None = None,
    overrides: Overrides = NO_OVERRIDES,
    *,
    environ: Mapping[str, str] = os.environ,
    service_account: Path = SERVICE_ACCOUNT,
    pinned: Login | None = None,
) -> Login:
    """Return the login of `context` (None: the current one), or of the pod that krelay runs in.

    With `pinned`, an earlier result, return what its context is now. Neither another
    current-context nor a kubeconfig that appears in a pod leads elsewhere.

    Raises:
        CredentialsError: a file, context, cluster or user is missing, or a file is invalid.
    """
    if pinned is not None and pinned.in_cluster:
        return _apply(overrides, _in_cluster(environ, service_account))
    paths = _paths(kubeconfig, environ)
    entries, current = _read(paths)
    if pinned is not None:
        login = _select_context(pinned.context, entries, overrides)
        return _apply(overrides, replace(login, namespace=pinned.namespace))
    found = entries["context"] or entries["cluster"]
    if not found and kubeconfig is None and context is None:
        token = service_account / "token"
        if environ.get("KUBERNETES_SERVICE_HOST") and token.is_file():
            return _apply(overrides, _in_cluster(environ, service_account))
        if not overrides.server:
            raise CredentialsError(
                f"no kubeconfig: {os.pathsep.join(paths)} is missing or empty",
                hint="set KUBECONFIG, or write ~/.kube/config; "
                "`kubectl config view` shows what kubectl would use",
            )
    login = _select_context(context or current, entries, overrides)
    return _apply(overrides, replace(login, current=current))


class PinnedContext:
    """The login of one context: what kubeconfig says of it at each call.

    The first call decides which context and namespace that are, as `load` does. Blocks.
    """

    def __init__(
        self,
        context: str | None = None,
        kubeconfig: str | None = None,
        overrides: Overrides = NO_OVERRIDES,
    ) -> None:
        self._load = functools.partial(load, context, kubeconfig, overrides)
        self._pinned: Login | None = None

    def __call__(self) -> Login:
        """Return the login as it is now. Raises CredentialsError as `load` does."""
        login = self._load(pinned=self._pinned)
        self._pinned = self._pinned or login
        return login


def entry_names(kind: str, kubeconfig: str | None = None) -> list[str]:
    """Return the names of all entries of a kind: `context`, `cluster` or `user`.

    Raises:
        CredentialsError: a file is missing or invalid.
    """
    entries, _ = _read(_paths(kubeconfig, os.environ))
    return list(entries[kind])


def _paths(kubeconfig: str | None, environ: Mapping[str, str]) -> list[str]:
    if kubeconfig is not None:
        if not os.path.isfile(kubeconfig):
            raise CredentialsError(f"no kubeconfig at {kubeconfig}")
        return [kubeconfig]
    listed = [path for path in environ.get("KUBECONFIG", "").split(os.pathsep) if path]
    return listed or [os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".kube/config")]


def _read(paths: list[str]) -> tuple[_Entries, str | None]:
    """Return the entries of all files that exist, with absolute paths, and the current context."""
    entries: _Entries = {kind: {} for kind in _KINDS}
    current: str | None = None
    for path in paths:
        if not os.path.exists(path) or _is_blank(path):
            continue
        body = typed.read(_FILE, _parse(path), f"kubeconfig {path}", error=CredentialsError)
        folder = Path(path).absolute().parent
        for kind in _KINDS:
            for index, item in enumerate(body.get(f"{kind}s", ())):
                name, entry = _read_entry(kind, item, path, index)
                entries[kind].setdefault(name, _with_absolute_paths(entry, folder))
        current = current or body.get("current-context") or None
    return entries, current


def _parse(path: str) -> Any:
    """Return the content of the file, its types unchecked."""
    library = kube_config()

    class Loader(library.KubeConfigMerger):  # type: ignore[misc, name-defined]
        # The library lets the last current-context win, and fails on values of a wrong type. So
        # krelay merges the files itself, and uses the library to read each one.
        def _merge(self, *entries: object) -> None:
            """Do nothing: one file needs no merge."""

    try:
        loader = Loader(path)
    except Exception as exc:
        # The exception itself would repeat lines of the file.
        raise CredentialsError(f"{path} is not a kubeconfig: {_reason(exc)}") from None
    if path not in loader.config_files:
        raise CredentialsError(f"{path} is not a kubeconfig: its path contains a {os.pathsep!r}")
    return loader.config_files[path]


def _reason(exc: Exception) -> str:
    """Say why a file is not YAML with an object in it, without repeating its content."""
    mark = getattr(exc, "problem_mark", None) or getattr(exc, "context_mark", None)
    if mark is not None:
        return f"not YAML at line {mark.line + 1}, column {mark.column + 1}"
    if isinstance(exc, OSError):
        return exc.strerror or type(exc).__name__
    if isinstance(exc, UnicodeError):
        return "not UTF-8"
    if isinstance(exc, RecursionError):
        return "nested too deep"
    if hasattr(exc, "position"):
        return f"not YAML: a character that it does not allow, at position {exc.position}"
    return "not YAML, or not an object"


def _read_entry(kind: str, item: Any, path: str, index: int) -> tuple[str, Mapping[str, Any]]:
    """Return the name and the body of one entry of a list."""
    source = f"kubeconfig {path}: {kind}"
    named = typed.read(_NAMED, item, f"{source}s[{index}]", error=CredentialsError)
    name, body = named["name"], item.get(kind)
    if body is None:
        return name, {}
    return name, typed.read(_KINDS[kind], body, f'{source} "{name}"', error=CredentialsError)


def _is_blank(path: str) -> bool:
    try:
        text = read_file(path).decode("utf-8", "replace")
    except OSError as exc:
        raise CredentialsError(f"cannot read {path}: {exc.strerror}") from exc
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return all(line in ("", "---", "...", "null") for line in lines)


def _with_absolute_paths(entry: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Return the entry with its paths resolved against `folder`."""
    out = dict(entry)
    for key in ("certificate-authority", "client-certificate", "client-key", "tokenFile"):
        if out.get(key):
            out[key] = os.path.join(folder, out[key])
    if (plugin := out.get("exec")) and os.sep in plugin.get("command", ""):
        out["exec"] = {**plugin, "command": os.path.join(folder, plugin["command"])}
    return out


def _select_context(name: str | None, entries: _Entries, overrides: Overrides) -> Login:
    contexts = entries["context"]
    if name is not None and name not in contexts:
        raise CredentialsError(f'no context "{name}" in kubeconfig', hint=_nearest(name, contexts))
    if name is None and not (overrides.cluster or overrides.server):
        raise CredentialsError(
            "kubeconfig has no current-context",
            hint="name one with --context; " + _known(contexts),
        )
    context = contexts[name] if name is not None else {}

    def select(kind: str, override: str | None) -> Mapping[str, Any]:
        wanted = override or context.get(kind)
        if not wanted:
            return {}
        if wanted not in entries[kind]:
            of = "" if override else f', which context "{name}" names'
            hint = _nearest(wanted, entries[kind])
            raise CredentialsError(f'no {kind} "{wanted}" in kubeconfig{of}', hint=hint)
        return entries[kind][wanted]

    cluster = select("cluster", overrides.cluster)
    return Login(
        server=cluster.get("server", ""),
        namespace=context.get("namespace") or "default",
        cluster=cluster,
        user=select("user", overrides.user),
        context=name,
    )


def _in_cluster(environ: Mapping[str, str], folder: Path) -> Login:
    """Return the login of the pod's service account (client-go rest/config.go, InClusterConfig)."""
    host = environ["KUBERNETES_SERVICE_HOST"]
    port = environ.get("KUBERNETES_SERVICE_PORT") or "443"
    file, namespace = folder / "namespace", "default"
    if file.is_file():
        try:
            namespace = read_file(file).decode().strip()
        except (OSError, UnicodeError) as exc:
            raise CredentialsError(f"cannot read {file}: {exc}") from exc
    return Login(
        server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        namespace=namespace,
        cluster={"certificate-authority": str(folder / "ca.crt")},
        user={"tokenFile": str(folder / "token")},
        in_cluster=True,
    )


def _apply(overrides: Overrides, login: Login) -> Login:
    """Apply the flags to the login, and check the result."""
    cluster, user = dict(login.cluster), dict(login.user)
    if overrides.server or overrides.tls_server_name:
        # The old name belongs to the old server (client-go clientcmd/client_config.go).
        cluster["tls-server-name"] = overrides.tls_server_name
    if overrides.certificate_authority:
        cluster["certificate-authority"] = os.path.abspath(overrides.certificate_authority)
        cluster.pop("certificate-authority-data", None)
    if overrides.insecure_skip_tls_verify is not None:
        cluster["insecure-skip-tls-verify"] = overrides.insecure_skip_tls_verify
    if overrides.token:
        user["token"] = overrides.token
        user.pop("tokenFile", None)
    for key in ("client-certificate", "client-key"):
        if path := getattr(overrides, key.replace("-", "_")):
            user[key] = os.path.abspath(path)
            user.pop(f"{key}-data", None)
    given = {
        "username": overrides.username,
        "password": overrides.password,
        "as": overrides.as_,
        "as-uid": overrides.as_uid,
    }
    user.update({key: value for key, value in given.items() if value})
    if overrides.as_group:
        user["as-groups"] = list(overrides.as_group)
    server = (overrides.server or login.server).strip()
    if not server:
        raise CredentialsError(f'kubeconfig has no server for context "{login.context}"')
    if "://" not in server:
        secure = any(cluster.get(key) for key in _SAYS_TLS)
        server = f"{'https' if secure else 'http'}://{server}"
    try:
        parts = urlsplit(server)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if valid and parts.username is not None:
        raise CredentialsError(
            "kubeconfig: the server's URL contains a user name or a password",
            hint="put them into `username` and `password` of the user",
        )
    if not valid:
        # The URL may contain a password, also after a look-alike of "@".
        shown = f'"{server}"' if server.isascii() and "@" not in server else "the server"
        raise CredentialsError(f"kubeconfig: {shown} is not the URL of an API server")
    # In lower case, so that every later test of the scheme agrees.
    server = cluster["server"] = f"{parts.scheme}{server[len(parts.scheme) :]}".rstrip("/")
    return replace(login, server=server, cluster=cluster, user=user)


_SAYS_TLS = ("certificate-authority", "certificate-authority-data", "insecure-skip-tls-verify")


def read_pem(entry: Mapping[str, Any], key: str) -> bytes | None:
    """Return `entry[key + "-data"]` (base64), else the file at `entry[key]`, else None.

    Raises:
        CredentialsError: the data is not base64, or the file cannot be read.
    """
    if data := entry.get(f"{key}-data"):
        try:
            return base64.b64decode("".join(data.split()), validate=True)
        except (binascii.Error, ValueError) as exc:
            raise CredentialsError(f"kubeconfig: {key}-data is not base64") from exc
    if path := entry.get(key):
        try:
            return read_file(path)
        except OSError as exc:
            raise CredentialsError(f"{key}: cannot read {path}: {exc.strerror}") from exc
    return None


def read_file(path: str | Path) -> bytes:
    """Read a regular file of at most MAX_FILE bytes.

    Raises:
        OSError: the file cannot be read, is larger, or is not regular (a FIFO would block).
    """
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "the path contains a NUL")
    # Non-blocking: opening a FIFO would wait for a writer.
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    with open(number, "rb") as file:
        found = os.fstat(number)
        if stat.S_ISCHR(found.st_mode) and os.path.samestat(found, os.stat(os.devnull)):
            return b""  # KUBECONFIG=/dev/null means no kubeconfig
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise OSError(errno.EFBIG, f"larger than {MAX_FILE >> 20} MiB")
    return data


def _nearest(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return (f'did you mean "{close[0]}"? ' if close else "") + _known(known)


def _known(names: Mapping[str, object]) -> str:
    shown = sorted(names)
    more = f" and {len(shown) - 10} more" if len(shown) > 10 else ""
    return f"known: {', '.join(shown[:10]) or 'none'}{more}"


_LIBRARY = "kubernetes_asyncio"


@functools.cache
def kube_config() -> Any:
    """Return the module `kubernetes_asyncio.config.kube_config`, without the API models beside it.

    `import kubernetes_asyncio` runs 900 files: 0.4 s and 40 MB. Its package `config` uses two
    names of them, in functions that krelay never calls, so it is imported with a stand-in for
    `kubernetes_asyncio.client`, which is removed afterwards. If a release of the library does not
    allow this, it is imported as usual.
    """
    if _LIBRARY not in sys.modules:
        with contextlib.suppress(ImportError, AttributeError):
            return _import_without_models()
    return importlib.import_module(f"{_LIBRARY}.config.kube_config")


def _import_without_models() -> ModuleType:
    spec = importlib.util.find_spec(_LIBRARY)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(_LIBRARY)
    package = ModuleType(_LIBRARY)
    package.__path__ = list(spec.submodule_search_locations)
    client = ModuleType(f"{_LIBRARY}.client")
    for name in ("ApiClient", "Configuration"):
        setattr(client, name, type(name, (), {}))
    sys.modules[_LIBRARY] = package
    sys.modules[client.__name__] = client
    try:
        return importlib.import_module(f"{_LIBRARY}.config.kube_config")
    finally:
        # A copy, since another thread may import a module meanwhile.
        for name in [name for name in list(sys.modules) if name.split(".")[0] == _LIBRARY]:
            del sys.modules[name]
