"""A krelay that only answers requests on its socket, as a test says."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from krelay.state.bus import EventBus
from krelay.status.servers import serve_unix
from krelay.status.socket_path import socket_path

TEXT = "apiVersion: krelay/v1\ntargets:\n  web: host/a 80\n  db: host/b 81\n  other: host/c 82\n"


@asynccontextmanager
async def answering(
    file: Path, bus: EventBus | None = None, /, **answers: Callable[[Mapping[str, Any]], Any]
) -> AsyncIterator[None]:
    """Run `file`; `GET_status=…` answers `GET /v1/status`, and `bus` has the events."""

    def handler(answer: Callable[[Mapping[str, Any]], Any]) -> Any:
        async def handle(body: Mapping[str, Any]) -> Any:
            found = answer(body)
            return await found if inspect.isawaitable(found) else found

        return handle

    handlers = {
        (name.partition("_")[0], f"/v1/{name.partition('_')[2]}"): handler(answer)
        for name, answer in answers.items()
    }
    place = await asyncio.to_thread(socket_path, str(file))
    async with serve_unix(place, handlers, file=str(file), bus=bus):
        yield
