"""Compressed frames: what they may hold, when they are sent, and what that gains."""

from __future__ import annotations

import json
import random
import statistics
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.wire.compression import (
    KNOWN,
    Algorithm,
    Compressor,
    choose,
    compress,
    decompress,
)
from krelay.wire.errors import FlowControlError, ProtocolError
from krelay.wire.events import DataReceived, StreamOpened
from krelay.wire.frames import MAX_PAYLOAD, Buffer, FrameDecoder, FrameType, encode_frame
from krelay.wire.replay import ReplayBuffer
from krelay.wire.send_queue import SendQueue
from krelay.wire.session import Limits, Session, Side
from krelay.wire.stream import State, Stream
from tests.wire.link import Link
from tests.wire.pipe import TARGET, Joined

TEXT = b'{"name": "krelay", "port": 80}\n' * 2_000
algorithms = pytest.mark.parametrize("algorithm", list(KNOWN), ids=str)


class Watch:
    """A stopwatch that is read twice for each frame, and counts `step` seconds each time."""

    def __init__(self, step: float = 0.0) -> None:
        self.now = 0.0
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def stream() -> Stream:
    return Stream(1, TARGET, 0.0, State.OPEN)


def active(watch: Watch | None = None) -> Compressor:
    made = Compressor(Algorithm.DEFLATE, watch or Watch())
    made.limited(1e6)
    assert made.active
    return made


def records(size: int) -> bytes:
    """JSON as an API returns it, with values that differ."""
    draw, out = random.Random(1), bytearray()
    while len(out) < size:
        one = {
            "id": draw.randrange(10**6),
            "token": f"{draw.getrandbits(64):016x}",
            "created_at": f"2026-{draw.randrange(12) + 1:02}-11T10:{draw.randrange(60):02}:00Z",
            "status": draw.choice(["paid", "open", "shipped"]),
            "total": draw.randrange(10**5) / 100,
        }
        out += json.dumps(one).encode() + b"\n"
    return bytes(out[:size])


@algorithms
@given(st.lists(st.binary(max_size=500), min_size=1, max_size=5).filter(any))
def test_what_is_compressed_is_decompressed(algorithm: Algorithm, pieces: list[Buffer]) -> None:
    assert decompress(algorithm, compress(algorithm, pieces)) == b"".join(pieces)


@algorithms
def test_a_payload_yields_at_most_the_bytes_of_a_frame(algorithm: Algorithm) -> None:
    assert len(decompress(algorithm, compress(algorithm, [bytes(MAX_PAYLOAD)]))) == MAX_PAYLOAD
    for size in (MAX_PAYLOAD + 1, 10 << 20):
        with pytest.raises(ProtocolError, match="not one block|cannot be read"):
            decompress(algorithm, compress(algorithm, [bytes(size)]))


@algorithms
@pytest.mark.parametrize(
    "payload",
    ["empty", "no bytes", "cut", "followed", "garbage"],
)
def test_a_payload_that_is_not_one_block_is_an_error(algorithm: Algorithm, payload: str) -> None:
    whole = compress(algorithm, [TEXT])
    bad = {
        "empty": b"",
        "no bytes": compress(algorithm, [b""]),
        "cut": whole[:-1],
        "followed": whole + b"x",
        "garbage": b"\xff" * 20,
    }
    with pytest.raises(ProtocolError, match="COMPRESSED"):
        decompress(algorithm, bad[payload])


def test_the_chosen_algorithm_is_one_that_both_ends_know() -> None:
    for offered in range(256):
        chosen = choose(offered)
        assert chosen in list(Algorithm) or not chosen
        assert chosen == chosen & offered & KNOWN
        assert bool(chosen) == bool(offered & KNOWN)


def test_a_path_slower_than_compressing_is_compressed_until_it_is_faster() -> None:
    compressor = Compressor(Algorithm.DEFLATE, Watch())
    for rate, becomes in (
        (0.0, False),  # not known yet
        (200e6, False),
        (17e6, False),
        (6e6, True),
        (30e6, True),  # not back at once
        (40e6, False),
        (17e6, False),
    ):
        compressor.limited(rate)
        assert compressor.active is becomes


def test_a_machine_that_compresses_slowly_tries_ever_less_often() -> None:
    watch = Watch(0.01)  # 62 kB in 10 ms
    compressor, one = active(watch), stream()
    rested: list[float] = []
    for _ in range(4):
        compressor.limited(6e6)
        while compressor.active:
            compressor.compress(one, [TEXT], len(TEXT))
            compressor.limited(6e6)
        began = watch.now
        while not compressor.active:
            compressor.limited(6e6)
        rested.append(watch.now - began)
    assert rested == pytest.approx([0.5, 1.0, 2.0, 4.0], abs=0.03)


def test_a_call_that_is_late_does_not_end_it() -> None:
    watch = Watch(0.0005)
    compressor, one = active(watch), stream()
    for number in range(4_000):
        compressor.limited(6e6)
        if number % 20 == 0:
            watch.step = 0.05
        assert compressor.compress(one, [TEXT], len(TEXT))
        watch.step = 0.0005
    assert compressor.active


def test_compressing_that_takes_all_the_time_pauses_ever_less_often() -> None:
    watch = Watch(0.01)
    compressor, one = active(watch), stream()
    lasted = []
    for _ in range(4):
        began = watch.now
        while compressor.active:
            watch.now -= 0.009  # compressing takes 10 ms of every 11
            compressor.limited(1e5)
            assert compressor.compress(one, [TEXT], len(TEXT))
        lasted.append(watch.now - began)
        compressor.limited(1e5)
        assert not compressor.active
        watch.now += 0.5
        compressor.limited(1e5)
        assert compressor.active
    assert lasted == sorted(lasted)
    assert lasted[-1] > 4 * lasted[0]


def test_a_busy_second_does_not_keep_it_from_beginning_again() -> None:
    watch = Watch(0.003)  # 21 MB/s
    compressor, one = active(watch), stream()
    while compressor.active:
        watch.now -= 0.0028  # compressing takes most of the time
        compressor.limited(6e6)
        compressor.compress(one, [TEXT], len(TEXT))
    watch.now += 60.0
    compressor.limited(6e6)
    assert compressor.active


def test_another_tunnel_is_judged_by_itself() -> None:
    watch = Watch(0.006)  # 11 MB/s
    compressor, one = active(watch), stream()
    for _ in range(200):
        compressor.limited(3e6)
        compressor.compress(one, [TEXT], len(TEXT))
    compressor.restart()
    assert not compressor.active
    compressor.limited(3e6)
    assert compressor.active


def test_it_stops_when_nothing_is_held_back_any_more() -> None:
    watch = Watch(0.0005)
    compressor, one = active(watch), stream()
    compressor.limited(3e6)
    for _ in range(10_000):
        compressor.compress(one, [TEXT], len(TEXT))
    assert not compressor.active


def test_small_frames_are_never_compressed() -> None:
    compressor = active()
    assert compressor.compress(stream(), [bytes(511)], 511) is None
    assert compressor.compress(stream(), [bytes(512)], 512) is not None


def test_a_stream_that_does_not_shrink_is_left_alone_for_ever_longer() -> None:
    compressor, one = active(), stream()
    noise = random.Random(1).randbytes(MAX_PAYLOAD)
    tried = []
    for number in range(1_000):
        attempt = one.incompressible <= 0
        assert compressor.compress(one, [noise], len(noise)) is None
        if attempt:
            tried.append(number)
    assert tried == [0, 5, 14, 31, 64, 129, 258, 515, 772]
    assert compressor.input_bytes == compressor.output_bytes == 0
    # Once it shrinks again, it is compressed from the next attempt on.
    while one.incompressible > 0:
        compressor.compress(one, [noise], len(noise))
    assert compressor.compress(one, [TEXT], len(TEXT))
    assert one.skip == 0
    assert one.shrinks > 10


def test_a_compressed_frame_is_kept_as_it_was_sent_and_counts_with_its_size_on_the_wire() -> None:
    replay = ReplayBuffer()
    queue = SendQueue(replay, replay=1 << 30, datagrams=1 << 20)
    queue.compressor = active()
    one = stream()
    queue.queue_data(one, TEXT)
    out: list[Buffer] = []
    size, _ = queue.next_buffers(out, 1 << 20, 1 << 20)
    wire = b"".join(out)
    assert len(wire) == size < len(TEXT) / 10
    assert one.credit == 65_536 - len(TEXT)
    [(kind, number, payload)] = FrameDecoder().feed(wire)
    assert (kind, number) == (FrameType.COMPRESSED, 1)
    assert decompress(Algorithm.DEFLATE, payload) == TEXT
    assert replay.rewind(0) == size
    again: list[Buffer] = []
    queue.next_buffers(again, 1 << 20, 1 << 20)
    assert b"".join(again) == wire


def test_a_stream_that_shrinks_fills_the_room_with_longer_frames() -> None:
    queue = SendQueue(ReplayBuffer(), replay=1 << 30, datagrams=1 << 20)
    queue.compressor = active()
    one = stream()
    one.credit = 1 << 20
    queue.queue_data(one, records(256 << 10))
    out: list[Buffer] = []
    queue.next_buffers(out, 1, 16 << 10)
    assert one.queued == (256 - 16) << 10
    queue.next_buffers(out, 1, 16 << 10)
    assert one.queued < (256 - 16 - 32) << 10


def received(payload: bytes, algorithm: Algorithm = Algorithm.DEFLATE) -> Session:
    session = Session(Side.AGENT, 0.0)
    session.use_compression(algorithm, Watch())
    session.attach(0, 0.0)
    [event] = session.receive_data(encode_frame(FrameType.OPEN, 1, TARGET.encode()), 0.0)
    assert isinstance(event, StreamOpened)
    [data] = session.receive_data(encode_frame(FrameType.COMPRESSED, 1, payload), 0.0)
    assert isinstance(data, DataReceived)
    assert bytes(data.data) == TEXT
    return session


def test_a_read_yields_so_much_at_once_and_the_rest_with_the_next_calls() -> None:
    session = Session(Side.AGENT, 0.0)
    session.use_compression(Algorithm.DEFLATE, Watch())
    session.attach(0, 0.0)
    frame = compress(Algorithm.DEFLATE, [bytes(MAX_PAYLOAD)])
    read = b"".join(
        encode_frame(FrameType.OPEN, number, TARGET.encode())
        + encode_frame(FrameType.COMPRESSED, number, frame)
        for number in range(1, 100, 2)
    )
    sizes = []
    events = session.receive_data(read, 0.0)
    while True:
        sizes.append(sum(len(each.data) for each in events if isinstance(each, DataReceived)))
        if not session.more:
            break
        events = session.receive_data(b"", 0.0)
    assert sum(sizes) == 50 * MAX_PAYLOAD
    assert max(sizes) == 4 * MAX_PAYLOAD


def test_what_waits_of_a_lost_tunnel_is_dropped_and_comes_again() -> None:
    session = Session(Side.AGENT, 0.0)
    session.use_compression(Algorithm.DEFLATE, Watch())
    session.attach(0, 0.0)
    frame = compress(Algorithm.DEFLATE, [bytes(MAX_PAYLOAD)])
    pieces = [
        encode_frame(FrameType.OPEN, number, TARGET.encode())
        + encode_frame(FrameType.COMPRESSED, number, frame)
        for number in range(1, 20, 2)
    ]
    session.receive_data(b"".join(pieces), 0.0)
    assert session.more
    session.attach(0, 0.0)
    assert not session.more
    assert session.received_count == 8


def test_windows_count_what_a_frame_holds() -> None:
    session = received(compress(Algorithm.DEFLATE, [TEXT]))
    assert session.compression_input == len(TEXT)
    assert session.compression_output < len(TEXT) / 10
    again = encode_frame(FrameType.COMPRESSED, 1, compress(Algorithm.DEFLATE, [TEXT]))
    with pytest.raises(FlowControlError):
        session.receive_data(again, 0.0)


def test_a_compressed_frame_that_was_not_agreed_on_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="without compression"):
        received(compress(Algorithm.DEFLATE, [TEXT]), Algorithm.NONE)


def test_a_repeated_frame_and_one_of_a_closed_stream_are_not_decompressed() -> None:
    session = received(compress(Algorithm.DEFLATE, [TEXT]))
    session.reset(session.streams[1])
    assert session.receive_data(encode_frame(FrameType.COMPRESSED, 1, b"garbage"), 0.0) == []


def test_a_session_that_moves_decides_anew_on_the_other_tunnel() -> None:
    pair = Joined(Limits(), Algorithm.DEFLATE)
    one = pair.client.session.open(TARGET, 0.0)
    pair.client.compress(on=True)
    pair.client.session.write(one, TEXT)
    pair.flush(pair.client)
    pair.attach()
    pair.client.session.write(one, TEXT)
    pair.settle()
    assert bytes(pair.agent.received[1]) == TEXT * 2
    assert pair.agent.session.compression_input == len(TEXT)
    assert pair.client.session.compression_input == len(TEXT)


@pytest.mark.parametrize("up", [False, True], ids=["down", "up"])
def test_text_crosses_a_slow_link_faster_and_noise_as_fast(up: bool) -> None:
    shrinks = len(zlib.compress(records(MAX_PAYLOAD), 1)) / MAX_PAYLOAD
    for block, at_least in ((records(1 << 20), 0.9 / shrinks), (random.randbytes(1 << 20), 0.98)):
        link = Link(50e6 / 8, 0.04, up=up, block=block)
        for session in (link.client, link.agent):
            session.use_compression(Algorithm.DEFLATE, lambda: link.now)  # noqa: B023
        assert link.run(6.0) > at_least
        assert statistics.median(link.echoes) < 0.08


def test_a_link_without_an_agreement_carries_no_compressed_frame() -> None:
    link = Link(50e6 / 8, 0.04, up=False, block=TEXT)
    assert link.run(4.0) < 1.01
    assert link.client.compression_input == 0
