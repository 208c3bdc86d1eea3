"""Credentials: keep the access to one API server fresh.

Expiring credentials are fetched again in time, files are read again after a minute, and rejected
credentials are dropped. A plugin runs once, however many callers wait for it. Another kubeconfig is
adopted as a whole, once it can be used.
"""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self
from urllib.parse import quote, urlsplit

from krelay import __version__
from krelay.cluster import proxies
from krelay.cluster.auth.exec_plugin import EXTENSION, ExecPlugin
from krelay.cluster.auth.files import read_pem
from krelay.cluster.auth.identity import Identity, from_entry, tls_context
from krelay.cluster.auth.kubeconfig import Login
from krelay.cluster.auth.oidc import Oidc
from krelay.cluster.auth.token_store import TOKEN_KEYS, Tokens, TokenStore
from krelay.errors import CredentialsError, UnreachableError
from krelay.mux.log import About, about
from krelay.net.api_access import ApiAccess, is_loopback
from krelay.retry import OnceUntilChanged
from krelay.threads import in_thread

logger = logging.getLogger("krelay.cluster")

FILES_PERIOD = 60.0
"""Seconds after which files are read again; a projected token lives at least ten minutes."""


READ_DEADLINE = 10.0
"""Seconds for kubeconfig and the files that it names to be read again."""


@dataclass(frozen=True, slots=True)
class LoginChange:
    """What another kubeconfig changes: in words, and whether requests now take another way."""

    words: tuple[str, ...]
    moved: bool

    def __str__(self) -> str:
        return ", ".join(self.words)


class Credentials:
    """The credentials of the login that `load` returns, in a thread, again after a rejection."""

    def __init__(self, load: Callable[[], Login]) -> None:
        self.on_change: Callable[[LoginChange], None] = lambda change: None
        """Called when another kubeconfig was adopted."""
        self._load = load
        self._lock = asyncio.Lock()
        self._reading = asyncio.Lock()
        self._changes = 0
        self._used: _Pems | None = None
        self._login: Login | None = None
        self._source: ExecPlugin | Oidc | None = None
        self._fetched: Identity | None = None
        self._access: ApiAccess | None = None
        self._until = 0.0
        self._rejected = False
        self._failures = OnceUntilChanged()
        self._tls: tuple[tuple[object, ...], ssl.SSLContext] | None = None
        self._turn = 0

    @property
    def login(self) -> Login:
        """The login as last read; call `open` first."""
        assert self._login is not None
        return self._login

    async def open(self) -> None:
        """Read kubeconfig.

        Raises:
            CredentialsError: kubeconfig names no usable server or user.
        """
        login = await in_thread(self._load, UnreachableError)
        self._source = _source(login)
        self._login = login
        self._say_what_is_withheld(login)

    async def reread(self) -> LoginChange | None:
        """Read kubeconfig again, and adopt it; return what has changed.

        Keep what it said before while it cannot be used, and log once why.
        """
        async with self._reading:
            try:
                async with asyncio.timeout(READ_DEADLINE):
                    change = await self._adopt_anew()
            except (CredentialsError, UnreachableError, TimeoutError) as exc:
                if self._failures.is_new(exc):
                    why = str(exc) or f"reading it takes more than {READ_DEADLINE:g} s"
                    self._log.warning("keeping what kubeconfig said before: %s", why)
                return None
            if self._failures.failing:
                self._failures.clear()
                self._log.info("kubeconfig can be used again")
            return change

    async def _adopt_anew(self) -> LoginChange | None:
        login = self._with_known_tokens(await in_thread(self._load, UnreachableError))
        pems = await in_thread(lambda: _Pems.of(login), UnreachableError)
        change = _difference(self.login, login, self._used or pems, pems)
        if change is None:
            self._adopt_names(login)
            return None
        source = _source(login)
        if type(source) is type(self._source) and _same_source(self.login, login):
            source = self._source
        # Whether it can be used.
        await self._context(login, pems.ca, pems.certificate)
        _proxy(login)
        tuple(_headers(login.user, None))
        if isinstance(source, Oidc) and isinstance(self._source, Oidc):
            source.succeed(self._source)
        if source is not self._source:
            self._source, self._fetched, self._rejected = source, None, False
        self._login, self._used, self._access = login, pems, None
        self._changes += 1
        self._log.info("kubeconfig has changed: %s", change)
        self._say_what_is_withheld(login)
        self.on_change(change)
        return change

    def _adopt_names(self, login: Login) -> None:
        """Read from now on the files that `login` names: the former ones may vanish."""
        if login == self.login:
            return
        if _told(login) is not None:
            self._source = _source(login)
        self._login, self._until = login, 0.0

    def _with_known_tokens(self, login: Login) -> Login:
        """Return `login` with the tokens that it had before, if these come from the same source:
        what krelay has written itself is no change."""
        new, old = (user.get("auth-provider") or {} for user in (login.user, self.login.user))
        config = new.get("config") or {}
        if not isinstance(self._source, Oidc) or not self._source.knows(config):
            return login
        rest = {key: value for key, value in config.items() if key not in TOKEN_KEYS}
        known = Tokens.of(old.get("config") or {}).as_config()
        return replace(
            login, user={**login.user, "auth-provider": {**new, "config": {**rest, **known}}}
        )

    @property
    def _log(self) -> About:
        return about(logger, name=self.login.name)

    def _say_what_is_withheld(self, login: Login) -> None:
        """As in client-go, credentials are sent under TLS only, so none are fetched without it."""
        given = any(value for key, value in login.user.items() if key not in _IMPERSONATION)
        if given and not _secure(login):
            near = is_loopback(urlsplit(login.server).hostname or "")
            level = logging.DEBUG if near else logging.WARNING
            logger.log(level, "%s has no TLS: krelay sends it no credentials", login.server)

    def reject(self, access: ApiAccess) -> None:
        """Drop `access`, which the server refused (401); the next one will be another."""
        if self._access is access:
            self._access = self._fetched = None
            self._rejected = True

    def reorder_authorities(self, access: ApiAccess) -> bool:
        """Let another authority come first after a certificate with a wrong signature.

        Of several authorities of one name, OpenSSL tries the first one only, Go each of them; an
        authority that got a new key has its name twice in a bundle. Return False if that is not
        the case, or each of them was first.
        """
        if self._access is not access or access.ssl is None:
            return self._access is not access
        names = [str(found.get("subject")) for found in access.ssl.get_ca_certs()]
        if len(set(names)) == len(names):
            return False
        self._turn = (self._turn + 1) % len(names)
        self._access = None
        return self._turn != 0

    async def access(self) -> ApiAccess:
        """Return what a new connection needs.

        Raises:
            CredentialsError: the credentials cannot be fetched.
            UnreachableError: the credentials cannot be fetched now, but may be soon.
        """
        async with self._lock:
            now = time.time()
            while self._access is None or now >= self._until:
                changes = self._changes
                try:
                    access = await self._renew(now)
                except (CredentialsError, UnreachableError) as exc:
                    if changes != self._changes:
                        continue  # it concerns a former kubeconfig
                    if self._access is None or self._expired(now):
                        raise
                    logger.warning("keeping the previous credentials: %s", exc)
                    self._until = now + FILES_PERIOD
                    break
                if access is not None:
                    # An equal access stays the same object, so that its holders can reject it.
                    self._access = self._access if self._access == access else access
                    break
            return self._access

    def _expired(self, now: float) -> bool:
        return self._fetched is not None and now >= self._fetched.expires

    async def _renew(self, now: float) -> ApiAccess | None:
        """Return a new access; None if kubeconfig has changed meanwhile."""
        if self._rejected:
            await self.reread()
        changes, login, source = self._changes, self.login, self._source
        found = await in_thread(lambda: from_entry(_user(login)), UnreachableError)
        ca = await in_thread(lambda: _authority(login), UnreachableError)
        if changes == self._changes:
            self._used = _Pems(ca, found.certificate)
        expires = math.inf
        if source is not None:
            fetched = self._fetched
            if fetched is None or self._expired(now):
                fetched = await source.fetch(rejected=self._rejected)
                if source is self._source:
                    self._fetched = fetched
            expires = fetched.expires
            found = Identity(fetched.authorization, fetched.certificate or found.certificate)
        access = ApiAccess(
            url=login.server,
            ssl=await self._context(login, ca, found.certificate),
            server_hostname=_tls_name(login),
            headers=tuple(_headers(login.user, found.authorization)),
            proxy=_proxy(login),
            expires=expires,
        )
        if changes != self._changes:
            return None
        self._rejected = False
        self._until = min(expires, now + FILES_PERIOD if _in_files(login) else math.inf)
        return access

    async def _context(
        self, login: Login, ca: bytes | None, certificate: bytes | None
    ) -> ssl.SSLContext | None:
        if not _secure(login):
            return None
        verify = not login.cluster.get("insecure-skip-tls-verify")

        def build() -> ssl.SSLContext:
            parts = (ca, certificate, verify, self._turn)
            # A local name: a cancelled call may still run in another thread.
            tls = self._tls
            if tls is None or tls[0] != parts:
                tls = self._tls = parts, tls_context(ca, certificate, verify=verify, turn=parts[3])
            return tls[1]

        return await in_thread(build, UnreachableError)


def _tls_name(login: Login) -> str | None:
    """Return the name to expect in the certificate; None if it is the host as the URL has it."""
    host = urlsplit(login.server).hostname or ""
    name = login.cluster.get("tls-server-name") or (host if host.endswith(".") else "")
    # A certificate names no trailing dot, which only says that a name is complete.
    return name.removesuffix(".") or None


def _proxy(login: Login) -> str | None:
    given = proxies.from_kubeconfig(login.cluster.get("proxy-url"))
    return given or proxies.from_environment(login.server)


def _secure(login: Login) -> bool:
    return urlsplit(login.server).scheme == "https"


def _user(login: Login) -> Mapping[str, Any]:
    """Return the user's usable fields: without TLS only those of impersonation (as client-go)."""
    if _secure(login):
        return login.user
    return {key: value for key, value in login.user.items() if key in _IMPERSONATION}


_IMPERSONATION = ("as", "as-uid", "as-groups", "as-user-extra")


def _source(login: Login) -> ExecPlugin | Oidc | None:
    """Return the source of credentials; None if kubeconfig holds them itself (as client-go)."""
    user = _user(login)
    provider = user.get("auth-provider")
    if provider is not None and (name := provider.get("name", "")) != "oidc":
        raise CredentialsError(
            f'kubeconfig: Kubernetes has removed the auth-provider "{name}"',
            hint="use the provider's exec plugin, as kubectl does since 1.26",
        )
    if any(user.get(key) for key in ("token", "tokenFile", "username")):
        return None
    certificate = user.get("client-certificate") or user.get("client-certificate-data")
    if (plugin := user.get("exec")) and not certificate:
        return ExecPlugin(plugin, login.cluster)
    if provider is not None:
        store = TokenStore(login.files, login.user_name) if login.user_name else None
        return Oidc(provider.get("config", {}), store)
    return None


@dataclass(frozen=True, slots=True)
class _Pems:
    """The authority and the client certificate with its key, from kubeconfig or its files."""

    ca: bytes | None
    certificate: bytes | None

    @classmethod
    def of(cls, login: Login) -> Self:
        """Blocks. Raises CredentialsError: a file cannot be read."""
        return cls(_authority(login), from_entry(_user(login)).certificate)


def _authority(login: Login) -> bytes | None:
    return read_pem(login.cluster, "certificate-authority") if _secure(login) else None


_WAY = ("tls-server-name", "insecure-skip-tls-verify", "proxy-url")
_IN_PEMS = tuple(
    f"client-{what}{data}" for what in ("certificate", "key") for data in ("", "-data")
)


def _difference(old: Login, new: Login, before: _Pems, after: _Pems) -> LoginChange | None:
    """Return what differs, without secrets; None if nothing of it matters."""
    words = []
    if old.server != new.server:
        words.append(f"server {old.address} -> {new.address}")
    if before.ca != after.ca:
        words.append("CA")
    words += [key for key in _WAY if old.cluster.get(key) != new.cluster.get(key)]
    moved = bool(words)
    certificates = before.certificate, after.certificate
    if _login_user(old) != _login_user(new) or certificates[0] != certificates[1]:
        words.append("credentials")
    elif _extension(_told(old)) != _extension(_told(new)):
        words.append("the exec plugin's extension")
    return LoginChange(tuple(words), moved) if words else None


def _login_user(login: Login) -> Mapping[str, Any]:
    """Return what identifies the user, but for what is compared by its content."""
    return {k: v for k, v in login.user.items() if k not in (*_IN_PEMS, "extensions")}


def _same_source(old: Login, new: Login) -> bool:
    """Whether the source of credentials of `old` serves for `new`, so that a plugin that has run
    need not run again."""
    told = _told(new) is not None and old.cluster != new.cluster
    return _secure(old) == _secure(new) and _login_user(old) == _login_user(new) and not told


def _told(login: Login) -> Mapping[str, Any] | None:
    """Return the cluster if an exec plugin gets it."""
    told = (_user(login).get("exec") or {}).get("provideClusterInfo")
    return login.cluster if told else None


def _extension(cluster: Mapping[str, Any] | None) -> object:
    return ((cluster or {}).get("extensions") or {}).get(EXTENSION)


def _in_files(login: Login) -> bool:
    if not _secure(login):
        return False
    keys = ("certificate-authority", "client-certificate", "client-key", "tokenFile")
    return any(entry.get(key) for entry in (login.cluster, login.user) for key in keys)


def _headers(user: Mapping[str, Any], authorization: str | None) -> Iterator[tuple[str, str]]:
    yield "User-Agent", f"krelay/{__version__}"
    if authorization:
        yield "Authorization", authorization
    uid, groups, extra = (user.get(key) for key in _IMPERSONATION[1:])
    if not user.get("as"):
        return
    # kubernetes.io, "User impersonation": each group and each extra value has its own header.
    headers = [("Impersonate-User", user["as"])]
    headers += [("Impersonate-Uid", uid)] if uid else []
    headers += [("Impersonate-Group", group) for group in groups or ()]
    for key, values in (extra or {}).items():
        headers += [(f"Impersonate-Extra-{quote(key, safe='')}", value) for value in values]
    for name, value in headers:
        if not value.isprintable():
            raise CredentialsError(f"kubeconfig: {name} has a character that a header cannot carry")
        yield name, value
