"""A stream's states against every frame, and the bytes it hands out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.wire.errors import ProtocolError
from krelay.wire.frames import MAX_PAYLOAD, FrameType
from krelay.wire.header import TCP, Header
from krelay.wire.stream import State, Stream

LEGAL = {
    State.OPENING: {
        FrameType.OPENED: State.OPEN,
        FrameType.REFUSED: State.CLOSED,
        FrameType.RESET: State.CLOSED,
        FrameType.WINDOW: State.OPENING,
    },
    State.OPEN: {
        FrameType.DATA: State.OPEN,
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
def test_a_frame_in_a_state(state: State, frame: FrameType) -> None:
    stream = made(state)
    if frame in LEGAL[state]:
        stream.receive(frame)
        assert stream.state is LEGAL[state][frame]
    else:
        with pytest.raises(ProtocolError, match=state.name):
            stream.receive(frame)


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=10), st.lists(st.integers(1, 40)))
def test_bytes_are_taken_in_order_and_never_more_than_asked(
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


def test_what_is_taken_of_a_chunk_does_not_keep_the_whole_alive() -> None:
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


def test_what_may_be_sent() -> None:
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
