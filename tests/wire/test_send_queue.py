"""The order in which things go out, and what holds them back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from krelay.wire.frames import MAX_PAYLOAD, Buffer, FrameDecoder, FrameType, encode_frame
from krelay.wire.replay import FRAME_COST, ReplayBuffer
from krelay.wire.send_queue import SendQueue
from krelay.wire.stream import INITIAL_WINDOW, State, Stream
from tests.wire.pipe import TARGET

MUCH = 1 << 30
CONTROL = encode_frame(FrameType.OPENED, 9)


def made(*, replay: int = MUCH, datagrams: int = MUCH) -> SendQueue:
    return SendQueue(ReplayBuffer(), replay=replay, datagrams=datagrams)


def streams(count: int) -> list[Stream]:
    return [Stream(1 + 2 * n, TARGET, 0.0, State.OPEN) for n in range(count)]


def filled(box: SendQueue, limit: int = MUCH, room: int = MUCH) -> list[tuple[int, int, int]]:
    """Type, stream and size of each frame that is due."""
    out: list[Buffer] = []
    size, _ = box.next_buffers(out, limit, room)
    wire = b"".join(map(bytes, out))
    assert len(wire) == size
    return [(t, s, len(p)) for t, s, p in FrameDecoder().feed(wire)]


def test_control_then_datagrams_then_small_streams_then_bulk() -> None:
    box = made()
    bulk, small = streams(2)
    box.queue_data(bulk, bytes(50_000))
    box.queue_data(small, b"key")
    box.queue_datagram(small, b"udp")
    box.queue_control(CONTROL)
    assert filled(box) == [
        (FrameType.OPENED, 9, 0),
        (FrameType.DATAGRAM, small.id, 3),
        (FrameType.DATA, small.id, 3),
        (FrameType.DATA, bulk.id, 50_000),
    ]
    assert not filled(box)


def test_bulk_streams_take_turns() -> None:
    box = made()
    one, two = streams(2)
    for stream in (one, two):
        stream.credit = MUCH
        box.queue_data(stream, bytes(3 * MAX_PAYLOAD))
    assert [number for _, number, _ in filled(box)] == [1, 3, 1, 3, 1, 3]


def test_limit_and_room_hold_back_data_but_not_control_frames() -> None:
    box = made()
    (stream,) = streams(1)
    box.queue_data(stream, bytes(40_000))
    box.queue_data(stream, bytes(20_000))
    box.queue_datagram(stream, b"udp")
    box.queue_control(CONTROL)
    assert filled(box, room=0) == [(FrameType.OPENED, 9, 0)]
    assert filled(box, limit=1) == [(FrameType.DATAGRAM, 1, 3)]
    out: list[Buffer] = []
    assert box.next_buffers(out, MUCH, 0) == (0, True)
    assert [size for _, _, size in filled(box, room=20_000)] == [20_000]


def test_the_replay_limit_holds_back_data_but_not_control_frames() -> None:
    box = made(replay=40_000)
    (stream,) = streams(1)
    stream.credit = MUCH
    box.queue_data(stream, bytes(200_000))
    while filled(box):
        pass
    assert box.next_buffers([], MUCH, MUCH) == (0, True)
    box.queue_control(CONTROL)
    assert filled(box) == [(FrameType.OPENED, 9, 0)]


def test_queued_bytes_are_counted() -> None:
    box = made()
    (stream,) = streams(1)
    box.queue_control(CONTROL)
    box.queue_data(stream, b"12345")
    assert (box.queued, box.control_bytes) == (5, len(CONTROL) + FRAME_COST)
    assert box.urgent
    filled(box)
    assert (box.queued, box.control_bytes, box.urgent) == (0, 0, False)


def test_a_stream_without_credit_waits_and_counts_a_stall() -> None:
    box = made()
    (stream,) = streams(1)
    box.queue_data(stream, bytes(INITIAL_WINDOW + 1))
    assert sum(size for _, _, size in filled(box)) == INITIAL_WINDOW
    assert (box.window_stalls, box.queued) == (1, 1)
    stream.credit += 1
    box.schedule(stream)
    assert filled(box) == [(FrameType.DATA, 1, 1)]


def test_a_writer_may_go_on_once_its_queue_is_short() -> None:
    box = made()
    (stream,) = streams(1)
    stream.wants_writable = True
    box.queue_data(stream, bytes(INITIAL_WINDOW + (64 << 10) - 1))
    filled(box)
    assert box.writable == [stream]
    assert not stream.wants_writable


def test_an_end_follows_the_queued_bytes_and_the_second_end_closes() -> None:
    box = made()
    one, two = streams(2)
    two.state = State.ENDED
    for stream in (one, two):
        box.queue_data(stream, b"last")
        stream.end_queued = True
    assert filled(box) == [
        (FrameType.DATA, 1, 4),
        (FrameType.END, 1, 0),
        (FrameType.DATA, 3, 4),
        (FrameType.END, 3, 0),
    ]
    assert box.ended == [two]


def test_a_discarded_stream_gets_no_turn() -> None:
    box = made()
    one, two = streams(2)
    box.queue_data(one, b"gone")
    box.queue_data(two, b"here")
    one.state = State.CLOSED
    box.discard(one)
    assert box.queued == 4
    assert filled(box) == [(FrameType.DATA, two.id, 4)]


def test_datagrams_past_the_limit_are_dropped() -> None:
    box = made(datagrams=10 + FRAME_COST)
    (stream,) = streams(1)
    assert box.queue_datagram(stream, b"12345678")
    assert not box.queue_datagram(stream, b"123")
    box.drop_datagrams()
    assert (box.dropped_datagrams, box.datagram_bytes) == (1, 0)
    assert box.queue_datagram(stream, b"1234567890")
    assert filled(box) == [(FrameType.DATAGRAM, 1, 10)]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 100_000)), max_size=20),
    st.lists(st.tuples(st.integers(0, 200_000), st.integers(0, 200_000)), max_size=20),
)
def test_each_stream_s_bytes_are_in_order_and_whole(
    writes: list[tuple[int, int]], fills: list[tuple[int, int]]
) -> None:
    box = made()
    all_ = streams(4)
    written, read = {s.id: b"" for s in all_}, {s.id: b"" for s in all_}
    for stream in all_:
        stream.credit = MUCH
    decoder = FrameDecoder()

    def fill(limit: int, room: int) -> None:
        out: list[Buffer] = []
        size, _ = box.next_buffers(out, limit, room)
        assert size <= min(limit, room) + MAX_PAYLOAD + 8
        for _, number, payload in decoder.feed(b"".join(map(bytes, out))):
            read[number] += payload

    for n, (index, size) in enumerate(writes):
        data = bytes([n]) * size
        written[all_[index].id] += data
        box.queue_data(all_[index], data)
        if n < len(fills):
            fill(*fills[n])
    fill(MUCH, MUCH)
    assert read == written
    assert box.queued == 0


def test_datagrams_of_an_ended_stream_are_dropped_and_counted() -> None:
    box = made()
    ended, live = streams(2)
    for each in (ended, live, ended):
        assert box.queue_datagram(each, b"x")
    ended.state = State.CLOSED
    assert filled(box) == [(FrameType.DATAGRAM, live.id, 1)]
    assert (box.dropped_datagrams, box.datagram_bytes) == (2, 0)


def test_a_used_up_window_stalls_the_next_write_once() -> None:
    box = made()
    (stream,) = streams(1)
    box.queue_data(stream, bytes(INITIAL_WINDOW))
    filled(box)
    assert (stream.credit, box.window_stalls) == (0, 0)
    box.queue_data(stream, b"more")
    box.queue_data(stream, b"and more")
    assert (filled(box), box.window_stalls) == ([], 1)
