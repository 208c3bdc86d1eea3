"""Kubeconfig: find the API server and the user of a context.

krelay follows kubectl's rules (kubernetes.io, "Organizing Cluster Access Using kubeconfig Files";
client-go tools/clientcmd): what kubectl refuses, krelay refuses. It never guesses a server, as
kubectl does with localhost:8080, and writes a kubeconfig only for new tokens (`token_store`). All
functions block: call them in a thread.
"""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from krelay.cluster.auth import in_cluster
from krelay.cluster.auth.entries import Entries, read_entries
from krelay.cluster.auth.server_url import parse_server
from krelay.errors import CredentialsError


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
    as_user_extra: tuple[tuple[str, str], ...] = ()
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
    kubeconfig's current context, whichever context this is. `user_name` is the entry of the user
    in the first of `files` that has it.
    """

    server: str
    namespace: str
    cluster: Mapping[str, Any] = field(repr=False)
    user: Mapping[str, Any] = field(default_factory=dict, repr=False)
    context: str | None = None
    current: str | None = field(default=None, compare=False)
    in_cluster: bool = False
    user_name: str | None = None
    files: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return f"context {self.context}, {self.address}" if self.context else self.address

    @property
    def name(self) -> str:
        """The name of this login in the log."""
        return f"context {self.context}" if self.context else "in the cluster"

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
    service_account: Path = in_cluster.SERVICE_ACCOUNT,
    pinned: Login | None = None,
) -> Login:
    """Return the login of `context` (None: the current one), or of the pod that krelay runs in.

    With `pinned`, an earlier result, return what its context is now. Neither another
    current-context nor a kubeconfig that appears in a pod leads elsewhere.

    Raises:
        CredentialsError: a file, context, cluster or user is missing, or a file is invalid.
    """
    pod = in_cluster.is_possible(environ, service_account)
    if pinned is not None and pinned.in_cluster:
        return _apply(overrides, _log_in_as_pod(environ, service_account))
    paths = _paths(kubeconfig, environ)
    entries = read_entries(paths)
    if pinned is not None:
        login = _select_context(pinned.context, entries, overrides, environ)
        login = replace(login, namespace=pinned.namespace, files=tuple(paths))
        return _apply(overrides, login)
    name = context or entries.current
    named = name or overrides.cluster or overrides.server
    if not named and pod:
        return _apply(overrides, _log_in_as_pod(environ, service_account))
    if not named and not environ.get(_MASTER):
        raise _nothing_named(paths, entries)
    login = _select_context(name, entries, overrides, environ)
    if pod and not login.namespace:
        login = replace(login, namespace=in_cluster.namespace(environ, service_account))
    login = replace(
        login,
        namespace=login.namespace or "default",
        current=entries.current,
        files=tuple(paths),
    )
    return _apply(overrides, login)


_MASTER = "KUBERNETES_MASTER"
"""kubectl's variable for the server of a cluster that names none."""


def _nothing_named(paths: list[str], entries: Entries) -> CredentialsError:
    if entries.contexts or entries.clusters:
        return CredentialsError(
            "kubeconfig has no current-context",
            hint="name one with --context; " + _known(entries.contexts),
        )
    return CredentialsError(
        f"no kubeconfig: {os.pathsep.join(paths) or 'KUBECONFIG'} is missing or empty",
        hint="set KUBECONFIG, or write ~/.kube/config; "
        "`kubectl config view` shows what kubectl would use",
    )


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
    entries = read_entries(_paths(kubeconfig, os.environ))
    kinds = {"context": entries.contexts, "cluster": entries.clusters, "user": entries.users}
    return list(kinds[kind])


def files(
    kubeconfig: str | None,
    logins: Iterable[Login] = (),
    *,
    environ: Mapping[str, str] = os.environ,
) -> list[str]:
    """Return the files that decide what `logins` are: kubeconfig's, which may be missing, and the
    certificates and keys that it names."""
    named = [login for login in logins if not login.in_cluster]
    if not named:
        return []
    found = [kubeconfig] if kubeconfig else _listed(environ)
    entries = [entry for login in named for entry in (login.cluster, login.user)]
    found += [entry[key] for entry in entries for key in _PEM_FILES if entry.get(key)]
    return list(dict.fromkeys(found))


_PEM_FILES = ("certificate-authority", "client-certificate", "client-key")


def _paths(kubeconfig: str | None, environ: Mapping[str, str]) -> list[str]:
    if kubeconfig:  # kubectl too takes an empty one for none
        if not os.path.exists(kubeconfig):
            raise CredentialsError(f"no kubeconfig at {kubeconfig}")
        return [kubeconfig]
    return _listed(environ)


def _listed(environ: Mapping[str, str]) -> list[str]:
    if given := environ.get("KUBECONFIG"):
        return list(dict.fromkeys(path for path in given.split(os.pathsep) if path))
    return [os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".kube/config")]


def _select_context(
    name: str | None, entries: Entries, overrides: Overrides, environ: Mapping[str, str]
) -> Login:
    """Return the login of a context, its namespace empty if the context names none."""
    if name is not None and name not in entries.contexts:
        hint = _nearest(name, entries.contexts)
        raise CredentialsError(f'no context "{name}" in kubeconfig', hint=hint)
    context = entries.contexts[name] if name is not None else {}

    def select(
        kind: str, known: Mapping[str, Mapping[str, Any]], override: str | None
    ) -> Mapping[str, Any]:
        wanted = override or context.get(kind)
        if not wanted:
            return {}
        if wanted not in known:
            of = "" if override else f', which context "{name}" names'
            hint = _nearest(wanted, known)
            raise CredentialsError(f'no {kind} "{wanted}" in kubeconfig{of}', hint=hint)
        return known[wanted]

    cluster = select("cluster", entries.clusters, overrides.cluster)
    return Login(
        server=cluster.get("server") or environ.get(_MASTER, ""),
        namespace=context.get("namespace", ""),
        cluster=cluster,
        user=select("user", entries.users, overrides.user),
        context=name,
        user_name=overrides.user or context.get("user") or None,
    )


def _log_in_as_pod(environ: Mapping[str, str], folder: Path) -> Login:
    server, cluster, user = in_cluster.server_and_entries(environ, folder)
    return Login(
        server, in_cluster.namespace(environ, folder), cluster, user, context=None, in_cluster=True
    )


def _apply(overrides: Overrides, login: Login) -> Login:
    """Apply the flags to the login, and check the result."""
    cluster, user = dict(login.cluster), dict(login.user)
    if overrides.server or overrides.tls_server_name:
        # The old name belongs to the old server (client-go clientcmd/client_config.go).
        cluster["tls-server-name"] = overrides.tls_server_name
    if overrides.certificate_authority or overrides.insecure_skip_tls_verify:
        for key in (*_AUTHORITY, "insecure-skip-tls-verify"):
            cluster.pop(key, None)
    if overrides.certificate_authority:
        cluster["certificate-authority"] = os.path.abspath(overrides.certificate_authority)
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
    if overrides.as_user_extra:
        extra: dict[str, list[str]] = {}
        for key, value in overrides.as_user_extra:
            extra.setdefault(key, []).append(value)
        user["as-user-extra"] = extra
    text = overrides.server or login.server
    if not text:
        raise CredentialsError(f'kubeconfig has no server for context "{login.context}"')
    server = parse_server(text)
    _check_user(user)
    if server.user is not None:
        # As in Go, they win over all that would set the same header.
        user = {key: value for key, value in user.items() if key in _BESIDE_HEADER}
        user |= {"username": server.user, "password": server.password}
    _check_cluster(cluster, secure=server.secure)
    cluster["server"] = server.url if server.user is not None else text
    return replace(login, server=server.url, cluster=cluster, user=user)


_AUTHORITY = ("certificate-authority", "certificate-authority-data")
_CERTIFICATE = ("client-certificate", "client-certificate-data")
_KEY = ("client-key", "client-key-data")
_BESIDE_HEADER = (*_CERTIFICATE, *_KEY, "as", "as-uid", "as-groups", "as-user-extra")
_MODES = ("Never", "IfAvailable", "Always")


def _check_cluster(cluster: Mapping[str, Any], *, secure: bool) -> None:
    """Refuse what client-go refuses (clientcmd/validation.go, transport/transport.go)."""
    _refuse_both(cluster, _AUTHORITY)
    skip = secure and cluster.get("insecure-skip-tls-verify")
    if skip and any(cluster.get(key) for key in _AUTHORITY):
        raise CredentialsError(
            "kubeconfig: the cluster has insecure-skip-tls-verify and a certificate-authority",
            hint="remove insecure-skip-tls-verify",
        )


def _check_user(user: Mapping[str, Any]) -> None:
    """Refuse what client-go refuses (clientcmd/validation.go, transport/round_trippers.go)."""
    if any(user.get(key) for key in _CERTIFICATE):
        _refuse_both(user, _CERTIFICATE)
        _refuse_both(user, _KEY)
        if not any(user.get(key) for key in _KEY):
            raise CredentialsError("kubeconfig: the user has no client-key")
    token = any(user.get(key) for key in ("token", "tokenFile"))
    if token and (user.get("username") or user.get("password")):
        raise CredentialsError(
            "kubeconfig: the user has more than one way to log in: a token, and a name and password"
        )
    if not user.get("as") and any(
        user.get(key) for key in ("as-uid", "as-groups", "as-user-extra")
    ):
        raise CredentialsError("kubeconfig: as-groups, as-uid and as-user-extra need `as`")
    if (plugin := user.get("exec")) is not None:
        if user.get("auth-provider") is not None:
            raise CredentialsError("kubeconfig: the user has an auth-provider and an exec plugin")
        _check_plugin(plugin)


def _check_plugin(plugin: Mapping[str, Any]) -> None:
    if not plugin.get("command") or not plugin.get("apiVersion"):
        raise CredentialsError("kubeconfig: exec needs command and apiVersion")
    if not all(item.get("name") for item in plugin.get("env", ())):
        raise CredentialsError("kubeconfig: a variable in the env of exec has no name")
    mode = plugin.get("interactiveMode")
    if mode and mode not in _MODES:
        known = ", ".join(_MODES)
        raise CredentialsError(f'kubeconfig: interactiveMode is "{mode}", not one of {known}')
    if not mode and plugin["apiVersion"] == "client.authentication.k8s.io/v1":
        raise CredentialsError(
            "kubeconfig: exec needs an interactiveMode, as its apiVersion is v1",
            hint="interactiveMode: IfAvailable",
        )


def _refuse_both(entry: Mapping[str, Any], keys: tuple[str, str]) -> None:
    if all(entry.get(key) for key in keys):
        raise CredentialsError(f"kubeconfig: {keys[0]} and {keys[1]} are both there")


def _nearest(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return (f'did you mean "{close[0]}"? ' if close else "") + _known(known)


def _known(names: Mapping[str, object]) -> str:
    shown = sorted(names)
    more = f" and {len(shown) - 10} more" if len(shown) > 10 else ""
    return f"known: {', '.join(shown[:10]) or 'none'}{more}"
