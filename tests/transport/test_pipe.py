from __future__ import annotations

import asyncio
import os
import random
import struct

import pytest

from krelay.errors import EndedError, NotListeningError, PodGoneError, TunnelError
from krelay.model import Transport
from krelay.transport import pipe as pipe_module
from krelay.transport.pipe import Pipe

from .conftest import DATA, ERROR, FIN, Peer, Server, Witness, control, data, open_pipe

pytestmark = pytest.mark.usefixtures("engine")

PING = control(6, b"\0\0\0\2")
END = FIN + data(b"", ERROR, fin=True)


class Script:
    """The server's part: accepts, reads the streams, then does `then`, and stays."""

    def __init__(self, *frames: bytes, pieces: int = 0) -> None:
        self.frames, self.pieces = frames, pieces
        self.client_closed = asyncio.Event()

    async def __call__(self, peer: Peer) -> None:
        peer.accept()
        await peer.streams()
        await peer.send(*self.frames, pieces=self.pieces)
        await peer.closed()
        self.client_closed.set()


async def test_a_pipe_opens_the_error_and_the_data_stream(
    server: Server, transport: Transport
) -> None:
    opened: asyncio.Future[list[tuple[int, dict[str, str]]]]
    opened = asyncio.get_running_loop().create_future()

    async def play(peer: Peer) -> None:
        peer.accept()
        opened.set_result(await peer.streams())
        await peer.closed()

    server.play = play
    pipe, witness = await open_pipe(server, transport)
    assert await opened == [
        (1, {"streamtype": "error", "port": "8080", "requestid": "0"}),
        (3, {"streamtype": "data", "port": "8080", "requestid": "0"}),
    ]
    assert witness.transport is pipe
    pipe.abort()
    assert await witness.lost is None
    assert witness.calls == ["made", "lost"]


async def test_bytes_pass_both_ways_in_order(server: Server, transport: Transport) -> None:
    pipe, witness = await open_pipe(server, transport)
    sent = os.urandom(3_000_000)
    pipe.writelines([])
    pipe.write(b"")
    at, dice = 0, random.Random(7)
    while at < len(sent):
        size = dice.choice([1, 100, 70_000, 300_000])
        view = memoryview(sent)[at : at + size]
        pipe.writelines([view[:13], bytearray(view[13:])])
        at += size
    await witness.until(lambda: len(witness.data) == len(sent))
    assert bytes(witness.data) == sent
    pipe.abort()
    await witness.lost


@pytest.mark.parametrize("pieces", [1, 7, 1000])
async def test_frames_split_anywhere_are_joined(
    server: Server, transport: Transport, pieces: int
) -> None:
    server.play = Script(*(data(bytes([i]) * i) for i in range(40)), PING, END, pieces=pieces)
    _, witness = await open_pipe(server, transport)
    assert isinstance(await witness.lost, TunnelError)
    assert bytes(witness.data) == b"".join(bytes([i]) * i for i in range(40))


async def test_pieces_of_one_read_are_handed_on_at_once(
    server: Server, transport: Transport
) -> None:
    async def play(peer: Peer) -> None:
        peer.accept(data(b"early"))
        await peer.send(data(b"a") + data(b"b") + control(2, bytes(9)) + data(b"c"))
        await peer.closed()

    class Counting(Witness):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.calls.append(data.decode())

    server.play = play
    pipe, witness = await open_pipe(server, transport, Counting())
    await witness.until(lambda: witness.data.endswith(b"c"))
    assert bytes(witness.data) == b"earlyabc"
    assert witness.calls[1:] in (["early", "abc"], ["earlyabc"])
    pipe.abort()
    await witness.lost


@pytest.mark.parametrize(
    ("frames", "error", "said"),
    [
        ([FIN, PING], EndedError, "the agent ended the connection"),
        ([END], EndedError, "the agent ended the connection"),
        ([data(b"", ERROR, fin=True)], EndedError, "the agent ended the connection"),
        ([control(3, struct.pack(">II", 3, 3))], EndedError, "the agent ended the connection"),
        (
            [data(b"error forwarding port 1: dial tcp4 127.0.0.1:1: connect: connection refused",
                  ERROR, fin=True), FIN],
            NotListeningError,
            "nothing listens on the agent's port",
        ),
        (
            [FIN, data(b"network namespace for sandbox 3f is cl", ERROR), data(b"osed", ERROR),
             control(3, struct.pack(">II", 1, 3))],
            PodGoneError,
            "network namespace for sandbox 3f is closed",
        ),
        (
            [data(b"sandbox 3f is not running", ERROR, fin=True)], PodGoneError, "is not running"
        ),
        (
            [FIN, data(b"a" * 9000, ERROR), data(b"no socat", ERROR, fin=True)],
            TunnelError,
            "the port-forward ended: " + "a" * 300,
        ),
        ([data(b"a" * 900 + b"no socat", ERROR, fin=True)], TunnelError, "aano socat"),
    ],
)  # fmt: skip
async def test_the_end_of_the_streams_ends_the_pipe_although_the_connection_stays(
    server: Server, transport: Transport, frames: list[bytes], error: type[TunnelError], said: str
) -> None:
    server.play = script = Script(data(b"before"), *frames)
    pipe, witness = await open_pipe(server, transport)
    lost = await witness.lost
    assert type(lost) is error
    assert said in str(lost)
    assert bytes(witness.data) == b"before"
    assert pipe.is_closing()
    await script.client_closed.wait()


async def test_an_error_text_whose_stream_stays_open_ends_the_pipe_in_time(
    server: Server, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe_module, "_TEXT_DEADLINE", 0.01)
    server.play = Script(data(b"sandbox 3f is not ", ERROR), data(b"running" * 9999, ERROR))
    _, witness = await open_pipe(server, transport)
    assert isinstance(await witness.lost, PodGoneError)


async def test_a_connection_cut_within_a_frame_is_a_tunnel_error(
    server: Server, transport: Transport
) -> None:
    async def play(peer: Peer) -> None:
        peer.accept()
        await peer.streams()
        await peer.send(data(b"abc")[:-1])

    server.play = play
    _, witness = await open_pipe(server, transport)
    assert "the connection to the API server was lost" in str(await witness.lost)
    assert bytes(witness.data) == b"ab"
    assert witness.calls == ["made", "lost"]


async def test_a_connection_cut_after_an_error_text_ends_with_that_text(
    server: Server, transport: Transport
) -> None:
    async def play(peer: Peer) -> None:
        peer.accept()
        await peer.send(data(b"sandbox 3f is not running", ERROR))

    server.play = play
    _, witness = await open_pipe(server, transport)
    assert isinstance(await witness.lost, PodGoneError)


async def test_bytes_that_are_no_spdy_end_the_pipe(server: Server, transport: Transport) -> None:
    server.play = script = Script(b"\x80\x02\0\0\0\0\0\0")
    _, witness = await open_pipe(server, transport)
    assert "does not speak SPDY: version 2" in str(await witness.lost)
    await script.client_closed.wait()


async def test_bytes_that_are_no_websocket_end_the_pipe(server: Server) -> None:
    async def play(peer: Peer) -> None:
        peer.accept()
        await peer.streams()
        peer.writer.write(b"\xff" * 20)
        await peer.closed()

    server.play = play
    _, witness = await open_pipe(server, Transport.WEBSOCKET)
    assert "not a WebSocket" in str(await witness.lost)


async def test_a_closed_websocket_ends_the_pipe_with_its_reason(server: Server) -> None:
    async def play(peer: Peer) -> None:
        peer.accept()
        await peer.streams()
        assert peer.web is not None
        last = peer.carried(data(b"last") + PING)
        peer.web.send_close(1001, "bye")
        peer.writer.write(last + b"".join(peer.web.data_to_send()))
        await peer.closed()

    class Answering(Witness):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            pipe.write(b"too late")

    server.play = play
    pipe, witness = await open_pipe(server, Transport.WEBSOCKET, Answering())
    assert "1001 (going away) bye" in str(await witness.lost)
    assert bytes(witness.data) == b"last"


async def test_pings_are_answered(server: Server, transport: Transport) -> None:
    answered = asyncio.Event()

    async def play(peer: Peer) -> None:
        peer.accept()
        await peer.streams()
        await peer.send(PING)
        assert await peer.frame() == (0x80030006, 0, b"\0\0\0\2")
        if peer.web is not None:
            peer.web.send_ping(b"hello")
            await peer.send(PING)
            assert await peer.frame() == (0x80030006, 0, b"\0\0\0\2")
            assert [bytes(frame.data) for frame in peer.events] == [b"hello"]
        answered.set()
        await peer.closed()

    server.play = play
    pipe, witness = await open_pipe(server, transport)
    await answered.wait()
    pipe.abort()
    await witness.lost


async def test_a_server_that_reads_no_replies_gets_no_more_of_them(
    server: Server, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe_module, "_REPLIES_LIMIT", 0)
    server.play = Script(PING, END)
    _, witness = await open_pipe(server, transport)
    await witness.lost
    assert server.peers[0]._pending == b""


async def test_a_slow_server_pauses_the_writer(server: Server, transport: Transport) -> None:
    read_on = asyncio.Event()
    total = 0

    async def play(peer: Peer) -> None:
        peer.accept()
        await peer.streams()
        await read_on.wait()
        await peer.payload(total)
        await peer.send(END)
        await peer.closed()

    server.play = play
    pipe, witness = await open_pipe(server, transport)
    pipe.set_write_buffer_limits(high=100_000)
    assert pipe.get_write_buffer_limits() == (25_000, 100_000)
    while "pause" not in witness.calls:
        pipe.write(bytes(100_000))
        total += 100_000
        await asyncio.sleep(0)
    # The kernel may have taken some of it, even all of it, in the turn since the pause.
    assert pipe.get_write_buffer_size() > 25_000 or "resume" in witness.calls
    read_on.set()
    await witness.until(lambda: "resume" in witness.calls)
    await witness.lost
    assert pipe.get_write_buffer_size() == 0


async def test_write_eof_ends_the_data_stream_and_not_the_pipe(
    server: Server, transport: Transport
) -> None:
    frames = []

    async def play(peer: Peer) -> None:
        peer.accept()
        await peer.streams()
        frames.append(await peer.frame())
        await peer.send(data(b"answer"))
        await peer.closed()

    server.play = play
    pipe, witness = await open_pipe(server, transport)
    pipe.write_eof()
    await witness.until(lambda: witness.data == b"answer")
    assert frames == [(DATA, 1, b"")]
    pipe.abort()


async def test_close_sends_the_written_bytes_first(server: Server, transport: Transport) -> None:
    sent = os.urandom(2_000_000)
    got = bytearray()

    async def play(peer: Peer) -> None:
        peer.accept()
        await peer.streams()
        got.extend(await peer.payload(len(sent)))
        await peer.closed()

    server.play = play
    pipe, witness = await open_pipe(server, transport)
    pipe.write(sent)
    pipe.close()
    pipe.close()
    assert pipe.is_closing()
    pipe.write(b"too late")
    assert await witness.lost is None
    await server.gone.wait()
    assert bytes(got) == sent


async def test_close_aborts_the_connection_at_its_deadline(
    server: Server, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe_module, "CLOSE_DEADLINE", 0.01)

    async def play(peer: Peer) -> None:
        peer.accept()
        await witness_lost.wait()

    server.play = play
    witness_lost = asyncio.Event()
    pipe, witness = await open_pipe(server, transport)
    while "pause" not in witness.calls:
        pipe.write(bytes(1 << 20))
    pipe.close()
    assert await witness.lost is None
    witness_lost.set()


async def test_bytes_received_after_close_are_dropped(server: Server, transport: Transport) -> None:
    class Closing(Witness):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            pipe.close()

    server.play = Script(data(b"one"), data(bytes(1 << 20)), END)
    pipe, witness = await open_pipe(server, transport, Closing())
    assert await witness.lost is None
    assert witness.data.startswith(b"one")
    assert len(witness.data) < 1 << 20


async def test_close_right_after_the_opening_ends_without_an_error(
    server: Server, transport: Transport
) -> None:
    class Closing(Witness):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            transport.close()

    async def play(peer: Peer) -> None:
        peer.accept(data(b"early"))
        await peer.closed()

    server.play = play
    pipe, witness = await open_pipe(server, transport, Closing())
    pipe.received(b"")
    assert await witness.lost is None
    assert witness.data == b""


async def test_close_while_the_server_ends_the_streams_is_no_error(
    server: Server, transport: Transport
) -> None:
    class Closing(Witness):
        def data_received(self, data: bytes) -> None:
            pipe.close()

    server.play = Script(data(b"text", ERROR) + data(b"x") + END)
    pipe, witness = await open_pipe(server, transport, Closing())
    assert await witness.lost is None


async def test_the_pipe_passes_other_calls_to_its_transport(
    server: Server, transport: Transport
) -> None:
    pipe, first = await open_pipe(server, transport)
    assert isinstance(pipe, Pipe)
    assert pipe.get_extra_info("ssl_object") is not None
    assert pipe.get_extra_info("nonsense", 7) == 7
    assert pipe.can_write_eof()
    assert pipe.get_protocol() is first
    second = Witness()
    pipe.set_protocol(second)
    pipe.pause_reading()
    assert not pipe.is_reading()
    pipe.write(b"x")
    pipe.resume_reading()
    assert pipe.is_reading()
    await second.until(lambda: second.data == b"x")
    pipe.abort()
    assert await second.lost is None
    assert first.calls == ["made"]
