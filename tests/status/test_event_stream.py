"""Server-sent events: for new, returning and slow clients."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
from aiohttp import ClientPayloadError, ClientResponse

from krelay.model import StatusConfig
from krelay.state.bus import BACKLOG
from krelay.status import connections
from krelay.status import event_stream as module
from krelay.status.event_stream import MAX_STREAMS, as_text
from krelay.text import one_line
from tests import rig
from tests.state.said import Said, said
from tests.status.serving import Service, client, service


@asynccontextmanager
async def stream(
    made: Service, resource: str = "/v1/events", **headers: str
) -> AsyncIterator[ClientResponse]:
    """Open a stream, and wait for its beginning."""
    async with client(made) as http:
        async with http.get(resource, headers=headers) as response:
            assert response.status == 200
            assert response.headers["Content-Type"] == "text/event-stream"
            assert await block(response) == "retry: 1000"
            yield response


async def block(response: ClientResponse) -> str:
    """Return the next event or comment as sent."""
    return (await response.content.readuntil(b"\n\n")).decode().rstrip("\n")


async def numbers(response: ClientResponse, count: int) -> list[int]:
    """Return the data of the next events."""
    found = [await block(response) for _ in range(count)]
    return [int(text.splitlines()[0].removeprefix("id: ")) for text in found]


async def test_an_event_reaches_a_client() -> None:
    async with service() as made, stream(made) as response:
        made.bus.publish(said("state", "ready\nand more", target="web", state="ready"))
        lines = (await block(response)).splitlines()
        assert lines[:2] == ["id: 1", "event: state"]
        assert len(lines) == 3
        found = json.loads(lines[2].removeprefix("data: "))
        assert (found["text"], found["target"]) == ("ready and more", "web")
        assert found == json.loads(json.dumps(made.bus.history[0].as_json()))


@pytest.mark.parametrize("text", ["\n\n", "\r", "\x00", "\u2028", "data: x\n\nid: 7"])
def test_no_text_can_end_an_event(text: str) -> None:
    sent = as_text(Said("state", text, number=3))
    assert sent.count("\n") == 4
    assert "\r" not in sent
    assert json.loads(sent.splitlines()[2].removeprefix("data: "))["text"] == one_line(text)


async def test_a_client_that_reconnects_gets_what_it_missed() -> None:
    async with service() as made:
        for _ in range(3):
            made.bus.publish(said("state", "x"))
        async with stream(made, Last_Event_ID="1") as unknown, stream(made) as new:
            made.bus.publish(said("state", "x"))
            assert await numbers(new, 1) == [4]
            assert await numbers(unknown, 1) == [4]  # no such header
        async with stream(made, **{"Last-Event-ID": "1"}) as response:
            assert await numbers(response, 3) == [2, 3, 4]
        async with stream(made, "/v1/events?after=2") as response:
            assert await numbers(response, 2) == [3, 4]
        # the header is newer than the address
        async with stream(made, "/v1/events?after=0", **{"Last-Event-ID": "3"}) as response:
            assert await numbers(response, 1) == [4]


@pytest.mark.parametrize("known", ["99", "999999999999999999"])
async def test_a_number_of_an_earlier_run_gets_every_event(known: str) -> None:
    async with service() as made:
        made.bus.publish(said("state", "x"))
        async with stream(made, **{"Last-Event-ID": known}) as response:
            assert await numbers(response, 1) == [1]


@pytest.mark.parametrize("known", ["x", "-1", "1.5", "٣", "1" * 5000])
async def test_an_invalid_number_is_ignored(known: str) -> None:
    async with service() as made:
        made.bus.publish(said("state", "x"))
        async with client(made) as http:
            async with http.get("/v1/events", params={"after": known}) as response:
                assert await block(response) == "retry: 1000"
                made.bus.publish(said("state", "y"))
                assert await numbers(response, 1) == [2]


async def test_a_comment_shows_that_the_stream_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT", 0.01)
    async with service() as made, stream(made) as response:
        assert [await block(response) for _ in range(2)] == [": still here"] * 2
        made.bus.publish(said("state", "x"))
        while (text := await block(response)) == ": still here":
            pass
        assert text.startswith("id: 1\n")


async def test_streams_beyond_the_limit_are_refused() -> None:
    async with service() as made, AsyncExitStack() as stack:
        for _ in range(MAX_STREAMS):
            await stack.enter_async_context(stream(made))
        async with client(made) as http:
            async with http.get("/v1/events") as response:
                assert (response.status, response.headers["Retry-After"]) == (503, "5")
            async with http.get("/healthz") as response:
                assert response.status == 200
        assert len(made.bus._subscriptions) == MAX_STREAMS
        await stack.aclose()
        await rig.until(lambda: not made.bus._subscriptions)
        async with stream(made):
            assert len(made.bus._subscriptions) == 1


async def test_the_close_of_the_server_ends_every_stream() -> None:
    async with service() as made, stream(made) as response:
        await made.listening.apply(StatusConfig())
        with pytest.raises(ClientPayloadError):
            await response.content.read()
        assert not made.bus._subscriptions


async def reading_nothing(made: Service) -> socket.socket:
    """Return a client with small buffers that has asked for events and reads nothing."""
    address = made.listening.addresses[0]
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, (address.host, address.port))
    await loop.sock_sendall(sock, f"GET /v1/events HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
    await rig.until(lambda: made.bus._subscriptions)
    return sock


async def flood(made: Service, listener: Any) -> None:
    """Publish more events than the buffers and the listener hold."""
    while not listener.dropped:
        for _ in range(100):
            made.bus.publish(said("state", "x" * 2000))
        await asyncio.sleep(0)


async def test_a_slow_client_loses_the_oldest_events_and_gets_their_count() -> None:
    async with service() as made:
        sock = await reading_nothing(made)
        (listener,) = made.bus._subscriptions
        await flood(made, listener)
        assert len(listener._events) == BACKLOG
        data = bytearray()
        while b"event: dropped\ndata: {" not in data:
            data += await rig.recv(sock)
        sock.close()
        await rig.until(lambda: not made.bus._subscriptions)


async def test_a_client_that_reads_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    async with service() as made:
        sock = await reading_nothing(made)
        (listener,) = made.bus._subscriptions
        await flood(made, listener)
        assert made.listening._connections is not None
        (connection,) = made.listening._connections.open
        monkeypatch.setattr(connections, "PATIENCE", 0.01)
        connection.check_progress()
        await rig.until(lambda: not made.bus._subscriptions)
        with suppress(ConnectionResetError):  # the kernel may drop what was not sent
            while await rig.recv(sock):
                pass  # what was on its way; then the end
        sock.close()
