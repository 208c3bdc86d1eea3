from __future__ import annotations

import asyncio
import socket

import pytest

from krelay.net.api_access import ApiAccess
from krelay.transport import portforward as module
from krelay.transport.portforward import reachable_again


@pytest.mark.parametrize("way", ["server", "proxy"])
async def test_a_server_or_proxy_that_returns_is_reachable_again(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROBE_EVERY", 0.02)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        if way == "server":
            access = ApiAccess(url, None, None, ())
        else:
            access = ApiAccess("https://192.0.2.1", None, None, (), proxy=url)
        async with asyncio.TaskGroup() as tasks:
            looking = tasks.create_task(reachable_again(access))
            await asyncio.sleep(0.05)
            assert not looking.done()
            sock.listen()
            await looking


async def test_a_server_that_stays_reachable_never_counts_as_reachable_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PROBE_EVERY", 0.01)
    looks = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal looks
        looks += 1
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    async with asyncio.TaskGroup() as tasks:
        looking = tasks.create_task(reachable_again(ApiAccess(url, None, None, ())))
        while looks < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert not looking.done()
        looking.cancel()
    listener.close()
