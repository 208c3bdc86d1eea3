"""Guard: who may ask over TCP, where anybody on the machine, or in the network, can connect.

Against other programs and machines there is the token; without one, nothing can be changed over
TCP. Against the pages of other sites in the user's own browser there are the checks of `Host` (a
name of theirs that leads here), of `Origin`, and of what no form can send.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import web

from krelay.model import StatusConfig

Next = Callable[[web.Request], Awaitable[web.StreamResponse]]

OPEN = "/healthz"
"""Open to everybody: it says nothing but that somebody is here."""
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
            if not self._proven(request):
                raise web.HTTPUnauthorized(
                    text="it takes the token of `status.token`: `Authorization: Bearer TOKEN`, "
                    "or in a browser `/?token=TOKEN`",
                    headers={"WWW-Authenticate": 'Bearer realm="krelay"'},
                )
            if request.path == "/" and "token" in request.query:
                return self._entered()
        elif not known_host(request.host):
            raise web.HTTPMisdirectedRequest(
                text="this is not the host that was asked for: use an address, or `localhost`"
            )
        self._check_origin(request)
        if request.method not in ("GET", "HEAD"):
            self._check_change(request)
        return await handler(request)

    def _proven(self, request: web.Request) -> bool:
        shown = [(self._pass.encode(), request.cookies.get(self._cookie))]
        assert self._token is not None
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            shown.append((self._token, bearer.strip()))
        if request.method == "GET" and request.path in ("/", "/v1/events"):
            shown.append((self._token, request.query.get("token")))
        return any(
            text is not None and hmac.compare_digest(wanted, text.encode(errors="replace"))
            for wanted, text in shown
        )

    def _entered(self) -> web.Response:
        """The token leaves the address bar, and a cookie takes its place."""
        response = web.Response(status=303, headers={"Location": "/"})
        response.set_cookie(self._cookie, self._pass, httponly=True, samesite="Strict", path="/")
        return response

    def _check_origin(self, request: web.Request) -> None:
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc.lower() != request.host.lower():
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
