"""Credentials: keep the access to one API server fresh.

Expiring credentials are fetched again in time, files are read again after a minute, and rejected
credentials are dropped. A plugin runs once, however many callers wait for it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from krelay import __version__
from krelay.cluster import proxies
from krelay.cluster.auth.exec_plugin import ExecPlugin
from krelay.cluster.auth.files import read_pem
from krelay.cluster.auth.identity import Identity, from_entry, tls_context
from krelay.cluster.auth.kubeconfig import Login
from krelay.cluster.auth.oidc import Oidc
from krelay.errors import CredentialsError, UnreachableError
from krelay.net.api_access import ApiAccess, is_loopback
from krelay.retry import OnceUntilChanged
from krelay.threads import in_thread

logger = logging.getLogger("krelay.cluster")

FILES_PERIOD = 60.0
"""Seconds after which files are read again; a projected token lives at least ten minutes."""


class Credentials:
    """The credentials of the login that `load` returns, in a thread, again after a rejection."""

    def __init__(self, load: Callable[[], Login]) -> None:
        self._load = load
        self._lock = asyncio.Lock()
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
        # As in client-go, credentials are sent under TLS only, so none are fetched without it.
        if self._login is None or _user(login) != _user(self._login):
            self._source = _source(login)
        given = any(value for key, value in login.user.items() if key not in _IMPERSONATION)
        if given and not _secure(login):
            near = is_loopback(urlsplit(login.server).hostname or "")
            level = logging.DEBUG if near else logging.WARNING
            logger.log(level, "%s has no TLS: krelay sends it no credentials", login.server)
        self._login = login

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
            if self._access is None or now >= self._until:
                try:
                    access = await self._renew(now)
                except (CredentialsError, UnreachableError) as exc:
                    if self._access is None or self._expired(now):
                        raise
                    logger.warning("keeping the previous credentials: %s", exc)
                    self._until = now + FILES_PERIOD
                else:
                    # An equal access stays the same object, so that its holders can reject it.
                    self._access = self._access if self._access == access else access
            return self._access

    async def _reopen(self) -> None:
        """Read kubeconfig again; keep what it said before if it cannot be used now."""
        try:
            await self.open()
        except (CredentialsError, UnreachableError) as exc:
            if self._failures.is_new(exc):
                logger.warning("keeping what kubeconfig said before: %s", exc)
        else:
            self._failures.clear()

    def _expired(self, now: float) -> bool:
        return self._fetched is not None and now >= self._fetched.expires

    async def _renew(self, now: float) -> ApiAccess:
        if self._rejected:
            await self._reopen()
        login = self.login
        found = await in_thread(lambda: from_entry(_user(login)), UnreachableError)
        expires = math.inf
        if self._source is not None:
            if self._fetched is None or self._expired(now):
                self._fetched = await self._source.fetch(rejected=self._rejected)
            expires = self._fetched.expires
            found = Identity(
                self._fetched.authorization, self._fetched.certificate or found.certificate
            )
        access = ApiAccess(
            url=login.server,
            ssl=await self._context(login, found.certificate),
            server_hostname=_tls_name(login),
            headers=tuple(_headers(login.user, found.authorization)),
            proxy=proxies.from_kubeconfig(login.cluster.get("proxy-url"))
            or proxies.from_environment(login.server),
            expires=expires,
        )
        self._rejected = False
        self._until = min(expires, now + FILES_PERIOD if _in_files(login) else math.inf)
        return access

    async def _context(self, login: Login, certificate: bytes | None) -> ssl.SSLContext | None:
        if not _secure(login):
            return None
        verify = not login.cluster.get("insecure-skip-tls-verify")

        def build() -> ssl.SSLContext:
            ca = read_pem(login.cluster, "certificate-authority")
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
    if provider is not None and provider.get("name") != "oidc":
        raise CredentialsError(
            f'kubeconfig: Kubernetes has removed the auth-provider "{provider.get("name")}"',
            hint="use the provider's exec plugin, as kubectl does since 1.26",
        )
    if any(user.get(key) for key in ("token", "tokenFile", "username")):
        return None
    certificate = user.get("client-certificate") or user.get("client-certificate-data")
    if (plugin := user.get("exec")) and not certificate:
        return ExecPlugin(plugin, login.cluster)
    if provider is not None:
        return Oidc(provider.get("config", {}))
    return None


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
