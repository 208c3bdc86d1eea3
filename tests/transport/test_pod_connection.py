"""Many streams into one pod over one connection, against an API server that the test plays."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable

import pytest

from krelay.datapath.connector import RETRIED
from krelay.model import Transport
from krelay.mux.stream import StreamHandler
from krelay.transport import pod_connection
from krelay.transport.pod_connection import PodConnection, refusal
from krelay.transport.portforward import TransportPreference, open_upgraded
from krelay.wire.errors import ErrorCode, ProtocolError
from krelay.wire.frames import Buffer
from krelay.wire.stream import INITIAL_WINDOW
from tests.transport.conftest import Peer, Play, Server, control, data

REFUSED = (
    b"error forwarding port 81 to pod 0a1b, uid : failed to execute portforward in network "
    b"namespace: failed to connect to localhost:81 inside namespace, IPv4: dial tcp4 "
    b"127.0.0.1:81: connect: connection refused"
)
CAUSES = [
    (REFUSED.decode(), ErrorCode.REFUSED),
    ("network namespace for sandbox 0a1b is closed", ErrorCode.GOING_AWAY),
    ("dial tcp4 127.0.0.1:81: i/o timeout", ErrorCode.CONNECT_TIMEOUT),
    ("dial tcp4: no route to host", ErrorCode.UNREACHABLE),
    ("something else", ErrorCode.DIAL_FAILED),
]


class Events(StreamHandler):
    """Records the events of a stream."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.data = bytearray()
        self.code = ErrorCode.NONE
        self.changed = asyncio.Event()

    def _called(self, name: str) -> None:
        self.calls.append(name)
        self.changed.set()

    def on_accepted(self) -> None:
        self._called("accepted")

    def on_refused(self, code: ErrorCode, message: str) -> None:
        self.code = code
        self._called("refused")

    def on_data(self, data: Buffer) -> None:
        assert type(data) is bytes
        self.data += data
        self.changed.set()

    def on_datagram(self, data: Buffer) -> None:
        raise AssertionError

    def on_end(self) -> None:
        self._called("end")

    def on_reset(self, code: ErrorCode) -> None:
        self.code = code
        self._called("reset")

    def on_writable(self) -> None:
        self._called("writable")

    async def until(self, met: Callable[[], object]) -> None:
        while not met():
            self.changed.clear()
            await self.changed.wait()

    async def received(self, wanted: bytes) -> None:
        await self.until(lambda: self.data == wanted)

    async def called(self, name: str) -> None:
        await self.until(lambda: name in self.calls)


class Connected:
    """A connection, with what it reported."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.refused: list[int] = []
        self.connection: PodConnection

    async def until(self, met: Callable[[PodConnection], object]) -> None:
        while not met(self.connection):
            self.changed.clear()
            await self.changed.wait()


@contextlib.asynccontextmanager
async def connected(
    server: Server, play: Play, transport: Transport = Transport.SPDY
) -> AsyncIterator[Connected]:
    async def accepted(peer: Peer) -> None:
        peer.accept()
        await play(peer)
        await peer.closed()

    server.play = accepted
    found = Connected()
    found.connection = await open_upgraded(
        server.access(),
        lambda carrier: PodConnection(
            carrier, "team/web-0", on_change=found.changed.set, on_refused=found.refused.append
        ),
        namespace="team",
        pod="web-0",
        transport=transport,
        preference=TransportPreference(),
    )
    try:
        yield found
    finally:
        found.connection.close()


async def opened(peer: Peer) -> tuple[int, int]:
    """Read a pair of streams and the end of the error stream; return both ids."""
    (error, first), (found, second) = await peer.streams()
    assert (first["streamtype"], second["streamtype"]) == ("error", "data")
    assert first["requestid"] == second["requestid"]
    assert await peer.frame() == (error, 1, b"")
    return error, found


def reply(stream: int) -> bytes:
    return control(2, struct.pack(">II", stream, 0))


def reset(stream: int) -> bytes:
    return control(3, struct.pack(">II", stream, 5))


async def test_streams_share_a_connection(server: Server, transport: Transport) -> None:
    async def play(peer: Peer) -> None:
        pairs = [await opened(peer) for _ in range(3)]
        assert pairs == [(1, 3), (5, 7), (9, 11)]
        for _ in pairs:
            stream, _, payload = await peer.frame()
            await peer.send(reply(stream - 2), reply(stream), data(payload * 2, stream))

    async with connected(server, play, transport) as c:
        handlers = [Events() for _ in range(3)]
        streams = [c.connection.open(80, handler) for handler in handlers]
        for number, stream in enumerate(streams):
            assert stream.write(b"%d" % number)
        for number, handler in enumerate(handlers):
            await handler.received(b"%d%d" % (number, number))
            assert handler.calls == ["accepted"]
        assert c.connection.count == 3
        assert c.connection.takes_streams
        assert not c.connection.stalled


async def test_a_refusal_ends_its_stream_alone(server: Server) -> None:
    async def play(peer: Peer) -> None:
        error, first = await opened(peer)
        assert await peer.frame() == (first, 0, b"early")
        await peer.send(reply(error), reply(first), data(REFUSED, error))
        await peer.send(reset(first), reset(error))
        assert await peer.frame() == (first, 1, b"")
        error, second = await opened(peer)
        await peer.send(reply(second), data(b"hello", second))

    async with connected(server, play) as c:
        refused, fine = Events(), Events()
        c.connection.open(81, refused).write(b"early")
        await refused.called("refused")
        assert refused.code is ErrorCode.REFUSED
        assert c.refused == [81]
        stream = c.connection.open(80, fine)
        await fine.until(lambda: fine.data == b"hello")
        assert list(c.connection.streams.values()) == [stream, stream]


async def test_silence_of_a_node_that_took_a_stream_is_a_dial_that_worked(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_connection, "SETTLE", 0.0)

    async def play(peer: Peer) -> None:
        _, found = await opened(peer)
        await peer.send(reply(found))

    async with connected(server, play) as c:
        handler = Events()
        c.connection.open(80, handler)
        await handler.called("accepted")


async def test_a_node_that_takes_no_stream_refuses_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_connection, "ANSWER_TIMEOUT", 0.0)

    async def play(peer: Peer) -> None:
        error, found = await opened(peer)
        assert [await peer.frame() for _ in range(2)] == [
            (0x80030003, 0, struct.pack(">II", each, 5)) for each in (found, error)
        ]

    async with connected(server, play) as c:
        handler = Events()
        c.connection.open(80, handler)
        await handler.called("refused")
        assert handler.code is ErrorCode.CONNECT_TIMEOUT


async def test_early_bytes_of_a_stream_without_an_answer_go_to_no_other_pod(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_connection, "ANSWER_TIMEOUT", 0.1)

    async def play(peer: Peer) -> None:
        await opened(peer)

    async with connected(server, play) as c:
        handler = Events()
        c.connection.open(80, handler).write(b"early")
        await handler.called("refused")
        assert handler.code not in RETRIED


async def test_an_answer_is_waited_for_while_a_slow_consumer_is_in_front_of_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_connection, "WINDOW", 100)
    monkeypatch.setattr(pod_connection, "ANSWER_TIMEOUT", 0.1)

    async def play(peer: Peer) -> None:
        _, slow = await opened(peer)
        await peer.send(reply(slow), data(bytes(101), slow))
        _, found = await opened(peer)
        await peer.send(reply(found), data(b"hello", found))

    async with connected(server, play) as c:
        slow, handler = Events(), Events()
        stream = c.connection.open(80, slow)
        await slow.until(lambda: len(slow.data) == 101)
        c.connection.open(80, handler)
        await asyncio.sleep(0.3)
        stream.consume(101)
        await handler.until(lambda: handler.data == b"hello")
        assert handler.calls == ["accepted"]


@pytest.mark.parametrize("accepted", [True, False])
async def test_a_node_that_resets_a_stream_has_not_ended_it(
    server: Server, *, accepted: bool
) -> None:
    async def play(peer: Peer) -> None:
        error, found = await opened(peer)
        await peer.send(reply(found), *([data(b"half", found)] if accepted else []))
        await peer.send(reset(found), reset(error))

    async with connected(server, play) as c:
        handler = Events()
        c.connection.open(80, handler)
        await handler.called("reset" if accepted else "refused")
        assert handler.calls == (["accepted", "reset"] if accepted else ["refused"])
        assert not c.connection.streams


async def test_an_end_waits_for_no_error_stream_that_has_ended(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_connection, "_TEXT_DEADLINE", 3600.0)

    async def play(peer: Peer) -> None:
        error, found = await opened(peer)
        await peer.send(data(b"", error, fin=True), data(b"all", found), data(b"", found, fin=True))

    async with connected(server, play) as c:
        handler = Events()
        c.connection.open(80, handler)
        await handler.called("end")
        assert handler.data == b"all"


async def test_a_sandbox_that_has_ended_gets_no_more_streams(server: Server) -> None:
    async def play(peer: Peer) -> None:
        error, found = await opened(peer)
        await peer.send(reply(found), data(CAUSES[1][0].encode(), error), reset(found))

    async with connected(server, play) as c:
        handler = Events()
        c.connection.open(80, handler)
        await handler.called("refused")
        assert handler.code is ErrorCode.GOING_AWAY
        assert not c.connection.takes_streams


async def test_the_end_of_a_stream_is_passed_on_and_answered(server: Server) -> None:
    done = asyncio.Event()

    async def play(peer: Peer) -> None:
        error, found = await opened(peer)
        await peer.send(data(b"all", found), data(b"", error, fin=True), data(b"", found, fin=True))
        assert await peer.frame() == (found, 1, b"")  # or the node keeps it for ever
        done.set()

    async with connected(server, play) as c:
        handler = Events()
        stream = c.connection.open(80, handler)
        await handler.called("end")
        await done.wait()
        assert handler.data == b"all"
        assert handler.calls == ["accepted", "end"]
        assert not c.connection.count
        stream.write(b"more")  # there is nothing left to take it
        await handler.called("reset")


async def test_a_stream_that_both_ends_have_ended_is_gone(server: Server) -> None:
    async def play(peer: Peer) -> None:
        error, found = await opened(peer)
        assert await peer.frame() == (found, 0, b"x")
        assert await peer.frame() == (found, 1, b"")
        await peer.send(data(b"", found, fin=True), data(b"", error, fin=True))

    async with connected(server, play) as c:
        handler = Events()
        stream = c.connection.open(80, handler)
        stream.write(b"x")
        stream.end()
        stream.end()
        await handler.called("end")
        assert stream.handler is None
        assert not c.connection.streams


async def test_a_half_close_is_passed_on_and_the_answer_arrives(
    server: Server, transport: Transport
) -> None:
    async def play(peer: Peer) -> None:
        error, found = await opened(peer)
        assert await peer.frame() == (found, 0, b"question")
        assert await peer.frame() == (found, 1, b"")
        await peer.send(data(b"answer", found))
        await peer.send(data(b"", found, fin=True), data(b"", error, fin=True))

    async with connected(server, play, transport) as c:
        handler = Events()
        stream = c.connection.open(80, handler)
        stream.write(b"question")
        stream.end()
        await handler.called("end")
        assert handler.data == b"answer"
        assert handler.calls == ["accepted", "end"]


async def test_an_error_after_the_dial_is_a_reset(server: Server) -> None:
    async def play(peer: Peer) -> None:
        error, found = await opened(peer)
        await peer.send(data(b"x", found), data(b"", found, fin=True), data(b"broken pipe", error))
        await peer.send(reset(error))

    async with connected(server, play) as c:
        handler = Events()
        c.connection.open(80, handler)
        await handler.called("reset")
        assert handler.calls == ["accepted", "reset"]


async def test_a_slow_consumer_holds_up_the_connection_until_it_has_caught_up(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_connection, "WINDOW", 100)
    monkeypatch.setattr(pod_connection, "STALL", -1.0)
    first = asyncio.Event()

    async def play(peer: Peer) -> None:
        _, found = await opened(peer)
        await peer.send(data(bytes(101), found))
        await first.wait()
        await peer.send(data(b"more", found))

    async with connected(server, play) as c:
        handler = Events()
        stream = c.connection.open(80, handler)
        await handler.until(lambda: len(handler.data) == 101)
        assert c.connection.stalled
        first.set()
        stream.consume(60)
        assert not c.connection.stalled
        await handler.until(lambda: len(handler.data) == 105)


async def test_a_stream_that_leaves_holds_up_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_connection, "WINDOW", 100)

    async def play(peer: Peer) -> None:
        _, found = await opened(peer)
        _, other = await opened(peer)
        await peer.send(data(bytes(101), found), data(b"x", other))

    async with connected(server, play) as c:
        slow, other = Events(), Events()
        stream = c.connection.open(80, slow)
        c.connection.open(80, other)
        await slow.until(lambda: slow.data)
        stream.reset()
        await other.until(lambda: other.data)
        assert c.connection.count == 1
        assert slow.calls == ["accepted"]


async def test_a_writer_waits_for_the_dial_after_its_early_bytes(server: Server) -> None:
    go = asyncio.Event()

    async def play(peer: Peer) -> None:
        _, found = await opened(peer)
        await go.wait()
        await peer.send(data(b"x", found))

    async with connected(server, play) as c:
        handler = Events()
        stream = c.connection.open(80, handler)
        assert stream.write(bytes(INITIAL_WINDOW - 1))
        assert not stream.write(b"xx")
        go.set()
        await handler.called("writable")
        assert handler.calls[:2] == ["accepted", "writable"]
        assert stream.write(b"more")


@pytest.mark.parametrize(("sent", "result"), [(b"", "refused"), (b"x", "reset")])
async def test_a_lost_connection_refuses_streams_that_sent_nothing(
    server: Server, sent: bytes, result: str
) -> None:
    async def play(peer: Peer) -> None:
        await opened(peer)
        if sent:
            await peer.frame()
        peer.writer.transport.abort()

    async with connected(server, play) as c:
        handler = Events()
        stream = c.connection.open(80, handler)
        if sent:
            stream.write(sent)
        await handler.called(result)
        assert c.connection.failure is not None
        assert not c.connection.streams
        with pytest.raises(ProtocolError):
            c.connection.open(80, handler)


async def test_bytes_of_a_stream_that_has_left_are_dropped(server: Server) -> None:
    async def play(peer: Peer) -> None:
        error, found = await opened(peer)
        for each in (found, error):
            assert await peer.frame() == (0x80030003, 0, struct.pack(">II", each, 5))
        await peer.send(data(b"late", found), data(b"", found, fin=True))
        _, other = await opened(peer)
        await peer.send(data(b"x", other))

    async with connected(server, play) as c:
        left, handler = Events(), Events()
        c.connection.open(80, left).reset()
        c.connection.open(80, handler)
        await handler.until(lambda: handler.data)
        assert left.calls == []


async def test_a_node_that_takes_no_more_gets_no_more(server: Server) -> None:
    async def play(peer: Peer) -> None:
        _, found = await opened(peer)
        await peer.send(control(7, struct.pack(">II", found, 0)), data(b"x", found))

    async with connected(server, play) as c:
        handler = Events()
        c.connection.open(80, handler)
        await c.until(lambda connection: not connection.takes_streams)
        assert handler.data == b"x"


async def test_a_silent_node_stalls_its_connection_and_ends_an_idle_one(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_connection, "PING_TIMEOUT", 0.0)
    go = asyncio.Event()

    async def play(peer: Peer) -> None:
        await opened(peer)
        word, _, number = await peer.frame()
        await go.wait()
        await peer.send(struct.pack(">II", word, len(number)) + number)

    async with connected(server, play) as c:
        stream = c.connection.open(80, Events())
        c.connection.verify()
        await c.until(lambda connection: connection.stalled)
        go.set()
        await c.until(lambda connection: not connection.stalled)
        stream.reset()
        c.connection.verify()
        await c.until(lambda connection: connection.failure)
        assert "no sign of life" in str(c.connection.failure)


async def test_a_ping_of_the_node_is_answered(server: Server) -> None:
    done = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.send(control(6, b"\0\0\0\2"))
        assert await peer.frame() == (0x80030006, 0, b"\0\0\0\2")
        done.set()

    async with connected(server, play):
        await done.wait()


async def test_bytes_that_are_no_spdy_end_the_connection(server: Server) -> None:
    async def play(peer: Peer) -> None:
        await peer.send(data(b"x", 99))

    async with connected(server, play) as c:
        await c.until(lambda connection: connection.failure)
        assert "does not speak SPDY" in str(c.connection.failure)


async def test_a_bug_in_a_handler_ends_its_stream_alone(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    class Buggy(Events):
        def on_data(self, data: Buffer) -> None:
            raise RuntimeError("a bug")

    async def play(peer: Peer) -> None:
        _, buggy = await opened(peer)
        _, fine = await opened(peer)
        await peer.send(data(b"x", buggy), data(b"x", fine))

    async with connected(server, play) as c:
        buggy, fine = Buggy(), Events()
        c.connection.open(80, buggy)
        c.connection.open(80, fine)
        await fine.until(lambda: fine.data)
        assert buggy.calls[-1] == "reset"
        assert "a stream failed" in caplog.text


@pytest.mark.parametrize(("text", "code"), CAUSES)
def test_what_a_node_says_has_a_code(text: str, code: ErrorCode) -> None:
    assert refusal(text)[0] is code
    assert len(refusal("x" * 10_000 + text)[1]) <= 300
