"""OIDC: an id token from kubeconfig, refreshed at its issuer.

As client-go plugin/pkg/client/auth/oidc/oidc.go; OpenID Connect Discovery 1.0, section 4, and
Core 1.0, section 12. As kubectl does, krelay writes new tokens into kubeconfig: an issuer may
accept a refresh token only once, and would log out every tool that still has the former one.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import ssl
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp

from krelay import typed
from krelay.cluster import http, proxies
from krelay.cluster.auth.files import read_pem
from krelay.cluster.auth.identity import Identity, ahead, bearer, tls_context
from krelay.cluster.auth.token_store import NotWritableError, Tokens, TokenStore
from krelay.cluster.http import basic_auth
from krelay.errors import ClusterError, CredentialsError, UnreachableError
from krelay.net.api_access import is_loopback
from krelay.net.error_body import page_words
from krelay.retry import OnceUntilChanged
from krelay.tasks import shield_cleanup
from krelay.threads import in_thread
from krelay.typed import ListOf, Number, Schema, Shape, String, Token

logger = logging.getLogger("krelay.cluster")

DEADLINE = 30.0
OTHERS_PATIENCE = 0.5
"""Seconds for another program to write its tokens, after the issuer refused the same token."""
SAVE_PATIENCE = 10.0
"""Seconds for a refresh that was begun to end and to be written, although krelay ends."""
_SHOWN = 300
MAX_ANSWER = 1 << 20
_MAX_VALUES = 10_000
_DISCOVERY = Shape(
    {
        "issuer": String(2048),
        "token_endpoint": String(2048),
        "token_endpoint_auth_methods_supported": ListOf(String(256), 100),
    }
)
_TOKENS = Shape({"id_token": Token(256 << 10), "refresh_token": Token(256 << 10)})
_CLAIMS = Shape({"exp": Number()}, needs=("exp",))
_NOT_WRITABLE = (
    "oidc: new tokens cannot be written to kubeconfig: %s; "
    "if the issuer replaces the refresh token, other tools have to log in again"
)
_NOT_WRITTEN = (
    "oidc: the new tokens are not in kubeconfig: %s; other tools may have to log in again"
)
_HINT = "log in again with the tool that wrote the kubeconfig, or use its exec plugin"


def is_refreshing() -> bool:
    """Whether an end of the process now could lose a refresh token, or leave a lock behind."""
    return bool(_refreshing)


_refreshing: set[Oidc] = set()


class Oidc:
    """A source of identities: the issuer in `config`, the user's `auth-provider` in kubeconfig."""

    def __init__(self, config: Mapping[str, Any], store: TokenStore | None = None) -> None:
        """`store` is where kubeconfig has the tokens, None if they are nowhere else."""
        self._config = config
        self._store = store
        self._began = self._tokens = self._stored = Tokens.of(config)
        self._renewal = _renew_at(self._tokens.id_token)
        self._failures = OnceUntilChanged()

    async def fetch(self, *, rejected: bool) -> Identity:
        """Return the id token, a new one if it ends or was `rejected`. Raises CredentialsError."""
        if rejected or self._renewal <= time.time():
            # The issuer may have spent the refresh token by now: a cancellation must not lose
            # the next one.
            await shield_cleanup(self._refresh(), within=SAVE_PATIENCE)
        return Identity(bearer(self._tokens.id_token), expires=self._renewal)

    def knows(self, config: Mapping[str, Any]) -> bool:
        """Whether this source has the tokens of `config`, or has replaced them."""
        return Tokens.of(config) in (self._tokens, self._stored)

    def succeed(self, former: Oidc) -> None:
        """Take the place of `former`, with what it got for the tokens that both began with."""
        if self._began == former._began:
            self._tokens, self._stored = former._tokens, former._stored
            self._renewal = former._renewal

    async def _refresh(self) -> None:
        if self._store is None:
            await self._spend()
            return
        async with self._store.turn():
            _refreshing.add(self)
            try:
                await self._refresh_stored(self._store)
            finally:
                _refreshing.discard(self)

    async def _refresh_stored(self, store: TokenStore) -> None:
        if await self._take_stored(store):
            return
        try:
            await self._spend()
        except CredentialsError:
            # kubectl may have spent the token at the same time. It writes what it got.
            await asyncio.sleep(OTHERS_PATIENCE)
            found = await in_thread(store.peek, UnreachableError)
            if not self._take_over(found):
                raise
        else:
            await self._save(store)

    async def _take_stored(self, store: TokenStore) -> bool:
        """Return whether another program has stored an id token that is valid; take over what it
        has stored. Say so if new tokens cannot be stored: the present one may be spent."""
        try:
            found: Tokens | None = await in_thread(store.read, UnreachableError)
        except NotWritableError as exc:
            if self._failures.is_new(exc):
                logger.warning(_NOT_WRITABLE, exc)
            found = await in_thread(store.peek, UnreachableError)
        return self._take_over(found)

    def _take_over(self, found: Tokens | None) -> bool:
        """Take over what another program has stored; return whether its id token is valid."""
        if found in (None, Tokens(), self._tokens, self._stored):
            return False
        former, self._stored = self._tokens, found
        self._take(found)
        return found.id_token != former.id_token and self._renewal > time.time()

    async def _save(self, store: TokenStore) -> None:
        try:
            path = await in_thread(lambda: store.write(self._tokens), UnreachableError)
        except (NotWritableError, UnreachableError) as exc:
            if self._failures.is_new(exc):
                logger.warning(_NOT_WRITTEN, exc)
        else:
            self._stored = self._tokens
            self._failures.clear()
            logger.debug("oidc: wrote the new tokens to %s", path)

    def _take(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._renewal = _renew_at(tokens.id_token)

    async def _spend(self) -> None:
        """Get new tokens from the issuer for the refresh token."""
        issuer = self._config.get("idp-issuer-url", "").rstrip("/")
        if not self._tokens.refresh_token or not issuer or not self._config.get("client-id"):
            raise CredentialsError(
                "oidc: the id token has expired, and kubeconfig lacks what a refresh needs "
                "(refresh-token, idp-issuer-url, client-id)",
                hint=_HINT,
            )
        if not _safe(issuer):
            raise CredentialsError(
                f"oidc: the issuer {issuer} has no TLS, so others could read the refresh token",
                hint="idp-issuer-url must be an https:// URL",
            )
        try:
            async with asyncio.timeout(DEADLINE):
                answer = await self._refresh_at(issuer)
        except (aiohttp.ClientError, OSError, ValueError) as exc:  # OSError: TimeoutError too
            reason = str(exc)[:_SHOWN] or "no answer in time"
            raise CredentialsError(f"oidc: refresh at {issuer} failed: {reason}") from exc
        if not answer.get("id_token"):
            raise CredentialsError(f"oidc: {issuer} returned no id_token", hint=_HINT)
        refresh_token = answer.get("refresh_token") or self._tokens.refresh_token
        self._take(Tokens(answer["id_token"], refresh_token))

    async def _refresh_at(self, issuer: str) -> Mapping[str, Any]:
        def build() -> ssl.SSLContext:
            ca = read_pem(self._config, "idp-certificate-authority")
            return tls_context(ca, None, verify=True)

        context = await in_thread(build, UnreachableError)
        connector = aiohttp.TCPConnector(ssl=context)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            url = f"{issuer}/.well-known/openid-configuration"
            found = await self._request_json(session, _DISCOVERY, "GET", url)
            named = found.get("issuer", "").rstrip("/")
            if named != issuer:
                raise CredentialsError(f"oidc: {issuer} claims to be {named[:_SHOWN] or 'nothing'}")
            endpoint = found.get("token_endpoint", "")
            near = urlsplit(issuer).scheme == "http"
            if not (endpoint.startswith("https:") or (near and _safe(endpoint))):
                raise CredentialsError(f"oidc: {issuer} has no token endpoint with TLS")
            return await self._request_json(session, _TOKENS, "POST", endpoint, **self._form(found))

    def _form(self, discovered: Mapping[str, Any]) -> dict[str, Any]:
        """Return the request's body, with the client's credentials (RFC 6749, section 2.3.1)."""
        client, secret = self._config["client-id"], self._config.get("client-secret", "")
        form = {"grant_type": "refresh_token", "refresh_token": self._tokens.refresh_token}
        methods = discovered.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        if secret and "client_secret_basic" in methods:
            authorization = basic_auth(quote(client, safe=""), quote(secret, safe=""))
            return {"data": form, "headers": {"Authorization": authorization}}
        form |= {"client_id": client} | ({"client_secret": secret} if secret else {})
        return {"data": form}

    async def _request_json(
        self, session: aiohttp.ClientSession, schema: Schema, method: str, url: str, **request: Any
    ) -> Mapping[str, Any]:
        proxy, password = http.split_proxy(proxies.from_environment(url))
        request |= {"proxy": proxy, "proxy_headers": password, "allow_redirects": False}
        async with session.request(method, url, **request) as response:
            if response.status != 200:
                said = page_words(
                    await http.read_body(response, http.MAX_ERROR, truncate=True), _SHOWN
                )
                raise CredentialsError(f"oidc: {url} says {response.status}: {said}", hint=_HINT)
            try:
                body = await http.read_body(response, MAX_ANSWER)
            except ClusterError as exc:
                raise CredentialsError(f"oidc: {exc}") from exc
            source = f"oidc: the answer of {url}"
            answer: Mapping[str, Any] = typed.load(
                schema, body, source, values=_MAX_VALUES, error=CredentialsError
            )
            return answer


def _safe(url: str) -> bool:
    """Whether a secret may be sent there: under TLS, or to this machine without a proxy."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme == "https" or (
        parts.scheme == "http"
        and is_loopback(parts.hostname or "")
        and proxies.from_environment(url) is None
    )


def _renew_at(token: str) -> float:
    """Return when to refresh a JWT (RFC 7519): its `exp` less a margin; 0 if it is not a JWT."""
    try:
        payload = token.split(".", 2)[1]
        data = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
        return ahead(_CLAIMS.read(typed.parse(data, values=_MAX_VALUES))["exp"])
    except (ValueError, IndexError):
        return 0.0
