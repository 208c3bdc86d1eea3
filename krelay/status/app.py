"""Application: the routes of the status service, the same on the socket and over TCP."""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from krelay.errors import KrelayError
from krelay.state.bus import EventBus
from krelay.state.error_codec import to_json
from krelay.state.snapshot import Snapshot
from krelay.state.states import readiness
from krelay.status.auth import Guard
from krelay.status.connections import BAD_PAYLOAD
from krelay.status.dashboard import page
from krelay.status.event_stream import Streams
from krelay.status.unix_server import Handler
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
_NOTHING = "default-src 'none'; frame-ancestors 'none'"


def application(
    handlers: Mapping[tuple[str, str], Handler],
    *,
    snapshot: Callable[[], Awaitable[Snapshot]] | None = None,
    bus: EventBus | None = None,
    guard: Guard | None = None,
) -> web.Application:
    """Answers by `handlers`, and by what can be made of a snapshot and a bus where they are given;
    `guard` says who may ask."""
    app = web.Application(
        client_max_size=_MAX_BODY, middlewares=[_plainly, guard.check] if guard else [_plainly]
    )
    app.on_response_prepare.append(_protect)
    for (method, resource), handler in handlers.items():
        app.router.add_route(method, resource, _answering(handler))
    app.router.add_get("/healthz", _healthz)
    if snapshot is not None:
        _Shown(snapshot).routes(app.router, handlers)
    if bus is not None:
        streams = Streams(bus)
        app.router.add_get("/v1/events", streams.answer, allow_head=False)

        async def close(_: web.Application) -> None:
            await streams.close()

        app.on_shutdown.append(close)
    if snapshot is not None and bus is not None:
        app.router.add_get("/", _page)
    return app


class _Shown:
    """What is made of a snapshot."""

    def __init__(self, snapshot: Callable[[], Awaitable[Snapshot]]) -> None:
        self._snapshot = snapshot

    def routes(
        self, router: web.UrlDispatcher, handlers: Mapping[tuple[str, str], Handler]
    ) -> None:
        router.add_get("/readyz", self.readyz)
        router.add_get("/metrics", self.metrics)
        if ("GET", "/v1/status") not in handlers:
            router.add_get("/v1/status", self.status)

    async def readyz(self, request: web.Request) -> web.Response:
        found = readiness((await self._snapshot()).forwards, request.query.getall("target", []))
        if found.unknown:
            names = ", ".join(f"`{name[:100]}`" for name in found.unknown[:10])
            raise web.HTTPNotFound(text=f"no target {names}")
        return web.json_response(found.as_json(), status=200 if found.ready else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        accept = request.headers.get("Accept", "")
        snapshot = await self._snapshot()
        text, content_type = await in_thread_or_here(lambda: _scraped(snapshot, accept))
        return web.Response(body=text, headers={"Content-Type": content_type})

    async def status(self, request: web.Request) -> web.Response:
        return web.json_response((await self._snapshot()).as_json())


def _scraped(snapshot: Snapshot, accept: str) -> tuple[bytes, str]:
    """In a thread, where also a first import of the library stops nobody."""
    from krelay.status.metrics import render

    return render(snapshot, accept)


async def _healthz(request: web.Request) -> web.Response:
    if "json" in request.headers.get("Accept", ""):
        return web.json_response({"status": "ok"})
    return web.Response(text="ok\n")


async def _page(request: web.Request) -> web.Response:
    body, policy = await in_thread_or_here(page)
    return web.Response(
        body=body,
        content_type="text/html",
        charset="utf-8",
        headers={"Content-Security-Policy": policy},
    )


def _answering(handler: Handler) -> Answer:
    async def answer(request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(_BODY_DEADLINE):
                content = await request.read()
            body = json.loads(content) if content else {}
        except TimeoutError:
            raise web.HTTPRequestTimeout(text="the body did not come in time") from None
        except (ValueError, RecursionError):
            body = None
        except BAD_PAYLOAD:
            raise web.HTTPBadRequest(text="the body is not what its headers say") from None
        if not isinstance(body, dict):
            raise web.HTTPBadRequest(text="the body is no JSON object")
        return web.json_response(await handler(body))

    return answer


@web.middleware
async def _plainly(request: web.Request, handler: Answer) -> web.StreamResponse:
    """Every refusal is JSON, as `status.refusal` reads it."""
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
        # What it says may hold a part of the file, and so a secret.
        name, stack = type(exc).__name__, "".join(traceback.format_tb(exc.__traceback__))
        logger.error("%s %s failed: %s\n%s", request.method, request.path[:100], name, stack)
        error = {"message": f"internal error: {name}"}
        return web.json_response({"error": error}, status=500)


async def _protect(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)
    response.headers.setdefault("Content-Security-Policy", _NOTHING)
