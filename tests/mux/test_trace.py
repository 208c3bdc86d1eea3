"""The wire trace: a line for each frame with what it carries, and no byte of a payload."""

from __future__ import annotations

import logging
import struct

import pytest

from krelay.mux.trace import WireTrace, show_wire_trace, traces_wire, wire_trace
from krelay.wire.errors import ErrorCode
from krelay.wire.frames import HEAD, FrameType, encode_frame
from krelay.wire.header import TCP, Header
from tests import rig
from tests.agent.peer import session
from tests.mux.pair import Ear

SECRET = b"payload that no log may show"
FRAMES = [
    (encode_frame(FrameType.DATA, 5, SECRET), "DATA s5 size=28"),
    (encode_frame(FrameType.END, 5), "END s5 size=0"),
    (encode_frame(FrameType.COMPRESSED, 5, SECRET), "COMPRESSED s5 size=28"),
    (encode_frame(FrameType.WINDOW, 7, struct.pack(">I", 65_536)), "WINDOW s7 size=4 credit=65536"),
    (
        encode_frame(FrameType.ACK, 0, struct.pack(">QQ", 12, 3_456)),
        "ACK s0 size=16 frames=12 octets=3456",
    ),
    (encode_frame(FrameType.PING, 0, struct.pack(">Q", 9)), "PING s0 size=8 number=9"),
    (encode_frame(FrameType.PONG, 0, struct.pack(">Q", 9)), "PONG s0 size=8 number=9"),
    (encode_frame(FrameType.RESET, 5, b"\x16" + SECRET), "RESET s5 size=29 code=RESET"),
    (encode_frame(FrameType.REFUSED, 5, b"\x13no"), "REFUSED s5 size=3 code=REFUSED"),
    (encode_frame(FrameType.GOAWAY, 0, b"\x08"), "GOAWAY s0 size=1 code=GOING_AWAY"),
    (
        encode_frame(FrameType.LOST, 0, struct.pack(">QQQQ", 1, 2, 3, 4)),
        "LOST s0 size=32 receive=1 send=2 early=3 backlog=4",
    ),
    (encode_frame(FrameType.ACK, 0, b"short"), "ACK s0 size=5"),
    (HEAD.pack(99 << 24 | 3, 1) + b"new", "type 99 s1 size=3"),
    (encode_frame(FrameType.DATAGRAM, 9, SECRET), "DATAGRAM s9 size=28"),
]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("KRELAY_TRACE", "wire")
    caplog.set_level(logging.DEBUG, "krelay.wire.trace")


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "krelay.wire.trace"]


@pytest.mark.parametrize("piece", [1, 3, 7, 20, 10_000])
def test_each_frame_is_one_line_however_the_reads_fall(
    piece: int, traced: None, caplog: pytest.LogCaptureFixture
) -> None:
    trace = WireTrace("web/1", skip_received=4)
    data = b"skip" + b"".join(frame for frame, _ in FRAMES)
    for at in range(0, len(data), piece):
        trace.received(data[at : at + piece])
    assert lines(caplog) == [f"web/1: < {text}" for _, text in FRAMES]
    assert {getattr(r, "tunnel", None) for r in caplog.records} == {"web/1"}
    assert "payload" not in caplog.text


def test_a_welcome_shows_its_numbers_and_ends_the_trace_of_the_handshake(
    traced: None, caplog: pytest.LogCaptureFixture
) -> None:
    trace = WireTrace("web/1")
    welcome = encode_frame(FrameType.WELCOME, 0, struct.pack(">16sQI", SECRET, 7, 4_096) + SECRET)
    trace.received(welcome + FRAMES[0][0])
    assert lines(caplog) == ["web/1: < WELCOME s0 size=56 received=7 streams=4096"]


def test_a_new_tunnel_begins_with_a_new_frame(
    traced: None, caplog: pytest.LogCaptureFixture
) -> None:
    trace = WireTrace("web/1")
    trace.received(FRAMES[0][0][:12])
    trace.sent(FRAMES[1][0])
    trace.begin()
    trace.received(FRAMES[1][0])
    assert lines(caplog) == [
        "web/1: < DATA s5 size=28",
        "web/1: > END s5 size=0",
        "web/1: < END s5 size=0",
    ]


@pytest.mark.parametrize(
    ("value", "on"), [(None, False), ("", False), ("http", False), ("wire", True), ("a,wire", True)]
)
def test_the_environment_turns_it_on_and_makes_it_visible(
    value: str | None, on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KRELAY_TRACE", raising=False)
    if value is not None:
        monkeypatch.setenv("KRELAY_TRACE", value)
    assert traces_wire() == on
    assert (wire_trace("x") is not None) == on
    logger = logging.getLogger("krelay.wire.trace")
    before = logger.level
    try:
        show_wire_trace()
        assert (logger.level == logging.DEBUG) == on
    finally:
        logger.setLevel(before)


async def test_client_and_agent_trace_the_handshake_and_the_session(
    traced: None, caplog: pytest.LogCaptureFixture
) -> None:
    async with rig.agent() as server, rig.tcp_target(rig.echo) as port:
        client = await session(server)
        ear = Ear()
        ear.stream = client.connection.open(Header(TCP, rig.HOST, port), ear)
        ear.stream.write(SECRET)
        await rig.until(lambda: bytes(ear.data) == SECRET)
        ear.stream.reset(ErrorCode.CANCELLED)
        (kept,) = server.sessions._kept.values()
        await rig.until(lambda: not kept.mux.session.streams)
        client.leave()
    mine = [line.removeprefix("test: ") for line in lines(caplog) if line.startswith("test: ")]
    assert [line.split()[:2] for line in mine[:3]] == [
        ["<", "HELLO"],
        [">", "AUTH"],
        ["<", "WELCOME"],
    ]
    assert "> OPEN s1 size=16" in mine
    assert f"> DATA s1 size={len(SECRET)}" in mine
    assert "< OPENED s1 size=0" in mine
    assert f"< DATA s1 size={len(SECRET)}" in mine
    assert any(line.startswith("< ACK s0 size=16 frames=") for line in mine)
    theirs = [line for line in lines(caplog) if not line.startswith("test: ")]
    assert theirs[0].startswith("127.0.0.1:")
    assert [line.split()[1:3] for line in theirs[:3]] == [
        [">", "HELLO"],
        ["<", "AUTH"],
        [">", "WELCOME"],
    ]
    assert "t1: < OPEN s1 size=16" in theirs
    assert f"t1: > DATA s1 size={len(SECRET)}" in theirs
    # What one end sends the other receives, in the same order.
    sent = [line[2:] for line in mine if line.startswith("> ")]
    seen = [line.partition(": < ")[2] for line in theirs if ": < " in line]
    assert sent[: len(seen)] == seen
    assert "payload" not in caplog.text


async def test_no_trace_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KRELAY_TRACE", raising=False)
    async with rig.agent() as server:
        client = await session(server)
        (kept,) = server.sessions._kept.values()
        assert client.connection._trace is None
        assert kept.mux._trace is None
        client.leave()
