"""OIDC: an id token from kubeconfig, refreshed at its issuer.

As client-go plugin/pkg/client/auth/oidc/oidc.go; OpenID Connect Discovery 1.0 section 4 and
Core 1.0 section 12. What the issuer gives is kept in memory: kubeconfig is never written.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import aiohttp

from krelay.cluster import http, proxies, tls
from krelay.cluster.identity import Identity, ahead, basic, bearer
from krelay.cluster.kubeconfig import material
from krelay.errors import CredentialsError

DEADLINE = 30.0
MAX_ANSWER = 1 << 20
_HINT = "log in again with the tool that wrote the kubeconfig, or use its exec plugin"


class Oidc:
    """A source for `config`, the `auth-provider` section of a user in kubeconfig."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._id_token = str(config.get("id-token") or "")
        self._until = _until(self._id_token)
        self._refresh_token = str(config.get("refresh-token") or "")

    async def fetch(self, *, rejected: bool) -> Identity:
        if rejected or self._until <= time.time():
            await self._refresh()
        return Identity(bearer(self._id_token), expires=self._until)

    async def _refresh(self) -> None:
        issuer = str(self._config.get("idp-issuer-url") or "").rstrip("/")
        if not self._refresh_token or not issuer or not self._config.get("client-id"):
            raise CredentialsError(
                "oidc: the id token has expired, and kubeconfig lacks what a refresh needs "
                "(refresh-token, idp-issuer-url, client-id)",
                hint=_HINT,
            )
        try:
            async with asyncio.timeout(DEADLINE):
                answer = await self._ask(issuer)
        except (aiohttp.ClientError, OSError, ValueError) as exc:  # OSError: TimeoutError too
            reason = str(exc) or "no answer in time"
            raise CredentialsError(f"oidc: refresh at {issuer} failed: {reason}") from exc
        if not answer.get("id_token"):
            raise CredentialsError(f"oidc: {issuer} gave no id_token", hint=_HINT)
        self._id_token = str(answer["id_token"])
        self._until = _until(self._id_token)
        self._refresh_token = str(answer.get("refresh_token") or self._refresh_token)

    async def _ask(self, issuer: str) -> Mapping[str, Any]:
        ca = await asyncio.to_thread(material, self._config, "idp-certificate-authority")
        context = await asyncio.to_thread(tls.context, ca, None, verify=True)
        connector = aiohttp.TCPConnector(ssl=context)
        async with aiohttp.ClientSession(connector=connector) as session:
            found = await self._json(session, "GET", f"{issuer}/.well-known/openid-configuration")
            endpoint = str(found.get("token_endpoint") or "")
            if str(found.get("issuer") or "").rstrip("/") != issuer:
                raise CredentialsError(f"oidc: {issuer} calls itself {found.get('issuer')}")
            if not endpoint.startswith(("https:", "http:" if issuer[:5] == "http:" else "https:")):
                raise CredentialsError(f"oidc: {issuer} has no token endpoint under TLS")
            return await self._json(session, "POST", endpoint, **self._form(found))

    def _form(self, discovered: Mapping[str, Any]) -> dict[str, Any]:
        """The refresh, and the client's own credentials (RFC 6749 section 2.3.1)."""
        client, secret = (
            str(self._config["client-id"]),
            str(self._config.get("client-secret") or ""),
        )
        form = {"grant_type": "refresh_token", "refresh_token": self._refresh_token}
        methods = discovered.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        if secret and "client_secret_basic" in methods:
            name = basic(quote(client, safe=""), quote(secret, safe=""))
            return {"data": form, "headers": {"Authorization": name}}
        return {
            "data": {**form, "client_id": client, **({"client_secret": secret} if secret else {})}
        }

    async def _json(
        self, session: aiohttp.ClientSession, method: str, url: str, **request: Any
    ) -> Mapping[str, Any]:
        async with session.request(
            method, url, proxy=proxies.of(url), allow_redirects=False, **request
        ) as response:
            body = await http.body(response, MAX_ANSWER)
            if response.status != 200:
                said = " ".join(body[:300].decode("utf-8", "replace").split())
                raise CredentialsError(f"oidc: {url} says {response.status}: {said}", hint=_HINT)
            answer = json.loads(body)
            if not isinstance(answer, dict):
                raise ValueError("the answer is no object")
            return answer


def _until(token: str) -> float:
    """When to refresh a JWT (RFC 7519): its `exp`, less a margin; 0 for what is none."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return ahead(float(claims["exp"]))
    except (ValueError, IndexError, KeyError, TypeError):
        return 0.0
