"""The routes of the status API, the same on the socket and over TCP, and the dashboard."""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import json
import logging
import re
import traceback
from collections.abc import Awaitable, Callable, Mapping
from importlib import resources

from aiohttp import web

from krelay.errors import KrelayError
from krelay.state.bus import EventBus
from krelay.state.error_codec import to_json
from krelay.state.snapshot import Snapshot
from krelay.state.states import readiness
from krelay.status import Handler
from krelay.status.auth import Authenticator
from krelay.status.connections import BAD_PAYLOAD
from krelay.status.event_stream import EventStreams
from krelay.text import one_line
from krelay.threads import in_thread_or_here

logger = logging.getLogger("krelay.status")

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]

_MAX_BODY = 2 << 20
_BODY_DEADLINE = 10.0
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "krelay",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_NO_CONTENT_POLICY = "default-src 'none'; frame-ancestors 'none'"
_INLINE = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)


def application(
    handlers: Mapping[tuple[str, str], Handler],
    *,
    snapshot: Callable[[], Awaitable[Snapshot]] | None = None,
    bus: EventBus | None = None,
    authenticator: Authenticator | None = None,
) -> web.Application:
    """Return the application.

    Args:
        handlers: handlers of JSON requests, by method and resource.
        snapshot: takes the snapshot behind `/readyz`, `/metrics` and `/v1/status`.
        bus: the events of `/v1/events`; with a snapshot, `/` serves the dashboard.
        authenticator: decides which requests are admitted; by default, all are.
    """
    middlewares = [_errors_as_json, *([authenticator.check] if authenticator else [])]
    app = web.Application(client_max_size=_MAX_BODY, middlewares=middlewares)
    app.on_response_prepare.append(_add_headers)
    for (method, resource), handler in handlers.items():
        app.router.add_route(method, resource, _json_handler(handler))
    app.router.add_get("/healthz", _healthz)
    if snapshot is not None:
        views = _SnapshotViews(snapshot)
        app.router.add_get("/readyz", views.readyz)
        app.router.add_get("/metrics", views.metrics)
        if ("GET", "/v1/status") not in handlers:
            app.router.add_get("/v1/status", views.status)
    if bus is not None:
        streams = EventStreams(bus)
        app.router.add_get("/v1/events", streams.answer, allow_head=False)
        app.on_shutdown.append(streams.close)
    if snapshot is not None and bus is not None:
        app.router.add_get("/", _dashboard)
    return app


class _SnapshotViews:
    """Answers made from a snapshot."""

    def __init__(self, snapshot: Callable[[], Awaitable[Snapshot]]) -> None:
        self._snapshot = snapshot

    async def readyz(self, request: web.Request) -> web.Response:
        found = readiness((await self._snapshot()).forwards, request.query.getall("target", []))
        if found.unknown:
            names = ", ".join(f"`{name[:100]}`" for name in found.unknown[:10])
            raise web.HTTPNotFound(text=f"no target {names}")
        return web.json_response(found.as_json(), status=200 if found.ready else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        accept = request.headers.get("Accept", "")
        snapshot = await self._snapshot()
        text, content_type = await in_thread_or_here(lambda: _render_metrics(snapshot, accept))
        return web.Response(body=text, headers={"Content-Type": content_type})

    async def status(self, request: web.Request) -> web.Response:
        return web.json_response((await self._snapshot()).as_json())


def _render_metrics(snapshot: Snapshot, accept: str) -> tuple[bytes, str]:
    # The first import of prometheus_client takes a while; in a thread it delays no relaying.
    from krelay.status.metrics import render

    return render(snapshot, accept)


async def _healthz(request: web.Request) -> web.Response:
    if "json" in request.headers.get("Accept", ""):
        return web.json_response({"status": "ok"})
    return web.Response(text="ok\n")


async def _dashboard(request: web.Request) -> web.Response:
    body, policy = await in_thread_or_here(dashboard)
    return web.Response(
        body=body,
        content_type="text/html",
        charset="utf-8",
        headers={"Content-Security-Policy": policy},
    )


@functools.cache
def dashboard() -> tuple[bytes, str]:
    """Return the HTML of the dashboard and its Content-Security-Policy.

    The page is one file that loads no other; the policy enforces that. Blocks on the first call.
    """
    text = resources.files("krelay.status").joinpath("dashboard.html").read_text("utf-8")
    sources: dict[str, list[str]] = {"style": [], "script": []}
    for kind, content in _INLINE.findall(text):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        sources[kind].append(f"'sha256-{digest}'")
    policy = (
        "default-src 'none'",
        f"style-src {' '.join(sources['style'])}",
        f"script-src {' '.join(sources['script'])}",
        "connect-src 'self'",
        "img-src data:",  # its icon
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    return text.encode(), "; ".join(policy)


def _json_handler(handler: Handler) -> Answer:
    """Return a route handler that passes the JSON object in the body, or the query of a GET, to
    `handler`."""

    async def answer(request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(_BODY_DEADLINE):
                content = await request.read()
            body = json.loads(content) if content else _query(request)
        except TimeoutError:
            raise web.HTTPRequestTimeout(text="the body did not arrive in time") from None
        except (ValueError, RecursionError):
            body = None
        except BAD_PAYLOAD:
            raise web.HTTPBadRequest(text="the body does not match its headers") from None
        if not isinstance(body, dict):
            raise web.HTTPBadRequest(text="the body is not a JSON object")
        return web.json_response(await handler(body))

    return answer


def _query(request: web.Request) -> dict[str, str]:
    """Return the query in the place of a body that a browser's GET cannot have."""
    return dict(request.query) if request.method in ("GET", "HEAD") else {}


@web.middleware
async def _errors_as_json(request: web.Request, handler: Answer) -> web.StreamResponse:
    """Answer every error in JSON, in the form of `krelay.state.error_codec`."""
    try:
        return await handler(request)
    except KrelayError as exc:
        return web.json_response({"error": to_json(exc)}, status=422)
    except web.HTTPException as exc:
        headers = {key: value for key, value in exc.headers.items() if key != "Content-Type"}
        text = exc.text or exc.reason
        if exc.status in (404, 405) and text.startswith(f"{exc.status}:"):
            text = f"{request.method} {request.path[:100]}: {exc.reason.lower()}"
        error = {"message": one_line(text)}
        return web.json_response({"error": error}, status=exc.status, headers=headers)
    except Exception as exc:
        # The text of the exception may quote the file, and so a secret.
        name, stack = type(exc).__name__, "".join(traceback.format_tb(exc.__traceback__))
        logger.error("%s %s failed: %s\n%s", request.method, request.path[:100], name, stack)
        error = {"message": f"internal error: {name}"}
        return web.json_response({"error": error}, status=500)


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)
    response.headers.setdefault("Content-Security-Policy", _NO_CONTENT_POLICY)
