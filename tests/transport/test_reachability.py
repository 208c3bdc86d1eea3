from __future__ import annotations

import asyncio
import socket

import pytest

from krelay.net.api_access import ApiAccess
from krelay.transport import reachability as module
from krelay.transport.reachability import reopened


@pytest.mark.parametrize("way", ["server", "proxy"])
async def test_a_way_that_was_shut_and_opens(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 0.02)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        if way == "server":
            access = ApiAccess(url, None, None, ())
        else:
            access = ApiAccess("https://192.0.2.1", None, None, (), proxy=url)
        async with asyncio.TaskGroup() as tasks:
            looking = tasks.create_task(reopened(access))
            await asyncio.sleep(0.05)
            assert not looking.done()
            sock.listen()
            await looking


async def test_one_that_is_open_all_the_time_is_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 0.01)
    looks = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal looks
        looks += 1
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    async with asyncio.TaskGroup() as tasks:
        looking = tasks.create_task(reopened(ApiAccess(url, None, None, ())))
        while looks < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert not looking.done()
        looking.cancel()
    listener.close()
