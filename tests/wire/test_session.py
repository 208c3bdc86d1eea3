"""A session's answers, one by one; what it does under any schedule is in test_properties."""

from __future__ import annotations

import struct

import pytest

from krelay.wire.errors import ErrorCode, FlowControlError, ProtocolError
from krelay.wire.events import (
    DatagramReceived,
    DatagramsLost,
    DataReceived,
    GoAway,
    StreamAccepted,
    StreamEnded,
    StreamOpened,
    StreamRefused,
    StreamReset,
)
from krelay.wire.frames import MAX_PAYLOAD, FrameDecoder, FrameType, encode_frame
from krelay.wire.header import TCP, Header
from krelay.wire.replay import FRAME_COST
from krelay.wire.session import MAX_ID, Limits, Session, Side
from krelay.wire.stream import INITIAL_WINDOW, State, Stream
from tests.wire.pipe import TARGET, Joined


def made(side: Side = Side.CLIENT, limits: Limits = Limits()) -> Session:  # noqa: B008
    session = Session(side, 0.0, limits)
    session.attach(0, 0.0)
    return session


def sent(session: Session, now: float = 0.0, *, acks: bool = False) -> list[tuple[int, int, bytes]]:
    """The frames that are due; acknowledgements ride along with anything, so only if asked for."""
    wire = b"".join(map(bytes, session.data_to_send(1 << 20, now)))
    frames = [(t, s, bytes(p)) for t, s, p in FrameDecoder().feed(wire)]
    return [frame for frame in frames if acks or frame[0] != FrameType.ACK]


def opened(session: Session) -> Stream:
    """A stream that the other end has accepted."""
    stream = session.open(TARGET, 0.0)
    sent(session)
    assert session.receive_data(encode_frame(FrameType.OPENED, stream.id), 0.0) == [
        StreamAccepted(stream)
    ]
    return stream


def asked(session: Session, number: int = 1) -> Stream:
    """A stream that the other end has opened."""
    frame = encode_frame(FrameType.OPEN, number, TARGET.encode())
    [event] = session.receive_data(frame, 0.0)
    assert isinstance(event, StreamOpened)
    return event.stream


def test_a_stream_opens_with_its_header_and_early_data() -> None:
    session = made()
    stream = session.open(TARGET, 0.0)
    session.write(stream, b"hi")
    assert sent(session) == [
        (FrameType.OPEN, 1, TARGET.encode()),
        (FrameType.DATA, 1, b"hi"),
    ]
    assert session.open(TARGET, 0.0).id == 3


def test_a_host_that_does_not_fit_leaves_no_half_open_stream() -> None:
    session = made()
    with pytest.raises(ValueError, match="1 to 255"):
        session.open(Header(TCP, "", 80), 0.0)
    assert not session.streams
    assert session.open(TARGET, 0.0).id == 1


def test_no_stream_opens_over_the_limit_or_after_goaway() -> None:
    session = made(limits=Limits(streams=1))
    session.open(TARGET, 0.0)
    with pytest.raises(ProtocolError) as caught:
        session.open(TARGET, 0.0)
    assert caught.value.code is ErrorCode.LIMIT
    leaving = made()
    leaving.go_away(ErrorCode.GOING_AWAY)
    with pytest.raises(ProtocolError) as caught:
        leaving.open(TARGET, 0.0)
    assert caught.value.code is ErrorCode.GOING_AWAY


def test_accept_and_refuse_reach_the_opener() -> None:
    agent = made(Side.AGENT)
    agent.accept(asked(agent, 1))
    agent.refuse(asked(agent, 3), ErrorCode.REFUSED, "no " * 200)
    (_, _, payload) = sent(agent)[-1]
    assert len(payload) == 256
    client = made()
    stream = client.open(TARGET, 0.0)
    sent(client)
    frame = encode_frame(FrameType.REFUSED, stream.id, b"\x13closed")
    assert client.receive_data(frame, 0.0) == [StreamRefused(stream, ErrorCode.REFUSED, "closed")]
    assert not client.streams
    agent.refuse(stream, ErrorCode.REFUSED, "again")


def test_opens_over_the_limit_or_after_goaway_are_refused() -> None:
    agent = made(Side.AGENT, Limits(streams=1))
    asked(agent, 1)
    frame = encode_frame(FrameType.OPEN, 3, TARGET.encode())
    assert agent.receive_data(frame, 0.0) == []
    (frame_type, number, payload) = sent(agent)[-1]
    assert (frame_type, number, payload[0]) == (FrameType.REFUSED, 3, ErrorCode.LIMIT)
    agent.go_away(ErrorCode.GOING_AWAY)
    frame = encode_frame(FrameType.OPEN, 5, TARGET.encode())
    assert agent.receive_data(frame, 0.0) == []
    assert sent(agent)[-1][2][0] == ErrorCode.GOING_AWAY


def test_half_close_both_ways() -> None:
    session = made()
    stream = opened(session)
    session.write(stream, b"last")
    session.end(stream)
    assert [f[0] for f in sent(session)] == [FrameType.DATA, FrameType.END]
    session.write(stream, b"too late")
    assert sent(session) == []
    assert session.receive_data(encode_frame(FrameType.DATA, 1, b"more"), 0.0)
    assert session.receive_data(encode_frame(FrameType.END, 1), 0.0) == [StreamEnded(stream)]
    assert not session.streams
    session.end(stream)
    session.reset(stream)
    session.consume(stream, 4, 0.0)
    assert not session.datagram(stream, b"x")
    assert sent(session) == []


def test_a_stream_that_the_peer_ends_first_closes_with_this_end() -> None:
    session = made()
    stream = opened(session)
    session.receive_data(encode_frame(FrameType.END, 1), 0.0)
    assert stream.state is State.ENDED
    session.end(stream)
    assert [f[0] for f in sent(session)] == [FrameType.END]
    assert not session.streams


def test_a_reset_drops_queued_bytes_and_late_frames_are_ignored() -> None:
    session = made()
    stream = opened(session)
    session.write(stream, bytes(1000))
    session.reset(stream, ErrorCode.RESET)
    assert sent(session) == [(FrameType.RESET, 1, bytes([ErrorCode.RESET]))]
    for late in (FrameType.DATA, FrameType.END, FrameType.WINDOW, FrameType.DATAGRAM):
        assert session.receive_data(encode_frame(late, 1, b"1234"), 0.0) == []
    other = opened(session)
    frame = encode_frame(FrameType.RESET, other.id, b"\xc8later code")
    assert session.receive_data(frame, 0.0) == [StreamReset(other, ErrorCode.INTERNAL)]


def test_a_window_is_kept_and_extended() -> None:
    session = made()
    stream = opened(session)
    session.write(stream, bytes(INITIAL_WINDOW + 10))
    assert sum(len(p) for _, _, p in sent(session)) == INITIAL_WINDOW
    assert sent(session) == []
    session.receive_data(encode_frame(FrameType.WINDOW, 1, struct.pack(">I", 4)), 0.0)
    assert sent(session) == [(FrameType.DATA, 1, bytes(4))]


def test_credit_is_returned_when_bytes_are_consumed() -> None:
    session = made(Side.AGENT)
    stream = asked(session)
    session.receive_data(encode_frame(FrameType.DATA, 1, bytes(40_000)), 0.0)
    session.consume(stream, 40_000, 5.0)
    assert (FrameType.WINDOW, 1, struct.pack(">I", 40_000)) in sent(session, 5.0)
    with pytest.raises(FlowControlError):
        session.receive_data(encode_frame(FrameType.DATA, 1, bytes(MAX_PAYLOAD)) * 2, 5.0)


def test_datagrams_do_not_wait_for_another_tunnel() -> None:
    session = made(limits=Limits(datagrams=10 + FRAME_COST))
    stream = opened(session)
    assert session.datagram(stream, b"12345678")
    assert not session.datagram(stream, b"123")
    assert not session.datagram(stream, bytes(MAX_PAYLOAD + 1))
    assert sent(session) == [(FrameType.DATAGRAM, 1, b"12345678")]
    [event] = session.receive_data(encode_frame(FrameType.DATAGRAM, 1, b"pong"), 0.0)
    assert event == DatagramReceived(stream, b"pong")
    session.datagram(stream, b"lost")
    session.detach()
    assert not session.datagram(stream, b"nobody carries it")
    session.attach(session._replay_buffer.acked + len(session._replay_buffer), 0.0)
    assert sent(session) == []


def test_a_lost_tunnel_s_frames_are_sent_again_before_anything_new() -> None:
    session = made()
    stream = session.open(TARGET, 0.0)
    session.write(stream, b"one")
    before = sent(session)
    session.detach()
    session.write(stream, b"two")
    assert sent(session) == []
    session.attach(1, 1.0)
    assert sent(session, 1.0) == [*before[1:], (FrameType.DATA, 1, b"two")]


def test_a_peer_that_lacks_more_than_is_kept_cannot_resume() -> None:
    session = made()
    session.open(TARGET, 0.0)
    sent(session)
    for count in (2, 10**6):
        with pytest.raises(ProtocolError, match="the peer has"):
            session.attach(count, 0.0)


def test_a_replay_limit_stops_data_and_nothing_else() -> None:
    session = made(limits=Limits(replay=40_000))
    stream = opened(session)
    session.write(stream, bytes(60_000))
    while sent(session):
        pass
    assert 40_000 <= session.memory <= 40_000 + MAX_PAYLOAD
    session.open(TARGET, 0.0)
    assert [f[0] for f in sent(session)] == [FrameType.OPEN]


def test_acknowledgements_go_after_a_delay_or_with_other_frames() -> None:
    session = made(Side.AGENT)
    stream = asked(session)
    assert sent(session) == []
    deadline = session.tick(0.0)
    assert deadline is not None
    assert deadline <= 0.010
    session.tick(0.010)
    octets = 8 + len(TARGET.encode())
    ack = (FrameType.ACK, 0, struct.pack(">QQ", 1, octets))
    assert ack in sent(session, 0.010, acks=True)
    session.receive_data(encode_frame(FrameType.DATA, 1, b"x"), 0.02)
    session.write(stream, b"answer")
    assert [f[0] for f in sent(session, 0.02, acks=True)] == [FrameType.ACK, FrameType.DATA]


@pytest.mark.parametrize(("pause", "larger"), [(0.0001, True), (0.1, False)])
def test_acknowledgements_are_paced(pause: float, larger: bool) -> None:
    session = made(Side.AGENT)
    stream = asked(session)
    now, gaps = 0.0, []
    since = 0
    for _ in range(200):
        now += pause
        session.receive_data(encode_frame(FrameType.DATA, 1, bytes(8_000)), now)
        session.consume(stream, 8_000, now)
        since += 1
        if any(f[0] == FrameType.ACK for f in sent(session, now, acks=True)):
            gaps.append(since)
            since = 0
    # One in 16 KiB at the least, and fewer the faster they come.
    assert gaps[0] <= 3
    assert (max(gaps) > 8) is larger


def test_a_ping_is_answered_once_however_many_there_were() -> None:
    session = made()
    session.receive_data(encode_frame(FrameType.PING, 0, b"00000001"), 0.0)
    session.receive_data(encode_frame(FrameType.PING, 0, b"00000002"), 0.0)
    assert sent(session) == [(FrameType.PONG, 0, b"00000002")]


def test_pings_measure_the_round_trip_and_detect_a_dead_peer() -> None:
    session = made()
    session.tick(10.0)
    [(_, _, ping)] = sent(session, 10.0)
    assert session.tick(10.0) == 13.0
    session.tick(13.0)
    assert [f[0] for f in sent(session, 13.0)] == [FrameType.PING], "and the first still waits"
    assert not session.timed_out(15.9)
    assert session.timed_out(16.0)
    session.receive_data(encode_frame(FrameType.PONG, 0, ping), 10.25)
    assert session.rtt == pytest.approx(0.25)
    assert not session.timed_out(100.0)
    session.receive_data(encode_frame(FrameType.PONG, 0, b"\xff" * 8), 11.0)
    assert session.rtt == pytest.approx(0.25)


def test_without_a_tunnel_nothing_is_due() -> None:
    session = Session(Side.CLIENT, 0.0)
    assert session.tick(100.0) is None
    assert session.data_to_send(1000, 100.0) == []
    assert not session.timed_out(100.0)


def test_goaway_is_an_event() -> None:
    session = made()
    frame = encode_frame(FrameType.GOAWAY, 0, b"\x08bye")
    assert session.receive_data(frame, 0.0) == [GoAway(ErrorCode.GOING_AWAY, "bye")]
    assert session.peer_going_away
    session.go_away(ErrorCode.NONE, "me too")
    assert sent(session) == [(FrameType.GOAWAY, 0, b"\x00me too")]


def test_an_accept_of_a_reset_stream_is_ignored() -> None:
    session = made()
    stream = session.open(TARGET, 0.0)
    session.reset(stream)
    session.reset(stream)
    assert [f[0] for f in sent(session)] == [FrameType.OPEN, FrameType.RESET]
    session.refuse(stream, ErrorCode.REFUSED, "")
    session.write(stream, b"x")
    assert sent(session) == []


def test_a_stream_that_is_reset_while_it_waits_for_its_turn_sends_nothing() -> None:
    session = made()
    first, second = opened(session), opened(session)
    session.write(first, bytes(100))
    session.write(second, bytes(100))
    session.receive_data(encode_frame(FrameType.RESET, first.id, b"\x16"), 0.0)
    assert sent(session) == [(FrameType.DATA, second.id, bytes(100))]


def test_new_frames_wait_until_all_old_ones_are_sent_again() -> None:
    session = made()
    stream = session.open(TARGET, 0.0)
    session.write(stream, bytes(60_000))
    while sent(session):
        pass
    session.write(stream, b"new")
    session.attach(0, 1.0)
    first = session.data_to_send(1, 1.0)
    assert first[0][0] == FrameType.OPEN
    rest = [f for _ in range(9) for f in sent(session, 1.0)]
    assert rest[-1] == (FrameType.DATA, 1, b"new")


def test_closing_a_session_resets_every_stream() -> None:
    session = made()
    stream = opened(session)
    assert session.close(ErrorCode.RESET) == [StreamReset(stream, ErrorCode.RESET)]
    assert session.close(ErrorCode.RESET) == []


@pytest.mark.parametrize(
    "frame",
    [
        encode_frame(FrameType.PING, 0, b"short"),
        encode_frame(FrameType.PONG, 0, b"short"),
        encode_frame(FrameType.ACK, 0, struct.pack(">QQ", 0, 1)),
        encode_frame(FrameType.ACK, 0, struct.pack(">QQ", 9, 0)),
        encode_frame(FrameType.GOAWAY, 0, b"\x01" + bytes(256)),
        encode_frame(FrameType.WELCOME, 0, bytes(60)),
        encode_frame(FrameType.DATA, 0, b"x"),
        encode_frame(FrameType.DATA, 7, b"x"),
        encode_frame(FrameType.END, 2),
        encode_frame(FrameType.PING, 1, bytes(8)),
        encode_frame(FrameType.OPEN, 1, TARGET.encode()),
    ],
)
def test_an_illegal_frame_is_a_protocol_error(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        made().receive_data(frame, 0.0)


def test_an_empty_data_frame_is_no_event() -> None:
    session = made()
    opened(session)
    assert session.receive_data(encode_frame(FrameType.DATA, 1), 0.0) == []


def test_a_paused_reader_holds_its_window_and_another_stream_goes_on() -> None:
    pair = Joined()
    client, agent = pair.client.session, pair.agent.session
    paused, moving = client.open(TARGET, 0.0), client.open(TARGET, 0.0)
    pair.settle()
    for stream in agent.streams.values():
        agent.accept(stream)
    theirs = agent.streams[paused.id], agent.streams[moving.id]
    for stream in theirs:
        agent.write(stream, bytes(300_000))
    for _ in range(200):
        pair.now += 0.02
        for end in pair.ends:
            end.session.tick(pair.now)
            pair.flush(end)
            pair.deliver(end, 1 << 20)
        client.consume(moving, pair.client.unconsumed.pop(moving.id, 0), pair.now)
    assert len(pair.client.received[moving.id]) == 300_000
    assert len(pair.client.received[paused.id]) == INITIAL_WINDOW
    events = client.receive_data(b"", pair.now)
    assert not [e for e in events if isinstance(e, DataReceived)]


def test_events_before_a_protocol_error_are_returned_by_close() -> None:
    session = made(Side.AGENT)
    one, other = asked(session), asked(session, 3)
    data = encode_frame(FrameType.RESET, 1, b"\x0a") + encode_frame(FrameType.END, 99)
    with pytest.raises(ProtocolError, match="never opened"):
        session.receive_data(data, 0.0)
    events = session.close(ErrorCode.PROTOCOL)
    assert [(type(e), getattr(e, "stream", None)) for e in events] == [
        (StreamReset, one),
        (StreamReset, other),
    ]
    assert session.close(ErrorCode.PROTOCOL) == []


def flood(session: Session, *, read: bool) -> None:
    """Open streams for ever, each refused; `read`: and take the answers from the wire."""
    for number in range(1, 1 << 20, 2):
        frame = encode_frame(FrameType.OPEN, number, TARGET.encode())
        for event in session.receive_data(frame, 0.0):
            assert isinstance(event, StreamOpened)
            session.refuse(event.stream, ErrorCode.REFUSED, "nobody is there")
        if read:
            sent(session)


@pytest.mark.parametrize("read", [True, False])
def test_a_peer_that_acknowledges_nothing_costs_bounded_memory(read: bool) -> None:
    """However small the frames that it causes: each counts with what it takes besides its bytes."""
    session = made(Side.AGENT, limits=Limits(replay=1 << 20))
    with pytest.raises(ProtocolError, match="the peer acknowledges nothing") as caught:
        flood(session, read=read)
    assert caught.value.code is ErrorCode.LIMIT
    assert 5 << 20 < session.memory < 6 << 20


def test_a_session_without_ids_keeps_its_open_streams() -> None:
    session = made()
    first = opened(session)
    assert not session.ids_low
    session._next_id = MAX_ID
    assert session.ids_low
    assert not session.exhausted
    last = opened(session)
    assert last.id == MAX_ID
    assert session.exhausted
    with pytest.raises(ProtocolError, match="no stream ids left") as caught:
        session.open(TARGET, 0.0)
    assert caught.value.code is ErrorCode.LIMIT
    for stream in (first, last):
        data = encode_frame(FrameType.DATA, stream.id, b"hi")
        assert session.receive_data(data, 0.0) == [DataReceived(stream, b"hi")]


def test_the_last_id_is_accepted_and_none_after_it() -> None:
    session = made(Side.AGENT)
    stream = asked(session, MAX_ID)
    session.accept(stream)
    assert sent(session) == [(FrameType.OPENED, MAX_ID, b"")]
    with pytest.raises(ProtocolError, match=f"OPEN of stream 1 after {MAX_ID}"):
        asked(session, 1)


@pytest.mark.parametrize("header", [Header(TCP, "", 80), Header(TCP, "web", 70_000)])
def test_a_target_that_does_not_fit_a_header_uses_no_id(header: Header) -> None:
    session = made()
    with pytest.raises(ValueError, match="a (host name|port)"):
        session.open(header, 0.0)
    assert session.open(TARGET, 0.0).id == 1
    assert len(session.streams) == 1


def test_lost_datagrams_are_reported_to_a_peer_that_knows_the_frame() -> None:
    session, peer = made(Side.AGENT), made()
    session.report_losses((1, 2, 3, 4))
    assert sent(session) == []
    session.version = 2
    session.report_losses((1, 2, 3, 4))
    [(frame_type, stream_id, payload)] = sent(session)
    frame = encode_frame(frame_type, stream_id, payload)
    assert peer.receive_data(frame, 0.0) == [DatagramsLost((1, 2, 3, 4))]
    with pytest.raises(ProtocolError, match="LOST with 31 bytes"):
        peer.receive_data(encode_frame(FrameType.LOST, 0, payload[:31]), 0.0)


def test_a_doubted_tunnel_that_delivers_nothing_times_out_sooner() -> None:
    session = made()
    session.tick(10.0)
    session.verify_within(2.0, 11.0)
    assert not session.timed_out(12.9)
    assert session.timed_out(13.0)
    session.detach()
    session.verify_within(2.0, 20.0)
    assert session.tick(30.0) is None


def test_an_aborted_resumption_acknowledges_what_arrived_meanwhile() -> None:
    session = made()
    stream = opened(session)
    before = session.received_count
    assert session.begin_resume() == before
    session.receive_data(encode_frame(FrameType.DATA, stream.id, b"more"), 0.0)
    session.tick(1.0)
    numbers = [ack[:8] for t, _, ack in sent(session, 1.0, acks=True) if t == FrameType.ACK]
    assert [int.from_bytes(number, "big") for number in numbers] == [before]
    session.abort_resume()
    session.receive_data(encode_frame(FrameType.DATA, stream.id, b"!"), 2.0)
    session.tick(3.0)
    numbers = [ack[:8] for t, _, ack in sent(session, 3.0, acks=True) if t == FrameType.ACK]
    assert [int.from_bytes(number, "big") for number in numbers] == [before + 2]


def test_the_figures_of_a_session() -> None:
    session = made()
    stream = opened(session)
    assert session.write(stream, bytes(INITIAL_WINDOW + 1)) == INITIAL_WINDOW + 1
    assert session.queued == INITIAL_WINDOW + 1
    sent(session)
    assert (session.queued, session.window_stalls) == (1, 1)
    assert session.acknowledged == 0
    session.receive_data(encode_frame(FrameType.ACK, 0, bytes(7) + b"\1" + bytes(8)), 0.0)
    assert session.acknowledged == 1
    assert session.datagram(stream, b"x")
    session.detach()
    assert session.dropped_datagrams == 1
    assert not session.datagram(stream, b"x")
    session.end(stream)
    assert session.write(stream, b"after its end") == 1
