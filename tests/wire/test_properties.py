"""Two sessions under any schedule: every byte once and in order, no window passed, no deadlock."""

from __future__ import annotations

import os
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from krelay.wire.compression import Algorithm, compress
from krelay.wire.errors import ErrorCode, ProtocolError
from krelay.wire.events import DataReceived, Event
from krelay.wire.frames import MAX_PAYLOAD, FrameType, encode_frame
from krelay.wire.header import TCP, Header
from krelay.wire.session import Limits, Session, Side
from krelay.wire.stream import State
from tests.wire.pipe import TARGET, End, Joined

SMALL = Limits(streams=6, replay=96 << 10, windows=512 << 10, datagrams=4 << 10)


class Story:
    """A random schedule over a joined pair, and the account of what was written."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.pair = Joined(SMALL, Algorithm.DEFLATE)
        self.written: dict[tuple[Side, int], bytearray] = {}
        self.finished: set[tuple[Side, int]] = set()
        self.given_up: set[int] = set()

    def step(self) -> None:
        chance = self.random
        end = chance.choice(self.pair.ends)
        self.pair.now += chance.choice([0, 0, 0.001, 0.02])
        action = chance.choice(
            [self.open, self.answer, self.write, self.write, self.write, self.finish, self.reset]
            + [self.compress, self.datagram, self.consume, self.flush, self.flush, self.flush]
            + [self.deliver, self.deliver, self.deliver, self.deliver, self.tick, self.tunnel]
        )
        action(end)
        for one in self.pair.ends:
            assert one.session.unacknowledged <= SMALL.replay + 2 * MAX_PAYLOAD
            assert len(one.session.streams) <= SMALL.streams

    def open(self, end: End) -> None:
        try:
            self.pair.client.session.open(TARGET, self.pair.now)
        except ProtocolError as exc:
            assert exc.code is ErrorCode.LIMIT

    def answer(self, end: End) -> None:
        agent = self.pair.agent
        while agent.opened:
            stream = agent.opened.pop()
            if stream.state is State.CLOSED:
                continue
            if self.random.random() < 0.8:
                agent.session.accept(stream)
            else:
                agent.session.refuse(stream, ErrorCode.REFUSED, "no")
                self.given_up.add(stream.id)

    def write(self, end: End) -> None:
        streams = list(end.session.streams.values())
        if not streams:
            return
        stream = self.random.choice(streams)
        if end is self.pair.agent and stream in end.opened:
            return  # nothing is sent before the answer
        key = (end.session.side, stream.id)
        if key in self.finished or stream.queued > 200_000:
            return
        size = self.random.choice([1, 100, 5_000, 70_000])
        data = self.random.choice([self.random.randbytes, bytes, b"krelay, ".__mul__])(size)
        end.session.write(stream, data)
        self.written.setdefault(key, bytearray()).extend(data)

    def finish(self, end: End) -> None:
        streams = list(end.session.streams.values())
        if streams and self.random.random() < 0.5:
            stream = self.random.choice(streams)
            if end is self.pair.agent and stream in end.opened:
                return
            end.session.end(stream)
            self.finished.add((end.session.side, stream.id))

    def reset(self, end: End) -> None:
        streams = list(end.session.streams.values())
        if streams and self.random.random() < 0.2:
            stream = self.random.choice(streams)
            end.session.reset(stream)
            self.given_up.add(stream.id)

    def compress(self, end: End) -> None:
        end.compress(on=self.random.random() < 0.8)

    def datagram(self, end: End) -> None:
        streams = list(end.session.streams.values())
        if streams:
            end.session.datagram(self.random.choice(streams), b"d" * self.random.randrange(3_000))

    def consume(self, end: End) -> None:
        self.pair.consume(end)

    def flush(self, end: End) -> None:
        self.pair.flush(end, self.random.choice([1, 1_000, 1 << 18]))

    def deliver(self, end: End) -> None:
        self.pair.deliver(end, self.random.choice([1, 7, 8, 100, 20_000, 1 << 20]))

    def tick(self, end: End) -> None:
        end.session.tick(self.pair.now)

    def tunnel(self, end: End) -> None:
        chance = self.random.random()
        if not end.session.attached:
            self.pair.attach()
        elif chance < 0.1:
            self.pair.cut()
        elif chance < 0.6:
            self.pair.move()  # make before break, a step at a time

    def check(self) -> None:
        """Everything was delivered, or its stream was given up."""
        pair = self.pair
        if not pair.client.session.attached:
            pair.attach()
        pair.settle()
        self.answer(pair.agent)
        pair.settle()
        for end in pair.ends:
            other = pair.other(end)
            for number in {n for side, n in self.written if side is end.session.side}:
                sent = bytes(self.written[end.session.side, number])
                got = bytes(other.received.get(number, b""))
                if number in self.given_up or number in end.closed:
                    assert sent.startswith(got)
                    continue
                assert got == sent
                if (end.session.side, number) in self.finished:
                    assert number in other.ended
        for end in pair.ends:
            for stream in list(end.session.streams.values()):
                end.session.reset(stream)
        pair.settle()
        for end in pair.ends:
            assert not end.session.streams
            assert not end.session.unacknowledged
            assert end.session._congestion.sent == end.session._congestion.acked
            assert not end.wire


@given(st.integers(0, 2**32))
@settings(max_examples=int(os.environ.get("KRELAY_SCHEDULES", "150")), deadline=None)
def test_every_byte_arrives_once_and_in_order_or_its_stream_is_reset(seed: int) -> None:
    story = Story(seed)
    for _ in range(400):
        story.step()
    story.check()


def coalesced(events: list[Event]) -> list[tuple[str, int, bytes]]:
    """Events in a form that does not show where reads fell."""
    seen: list[tuple[str, int, bytes]] = []
    for event in events:
        stream = getattr(event, "stream", None)
        number = stream.id if stream is not None else 0
        data = bytes(event.data) if isinstance(event, DataReceived) else b""
        seen.append((type(event).__name__, number, data))
    return seen


@st.composite
def conversations(draw: st.DrawFn) -> bytes:
    """What an honest client may send."""
    out = bytearray()
    live: list[int] = []
    number = 1
    for _ in range(draw(st.integers(1, 12))):
        kinds = ["open", "data", "compressed", "end", "reset", "datagram", "ping"]
        choice = draw(st.sampled_from(kinds))
        if choice == "open" or not live:
            out += encode_frame(FrameType.OPEN, number, TARGET.encode())
            live.append(number)
            number += 2
            continue
        stream = draw(st.sampled_from(live))
        if choice == "data":
            out += encode_frame(FrameType.DATA, stream, draw(st.binary(max_size=5_000)))
        elif choice == "compressed":
            data = draw(st.binary(min_size=1, max_size=5_000))
            payload = compress(Algorithm.DEFLATE, [data])
            out += encode_frame(FrameType.COMPRESSED, stream, payload)
        elif choice == "end":
            out += encode_frame(FrameType.END, stream)
            live.remove(stream)
        elif choice == "reset":
            out += encode_frame(FrameType.RESET, stream, b"\x0a")
            live.remove(stream)
        elif choice == "datagram":
            out += encode_frame(FrameType.DATAGRAM, stream, draw(st.binary(max_size=100)))
        else:
            out += encode_frame(FrameType.PING, 0, b"12345678")
    return bytes(out)


@given(conversations(), st.lists(st.integers(1, 3_000), max_size=40))
def test_any_split_of_the_bytes_gives_the_same_events(data: bytes, cuts: list[int]) -> None:
    def events_of(pieces: list[bytes]) -> list[tuple[str, int, bytes]]:
        session = Session(Side.AGENT, 0.0)
        session.use_compression(Algorithm.DEFLATE, float)
        session.attach(0, 0.0)
        return coalesced([e for piece in pieces for e in session.receive_data(piece, 0.0)])

    pieces, at = [], 0
    for cut in cuts:
        pieces.append(data[at : at + cut])
        at += cut
    assert events_of([*pieces, data[at:]]) == events_of([data])


frames = st.builds(
    encode_frame,
    st.sampled_from(list(FrameType)),
    st.sampled_from([0, 1, 2, 3, 5, 2**32 - 1]),
    st.one_of(
        st.binary(max_size=40),
        st.just(TARGET.encode()),
        st.just(bytes(16)),
        st.integers(0, 100_000).map(lambda size: compress(Algorithm.DEFLATE, [bytes(size)])),
    ),
)


@given(
    st.lists(st.one_of(frames, st.binary(max_size=30)), max_size=20),
    st.sampled_from(Side),
    st.sampled_from([Algorithm.NONE, Algorithm.DEFLATE]),
)
def test_any_bytes_give_events_or_a_protocol_error(
    pieces: list[bytes], side: Side, algorithm: Algorithm
) -> None:
    session = Session(side, 0.0)
    session.use_compression(algorithm, float)
    session.attach(0, 0.0)
    if side is Side.CLIENT:
        session.open(Header(TCP, "a", 1), 0.0)
        session.data_to_send(1 << 16, 0.0)
    try:
        for piece in pieces:
            session.receive_data(piece, 0.0)
            session.data_to_send(1 << 16, 0.0)
            session.tick(0.0)
    except ProtocolError as exc:
        assert exc.code in (ErrorCode.PROTOCOL, ErrorCode.FLOW_CONTROL)
    for stream in session.streams.values():
        assert stream.state in State
