"""OIDC: an id token from kubeconfig, refreshed at its issuer.

As client-go plugin/pkg/client/auth/oidc/oidc.go; OpenID Connect Discovery 1.0, section 4, and
Core 1.0, section 12. New tokens stay in memory: krelay never writes kubeconfig.
"""

from __future__ import annotations

import asyncio
import base64
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
from krelay.cluster.http import basic_auth
from krelay.errors import ClusterError, CredentialsError, UnreachableError
from krelay.net.api_access import is_loopback
from krelay.net.error_body import page_words
from krelay.threads import in_thread
from krelay.typed import ListOf, Number, Schema, Shape, String, Token

DEADLINE = 30.0
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
_HINT = "log in again with the tool that wrote the kubeconfig, or use its exec plugin"


class Oidc:
    """A source of identities: the issuer in `config`, the user's `auth-provider` in kubeconfig."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._id_token = config.get("id-token", "")
        self._renewal = _renew_at(self._id_token)
        self._refresh_token = config.get("refresh-token", "")

    async def fetch(self, *, rejected: bool) -> Identity:
        """Return the id token, a new one if it ends or was `rejected`. Raises CredentialsError."""
        if rejected or self._renewal <= time.time():
            await self._refresh()
        return Identity(bearer(self._id_token), expires=self._renewal)

    async def _refresh(self) -> None:
        issuer = self._config.get("idp-issuer-url", "").rstrip("/")
        if not self._refresh_token or not issuer or not self._config.get("client-id"):
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
        self._id_token = answer["id_token"]
        self._renewal = _renew_at(self._id_token)
        self._refresh_token = answer.get("refresh_token") or self._refresh_token

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
        form = {"grant_type": "refresh_token", "refresh_token": self._refresh_token}
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
