"""A stream's states against every frame, and the bytes it hands out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.wire.errors import FlowControlError, ProtocolError
from krelay.wire.frames import MAX_PAYLOAD, FrameType
from krelay.wire.header import TCP, Header
from krelay.wire.stream import INITIAL_WINDOW, MAX_WINDOW, RecvWindow, State, Stream

LEGAL = {
    State.OPENING: {
        FrameType.OPENED: State.OPEN,
        FrameType.REFUSED: State.CLOSED,
        FrameType.RESET: State.CLOSED,
        FrameType.WINDOW: State.OPENING,
    },
    State.OPEN: {
        FrameType.DATA: State.OPEN,
        FrameType.COMPRESSED: State.OPEN,
        FrameType.WINDOW: State.OPEN,
        FrameType.END: State.ENDED,
        FrameType.RESET: State.CLOSED,
    },
    State.ENDED: {FrameType.WINDOW: State.ENDED, FrameType.RESET: State.CLOSED},
    State.CLOSED: {},
}


def made(state: State) -> Stream:
    return Stream(1, Header(TCP, "a", 1), 0.0, state)


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("frame", list(FrameType))
def test_each_frame_is_legal_or_an_error_in_each_state(state: State, frame: FrameType) -> None:
    stream = made(state)
    if frame in LEGAL[state]:
        stream.receive(frame)
        assert stream.state is LEGAL[state][frame]
    else:
        with pytest.raises(ProtocolError, match=state.name):
            stream.receive(frame)


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=10), st.lists(st.integers(1, 40)))
def test_bytes_are_taken_in_order_and_within_the_limit(
    chunks: list[bytes], sizes: list[int]
) -> None:
    stream = made(State.OPEN)
    for chunk in chunks:
        stream.add(chunk)
    taken = b""
    for size in sizes:
        if not stream.queue:
            break
        piece = stream.take(size)
        assert 0 < len(piece) <= size
        taken += piece
    rest = b"".join(stream.queue)[stream.taken :]
    assert taken + rest == b"".join(chunks)
    assert stream.queued == len(rest)


def test_bytes_taken_from_a_chunk_do_not_keep_all_of_it() -> None:
    stream = made(State.OPEN)
    stream.add(bytes(MAX_PAYLOAD))
    pieces = [stream.take(20_000), stream.take(20_000)]
    assert [type(piece) for piece in pieces] == [bytes, bytes]
    assert (len(stream.queue[0]), stream.taken) == (MAX_PAYLOAD - 40_000, 0)


def test_small_chunks_are_joined() -> None:
    stream = made(State.OPEN)
    for _ in range(10_000):
        stream.add(b"x")
    assert len(stream.queue) == 3
    assert stream.queued == 10_000


def test_a_stream_is_sendable_with_credit_or_an_end() -> None:
    stream = made(State.OPEN)
    assert not stream.sendable
    stream.queue.append(b"x")
    stream.queued = 1
    assert stream.sendable
    stream.credit = 0
    stream.end_queued = True
    assert not stream.sendable, "the end waits for the bytes before it"
    stream.queue.clear()
    assert stream.sendable
    stream.end_sent = True
    assert not stream.sendable
    assert "s1 OPEN" in repr(stream)


@given(
    st.lists(
        st.tuples(st.integers(1, 100_000), st.floats(0, 1), st.integers(-5, 10**7)), max_size=60
    )
)
def test_credit_is_granted_bytes_less_used_ones(
    steps: list[tuple[int, float, int]],
) -> None:
    window, now = RecvWindow(0.0), 0.0
    credit = INITIAL_WINDOW
    waiting = 0
    for wanted, later, room in steps:
        now += later
        size = min(wanted, credit)
        window.receive(size)
        credit -= size
        waiting += size
        before = window.size
        credit += window.consume(waiting, now, 0.05, room)
        waiting = 0
        assert INITIAL_WINDOW <= window.size <= MAX_WINDOW
        assert window.size - before <= max(room, 0)
        # Half of it at least is always the peer's, so that it never has to stop for long.
        assert window.size / 2 <= credit <= window.size


def test_a_byte_over_the_window_is_a_flow_control_error() -> None:
    window = RecvWindow(0.0)
    window.receive(INITIAL_WINDOW)
    with pytest.raises(FlowControlError, match="1 bytes over"):
        window.receive(1)


def test_a_fast_stream_s_window_doubles_and_a_slow_one_s_does_not() -> None:
    for pause, size in ((0.01, 2 * INITIAL_WINDOW), (10.0, INITIAL_WINDOW)):
        window = RecvWindow(0.0)
        window.receive(INITIAL_WINDOW)
        window.consume(INITIAL_WINDOW, pause, 0.05, 1 << 30)
        assert window.size == size


def test_less_than_half_a_window_is_not_returned_yet() -> None:
    window = RecvWindow(0.0)
    window.receive(1000)
    assert window.consume(1000, 0.0, 0.05, 0) == 0


def test_a_grown_window_shrinks_to_its_first_size_when_memory_is_short() -> None:
    window = RecvWindow(0.0)
    window.receive(INITIAL_WINDOW)
    assert window.consume(INITIAL_WINDOW, 0.1, 1.0, MAX_WINDOW) == 2 * INITIAL_WINDOW
    assert window.size == 2 * INITIAL_WINDOW
    window.receive(2 * INITIAL_WINDOW)
    assert window.consume(INITIAL_WINDOW, 0.2, 1.0, -1000) == INITIAL_WINDOW - 1000
    assert window.size == 2 * INITIAL_WINDOW - 1000
    assert window.consume(INITIAL_WINDOW, 0.3, 1.0, -MAX_WINDOW) == 1000
    assert window.size == INITIAL_WINDOW
    window.receive(INITIAL_WINDOW)
    assert window.consume(INITIAL_WINDOW, 0.4, 1.0, -MAX_WINDOW) == INITIAL_WINDOW
