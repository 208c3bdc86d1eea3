"""Guard: who may ask over TCP, where anybody on the machine, or in the network, can connect.

Against other programs and machines there is the token; without one, nothing can be changed over
TCP. Against the pages of other sites in the user's own browser there are the checks of `Host` (a
name of theirs that leads here), of `Origin`, and of what no form can send. A browser shows its
cookies to every port of a host, so to other programs of this machine: the page's cookie reads what
the page shows, and is good for nothing else.
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

OPEN = "/healthz"
"""Open to everybody: it says nothing but that somebody is here."""
PAGE = frozenset(("/", "/v1/status", "/v1/events", "/metrics"))
"""What the page reads, or links to."""
HEADER = "X-Krelay"
"""A header that no form can send, for a POST without a body."""


class Guard:
    """The rules of one listener."""

    def __init__(self, config: StatusConfig) -> None:
        self._token = config.token.encode() if config.token else None
        # What a browser keeps, and shows to every port of the host, is not the token itself.
        derived = hmac.new(self._token or b"", b"krelay page", hashlib.sha256).hexdigest()
        self._cookie = f"krelay-{derived[:8]}"
        self._pass = derived[8:]

    @web.middleware
    async def check(self, request: web.Request, handler: Next) -> web.StreamResponse:
        """As a middleware: lets the request through, or says why not."""
        if request.path == OPEN:
            return await handler(request)
        if self._token is not None:
            self._check_proof(request)
            connection = connection_of(request)
            if connection is not None:
                connection.trust()
            if request.path == "/" and "token" in request.query:
                return self._entered()
        elif "Host" in request.headers and not known_host(_host(request)):
            raise web.HTTPMisdirectedRequest(
                text="this is not the host that was asked for: use an address, or `localhost`"
            )
        self._check_origin(request)
        if request.method not in ("GET", "HEAD"):
            self._check_change(request)
        return await handler(request)

    def _check_proof(self, request: web.Request) -> None:
        """The token is good for everything, the cookie for what the page reads."""
        if self._has_token(request):
            return
        if not _same(self._pass.encode(), request.cookies.get(self._cookie)):
            raise web.HTTPUnauthorized(
                text="it takes the token of `status.token`: `Authorization: Bearer TOKEN`, "
                "or in a browser `/?token=TOKEN`",
                headers={"WWW-Authenticate": 'Bearer realm="krelay"'},
            )
        if request.method not in ("GET", "HEAD") or request.path not in PAGE:
            raise web.HTTPForbidden(
                text="the page's cookie only reads what the page shows: "
                "send `Authorization: Bearer TOKEN`"
            )

    def _has_token(self, request: web.Request) -> bool:
        assert self._token is not None
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _same(self._token, bearer.strip()):
            return True
        asked = request.method == "GET" and request.path in ("/", "/v1/events")
        return asked and _same(self._token, request.query.get("token"))

    def _entered(self) -> web.Response:
        """The token leaves the address bar, and a cookie takes its place."""
        response = web.Response(status=303, headers={"Location": "/"})
        response.set_cookie(self._cookie, self._pass, httponly=True, samesite="Strict", path="/")
        return response

    def _check_origin(self, request: web.Request) -> None:
        origin = request.headers.get("Origin")
        if origin is not None and _place(origin) != _host(request).lower():
            raise web.HTTPForbidden(text="a page of another site may not ask")

    def _check_change(self, request: web.Request) -> None:
        if self._token is None:
            raise web.HTTPForbidden(
                text="over TCP this takes a token: set `status.token`, or use the command"
            )
        if request.content_type != "application/json" and HEADER not in request.headers:
            raise web.HTTPUnsupportedMediaType(
                text=f"send `Content-Type: application/json`, or any `{HEADER}` header"
            )


def known_host(host: str) -> bool:
    """Whether a `Host` header names this machine whatever a name server says: an address, or
    `localhost`. A page of another site has that site's name there."""
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
    """The `Host` header; aiohttp's own answer may be that of a name server."""
    return request.headers.get("Host", "")


def _place(origin: str) -> str | None:
    """The host and port of an origin; None if it has none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _same(wanted: bytes, shown: str | None) -> bool:
    return shown is not None and hmac.compare_digest(wanted, shown.encode(errors="replace"))
