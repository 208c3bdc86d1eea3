"""Authentication over TCP, where every program of the machine, or of the network, can connect.

The token keeps out other programs and machines; without one, nothing can be changed over TCP. The
checks of `Host` (against DNS rebinding), of `Origin`, and of what an HTML form cannot send keep out
the pages of other sites in the user's own browser. A browser sends a cookie to every port of a
host, so other programs of the machine may see it: the dashboard's cookie can only read what the
dashboard shows.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import web

from krelay.model import StatusConfig
from krelay.status.connections import connection_of

Next = Callable[[web.Request], Awaitable[web.StreamResponse]]

PUBLIC = "/healthz"
"""Needs no authentication: it only shows that krelay runs."""
DASHBOARD = frozenset(("/", "/v1/status", "/v1/connections", "/v1/events", "/metrics"))
"""What the dashboard reads, or links to."""
HEADER = "X-Krelay"
"""A header that no form can send, for a POST without a body."""


class Authenticator:
    """The rules of one listener."""

    def __init__(self, config: StatusConfig) -> None:
        self._token = config.token.encode() if config.token else None
        # The cookie is derived from the token: a browser shows it to every port of the host.
        derived = hmac.new(self._token or b"", b"krelay page", hashlib.sha256).hexdigest()
        self._cookie_name = f"krelay-{derived[:8]}"
        self._cookie = derived[8:]

    @web.middleware
    async def check(self, request: web.Request, handler: Next) -> web.StreamResponse:
        """Pass the request to `handler`, or raise the HTTP error that refuses it."""
        if request.path == PUBLIC:
            return await handler(request)
        if self._token is not None:
            self._check_credentials(request)
            connection = connection_of(request)
            if connection is not None:
                connection.mark_trusted()
            if request.path == "/" and "token" in request.query:
                return self._redirect_with_cookie()
        elif "Host" in request.headers and not is_local_host(_host(request)):
            raise web.HTTPMisdirectedRequest(
                text="krelay does not serve this host name: use an address, or `localhost`"
            )
        origin = request.headers.get("Origin")
        if origin is not None and _netloc(origin) != _host(request).lower():
            raise web.HTTPForbidden(text="pages of other sites have no access")
        if request.method not in ("GET", "HEAD"):
            self._check_change(request)
        return await handler(request)

    def _check_credentials(self, request: web.Request) -> None:
        """Require the token, or to read the dashboard the cookie."""
        if self._has_token(request):
            return
        if not _equal(self._cookie.encode(), request.cookies.get(self._cookie_name)):
            raise web.HTTPUnauthorized(
                text="send the token of `status.token`: `Authorization: Bearer TOKEN`, "
                "or in a browser `/?token=TOKEN`",
                headers={"WWW-Authenticate": 'Bearer realm="krelay"'},
            )
        if request.method not in ("GET", "HEAD") or request.path not in DASHBOARD:
            raise web.HTTPForbidden(
                text="the dashboard's cookie only reads what the dashboard shows: "
                "send `Authorization: Bearer TOKEN`"
            )

    def _has_token(self, request: web.Request) -> bool:
        assert self._token is not None
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _equal(self._token, bearer.strip()):
            return True
        in_query = request.method == "GET" and request.path in ("/", "/v1/events")
        return in_query and _equal(self._token, request.query.get("token"))

    def _redirect_with_cookie(self) -> web.Response:
        """Remove the token from the address bar; a cookie takes its place."""
        response = web.Response(status=303, headers={"Location": "/"})
        response.set_cookie(
            self._cookie_name, self._cookie, httponly=True, samesite="Strict", path="/"
        )
        return response

    def _check_change(self, request: web.Request) -> None:
        if self._token is None:
            raise web.HTTPForbidden(
                text="over TCP this requires a token: set `status.token`, or use the command"
            )
        if request.content_type != "application/json" and HEADER not in request.headers:
            raise web.HTTPUnsupportedMediaType(
                text=f"send `Content-Type: application/json`, or any `{HEADER}` header"
            )


def is_local_host(host: str) -> bool:
    """Return whether a `Host` header is an address or `localhost`.

    Such a host names this machine without a name server. A page of another site would have that
    site's name there.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _host(request: web.Request) -> str:
    """Return the `Host` header; `request.host` falls back to the machine's own name."""
    return request.headers.get("Host", "")


def _netloc(origin: str) -> str | None:
    """Return the host and port of an origin, or None if it has none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _equal(expected: bytes, given: str | None) -> bool:
    """Compare in constant time."""
    return given is not None and hmac.compare_digest(expected, given.encode(errors="replace"))
