"""The status API over TCP in the test's process, and a client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientSession, ClientTimeout

from krelay.model import StatusConfig
from krelay.state.bus import EventBus
from krelay.status import Handler
from krelay.status.servers import TcpServer
from tests.status.reports import Live

TOKEN = "0123456789abcdef"


async def echo(body: Mapping[str, Any]) -> Any:
    """Answer with the request."""
    return {"got": dict(body)}


HANDLERS: dict[tuple[str, str], Handler] = {("POST", "/v1/echo"): echo}


@dataclass
class Service:
    """A TCP server and the state that it serves."""

    live: Live = field(default_factory=Live)
    bus: EventBus = field(default_factory=EventBus)
    handlers: Mapping[tuple[str, str], Handler] = field(default_factory=lambda: HANDLERS)

    def __post_init__(self) -> None:
        self.listening = TcpServer(self.handlers, snapshot=self.live, bus=self.bus)

    @property
    def url(self) -> str:
        """Base URL of the server."""
        return f"http://{self.listening.addresses[0]}"


@asynccontextmanager
async def service(
    token: str | None = None, handlers: Mapping[tuple[str, str], Handler] = HANDLERS
) -> AsyncIterator[Service]:
    """Serve on a free port of loopback."""
    made = Service(handlers=handlers)
    async with aclosing(made.listening):
        await made.listening.apply(StatusConfig(("127.0.0.1", 0), token))
        yield made


@asynccontextmanager
async def client(made: Service) -> AsyncIterator[ClientSession]:
    """Return a client for requests by path, which keeps cookies of an address too."""
    from aiohttp import CookieJar

    async with ClientSession(
        made.url, timeout=ClientTimeout(8), cookie_jar=CookieJar(unsafe=True)
    ) as session:
        yield session
