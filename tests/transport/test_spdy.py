from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.transport.spdy import (
    DATA_STREAM,
    ERROR_STREAM,
    MAX_PAYLOAD,
    Data,
    Decoder,
    End,
    Event,
    GoAway,
    Opener,
    Ping,
    Reply,
    SpdyError,
    data_frames,
    open_streams,
    ping_frame,
    reset_frame,
)


def data(payload: bytes, stream_id: int = DATA_STREAM, *, fin: bool = False) -> bytes:
    return struct.pack(">II", stream_id, fin << 24 | len(payload)) + payload


def control(kind: int, body: bytes, flags: int = 0) -> bytes:
    return struct.pack(">II", 0x80030000 | kind, flags << 24 | len(body)) + body


PING = control(6, b"\0\0\0\2")


def decode(*reads: bytes) -> list[Event]:
    """The events, payloads copied and those of one stream joined where they follow each other."""
    decoder = Decoder()
    events: list[Event] = []
    for read in reads:
        for event in decoder.receive_data(read):
            last = events[-1] if events else None
            if not isinstance(event, Data):
                events.append(event)
            elif isinstance(last, Data) and last.stream_id == event.stream_id:
                joined = memoryview(bytes(last.payload) + bytes(event.payload))
                events[-1] = Data(event.stream_id, joined)
            else:
                events.append(Data(event.stream_id, memoryview(bytes(event.payload))))
    return events


def test_the_opening_frames_name_both_streams_and_the_port() -> None:
    frames = memoryview(open_streams(9527))
    inflate = zlib.decompressobj()
    for stream_id, kind in ((ERROR_STREAM, b"error"), (DATA_STREAM, b"data")):
        word, length, sent_id, associated = struct.unpack(">IIII", frames[:16])
        assert (word, sent_id, associated, bytes(frames[16:18])) == (
            0x80030001,
            stream_id,
            0,
            b"\0\0",
        )
        block = inflate.decompress(frames[18 : 8 + length])
        assert block == (
            b"\0\0\0\3\0\0\0\x0astreamtype" + struct.pack(">I", len(kind)) + kind
            + b"\0\0\0\4port\0\0\0\x049527\0\0\0\x09requestid\0\0\0\x010"
        )  # fmt: skip
        frames = frames[8 + length :]
    assert not frames


def test_data_frames_are_cut_at_the_limit() -> None:
    pieces = b"a" * 10, memoryview(b"b" * MAX_PAYLOAD), b"", bytearray(b"c" * 20)
    frames = list(data_frames(DATA_STREAM, b"".join(pieces)))
    assert [len(frame) for frame in frames] == [8 + MAX_PAYLOAD, 8 + 30]
    assert decode(*frames) == [Data(DATA_STREAM, memoryview(b"".join(map(bytes, pieces))))]


@given(st.lists(st.binary(max_size=300)), st.integers(1, 100))
def test_framed_data_decodes_to_itself(buffers: list[bytes], size: int) -> None:
    whole = b"".join(buffers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("krelay.transport.spdy.MAX_PAYLOAD", size)
        frames = list(data_frames(DATA_STREAM, whole))
    assert all(9 <= len(frame) <= 8 + size for frame in frames)
    assert decode(*frames) == ([Data(DATA_STREAM, memoryview(whole))] if whole else [])


def test_each_kind_of_frame_gives_its_event_or_none() -> None:
    assert decode(
        control(2, b"\0\0\0\3" + b"header block"),
        control(4, b"settings"),
        control(99, b""),
        PING,
        data(b""),
        data(b"text", ERROR_STREAM),
        data(b"last", fin=True),
        data(b"", ERROR_STREAM, fin=True),
        control(3, struct.pack(">II", DATA_STREAM, 5)),
        control(7, struct.pack(">II", DATA_STREAM, 0)),
    ) == [
        Reply(DATA_STREAM),
        Ping(PING),
        Data(ERROR_STREAM, memoryview(b"text")),
        Data(DATA_STREAM, memoryview(b"last")),
        End(DATA_STREAM),
        End(ERROR_STREAM),
        End(DATA_STREAM, reset=True),
        GoAway(),
    ]


def test_the_pairs_of_a_connection_share_one_compression_and_have_their_own_numbers() -> None:
    opener, inflate = Opener(), zlib.decompressobj()
    for first in (1, 5, 9):
        frames = memoryview(opener.open_pair(80, first, first + 2))
        for stream_id in (first, first + 2):
            _, length, sent_id = struct.unpack(">III", frames[:12])
            block = inflate.decompress(frames[18 : 8 + length])
            assert sent_id == stream_id
            assert block.endswith(b"requestid\0\0\0\1%d" % (first // 4))
            frames = frames[8 + length :]


def test_data_of_a_stream_is_taken_once_it_was_opened() -> None:
    decoder = Decoder()
    decoder.opened = 7
    assert decoder.receive_data(data(b"x", 5)) == [Data(5, memoryview(b"x"))]
    with pytest.raises(SpdyError):
        decoder.receive_data(data(b"x", 9))
    with pytest.raises(SpdyError):
        Decoder().receive_data(data(b"x", 2))


def test_a_reset_and_a_ping_are_what_the_server_reads() -> None:
    assert reset_frame(7) == control(3, struct.pack(">II", 7, 5))
    assert ping_frame(3) == control(6, struct.pack(">I", 3))


def test_payloads_are_handed_on_before_their_frame_is_whole() -> None:
    decoder = Decoder()
    frame = data(b"abcdef", fin=True)
    assert decoder.receive_data(frame[:10]) == [Data(DATA_STREAM, memoryview(b"ab"))]
    assert decoder.receive_data(frame[10:]) == [
        Data(DATA_STREAM, memoryview(b"cdef")),
        End(DATA_STREAM),
    ]


@pytest.mark.parametrize(
    "read",
    [
        b"HTTP/1.1 500 Internal Server Error\r\n",
        data(b"x", 5),
        b"\x80\x02\0\6\0\0\0\4\0\0\0\2",
        control(6, b"\0\0\0\0\2"),
        control(3, b"\0\0\0\3"),
        control(3, b""),
    ],
)
def test_bytes_that_are_no_spdy_are_an_error(read: bytes) -> None:
    with pytest.raises(SpdyError):
        decode(read)


FRAMES = st.one_of(
    st.builds(
        data,
        st.binary(max_size=40),
        st.sampled_from([DATA_STREAM, ERROR_STREAM]),
        fin=st.booleans(),
    ),
    st.builds(control, st.sampled_from([1, 2, 4, 8, 9, 200]), st.binary(max_size=40)),
    st.builds(control, st.just(6), st.binary(min_size=4, max_size=4)),
    st.builds(control, st.sampled_from([3, 7]), st.binary(min_size=8, max_size=8)),
)


@given(st.lists(FRAMES), st.data())
def test_any_split_of_the_bytes_gives_the_same_events(
    frames: list[bytes], draw: st.DataObject
) -> None:
    whole = b"".join(frames)
    cuts = draw.draw(st.lists(st.integers(0, len(whole))).map(sorted))
    reads = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert decode(*reads) == decode(whole)


@given(st.lists(st.one_of(st.binary(), FRAMES)))
def test_any_bytes_give_events_or_an_error_and_nothing_is_kept(reads: list[bytes]) -> None:
    decoder = Decoder()
    try:
        for read in reads:
            for event in decoder.receive_data(read):
                assert isinstance(event, Event)
            assert len(decoder._head) < 8
            assert len(decoder._body) <= 8
    except SpdyError:
        pass
