"""Frames: cut right however the reads fall, and nothing kept alive that need not be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.wire.errors import ProtocolError
from krelay.wire.frames import (
    HEAD,
    HEAD_SIZE,
    MAX_PAYLOAD,
    FrameDecoder,
    FrameType,
    encode_frame,
)

a_frame = st.tuples(
    st.sampled_from(list(FrameType)).map(int), st.integers(0, 2**32 - 1), st.binary(max_size=9_000)
)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    pieces, at = [], 0
    for size in cuts:
        pieces.append(data[at : at + size])
        at += size
    return [*pieces, data[at:]]


@given(
    st.lists(a_frame, min_size=1, max_size=8),
    st.lists(st.one_of(st.integers(0, 12), st.integers(0, 9_000)), max_size=20),
    st.data(),
)
def test_any_split_gives_the_same_frames(
    frames: list[tuple[int, int, bytes]], cuts: list[int], data: st.DataObject
) -> None:
    wire = b"".join(encode_frame(*frame) for frame in frames)
    decoder = FrameDecoder()
    got = []
    for piece in cut(wire, cuts):
        form = data.draw(st.sampled_from([bytes, bytearray, memoryview]))
        got += [(t, s, bytes(p)) for t, s, p in decoder.feed(form(piece))]
    assert got == frames
    assert decoder.pending() == b""


@given(st.lists(a_frame, min_size=1, max_size=4), st.integers(0, 10_000))
def test_pending_bytes_are_those_after_the_last_whole_frame(
    frames: list[tuple[int, int, bytes]], size: int
) -> None:
    wire = b"".join(encode_frame(*frame) for frame in frames)[:size]
    decoder = FrameDecoder()
    whole = b"".join(encode_frame(*frame) for frame in decoder.feed(wire))
    assert whole + decoder.pending() == wire


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_or_an_error(data: bytes) -> None:
    try:
        frames = FrameDecoder().feed(data)
    except ProtocolError:
        return
    assert all(len(payload) <= MAX_PAYLOAD for _, _, payload in frames)


def test_a_payload_in_many_reads_of_a_buffer_that_is_used_again() -> None:
    wire = encode_frame(FrameType.DATA, 1, bytes(range(100)))
    decoder, buffer, frames = FrameDecoder(), bytearray(7), []
    for at in range(0, len(wire), 7):
        piece = wire[at : at + 7]
        buffer[: len(piece)] = piece
        frames += decoder.feed(buffer[: len(piece)])
    assert frames == [(FrameType.DATA, 1, bytes(range(100)))]


def test_pending_in_the_middle_of_a_payload() -> None:
    wire = encode_frame(FrameType.DATA, 1, bytes(100))
    decoder = FrameDecoder()
    assert decoder.feed(wire[:50]) == []
    assert decoder.pending() == wire[:50]


def test_the_largest_payload_and_one_more() -> None:
    [(_, _, payload)] = FrameDecoder().feed(encode_frame(FrameType.DATA, 1, bytes(MAX_PAYLOAD)))
    assert len(payload) == MAX_PAYLOAD
    with pytest.raises(ProtocolError, match="65537 bytes"):
        FrameDecoder().feed(HEAD.pack(FrameType.DATA << 24 | MAX_PAYLOAD + 1, 1))


def test_an_unknown_type_is_an_error_before_its_payload_comes() -> None:
    with pytest.raises(ProtocolError, match="type 99"):
        FrameDecoder().feed(HEAD.pack(99 << 24 | 5, 1))


@given(st.lists(st.integers(0, MAX_PAYLOAD), min_size=1, max_size=6))
def test_a_kept_payload_keeps_at_most_five_times_its_bytes(sizes: list[int]) -> None:
    read = b"".join(encode_frame(FrameType.DATA, 1, bytes(size)) for size in sizes)
    for _, _, payload in FrameDecoder().feed(read):
        kept = len(payload.obj) if isinstance(payload, memoryview) else len(payload)  # type: ignore[arg-type]
        assert kept < 5 * (len(payload) + 1)


def test_bulk_is_not_copied() -> None:
    read = encode_frame(FrameType.DATA, 1, bytes(MAX_PAYLOAD)) * 4
    assert all(isinstance(payload, memoryview) for _, _, payload in FrameDecoder().feed(read))


def test_a_head_in_two_reads() -> None:
    data = encode_frame(FrameType.PING, 0, b"12345678")
    decoder = FrameDecoder()
    assert decoder.feed(data[: HEAD_SIZE - 3]) == []
    assert decoder.pending() == data[: HEAD_SIZE - 3]
    assert decoder.feed(data[HEAD_SIZE - 3 :]) == [(FrameType.PING, 0, b"12345678")]
