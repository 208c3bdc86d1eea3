"""Targets of `krelay.wire`: a hostile peer causes a ProtocolError or a HandshakeError at most."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from contextlib import suppress

from fuzz.draw import Draw
from krelay.wire.compression import Algorithm, compress
from krelay.wire.errors import ErrorCode, HandshakeError, ProtocolError
from krelay.wire.events import (
    DataReceived,
    Event,
    StreamEnded,
    StreamOpened,
    StreamRefused,
    StreamReset,
)
from krelay.wire.frames import MAX_PAYLOAD, FrameDecoder, FrameType, encode_frame
from krelay.wire.handshake import AgentHandshake, Ask, ClientHandshake, Resume, deny
from krelay.wire.header import TCP, Header, decode_header, header_length
from krelay.wire.session import Limits, Session, Side
from krelay.wire.stream import INITIAL_WINDOW, State, Stream

KEY = bytes(range(32))
OTHER_KEY = b"unknown to every seed"
CLIENT_NONCE = b"C" * 32
AGENT_NONCE = b"A" * 32
SESSION_ID = b"S" * 16

_TYPES = tuple(FrameType)


def frames(data: bytes) -> None:
    """Any split gives the same frames or the same error; frames and rest add up to the input."""
    draw = Draw(data)
    pieces = list(draw.pieces())
    whole, parts = FrameDecoder(), FrameDecoder()
    stream = b"".join(pieces)
    try:
        found = whole.feed(stream)
    except ProtocolError:
        assert _refused(parts, pieces)
        return
    cut = [frame for piece in pieces for frame in parts.feed(piece)]
    assert cut == found
    encoded = b"".join(encode_frame(*frame) for frame in found)
    assert encoded + whole.pending() == stream
    assert encoded + parts.pending() == stream


def _refused(decoder: FrameDecoder, pieces: list[bytes]) -> bool:
    try:
        for piece in pieces:
            decoder.feed(piece)
    except ProtocolError:
        return True
    return False


def header(data: bytes) -> None:
    """A decoded Header survives another encoding and decoding."""
    try:
        length = header_length(data)
        if length is None:
            return
        decoded = decode_header(data[:length])
    except ProtocolError:
        return
    assert decoded.host.isprintable()
    if not decoded.host:
        return
    try:
        ipaddress.ip_address(decoded.host)
    except ValueError:
        assert decode_header(decoded.encode()) == decoded
    else:
        # An address that arrived as a name is encoded as an address.
        decode_header(decoded.encode())


def handshake(data: bytes) -> None:
    """Neither end accepts a peer that does not know the key."""
    draw = Draw(data)
    flags = draw.number()
    known = not flags & 1
    key = KEY if known else OTHER_KEY
    if flags & 2:
        resume = Resume(SESSION_ID, OTHER_KEY, lambda: flags) if flags & 4 else None
        client = ClientHandshake(key, CLIENT_NONCE, resume=resume, private=bool(flags & 8))
        receive: Callable[[bytes], object] = client.receive_data
    else:
        agent = AgentHandshake(AGENT_NONCE, Ask((flags >> 2) % 3))
        receive = agent.receive_data
    claim = None
    try:
        for piece in draw.pieces():
            if claim := receive(piece):
                break
    except (HandshakeError, ProtocolError) as exc:
        assert 0 < len(deny(exc.code, str(exc))) < 300
        return
    if claim is None:
        return
    if flags & 2:
        assert known
        assert not flags & 4
    else:
        assert not agent.verify(claim, OTHER_KEY)  # type: ignore[arg-type]
        assert agent.welcome(claim, SESSION_ID, KEY, 0, 4_096)  # type: ignore[arg-type]


_LIMITS = Limits(streams=8, replay=96 << 10, windows=1 << 20, datagrams=16 << 10)


def session(data: bytes) -> None:
    """A session behaves as usual while its peer sends anything."""
    draw = Draw(data)
    flags = draw.number()
    end = _End(Side.AGENT if flags & 1 else Side.CLIENT, compresses=bool(flags & 2))
    try:
        while draw:
            end.step(draw)
            end.check()
    except ProtocolError:
        # Only receive_data and attach raise it; the session is over then.
        end.close()


class _End:
    def __init__(self, side: Side, *, compresses: bool) -> None:
        self.now = 1.0
        self.session = Session(side, self.now, _LIMITS)
        if compresses:
            self.session.use_compression(Algorithm.DEFLATE, lambda: self.now)
        self.session.attach(0, self.now)
        self.asked: list[Stream] = []
        self.held: dict[int, int] = {}
        self.told: dict[int, Stream] = {}
        self.ended: set[int] = set()
        self.steps = (
            *(self.receive, self.receive, self.frame, self.frame, self.frame),
            *(self.consume, self.answer, self.write, self.end, self.reset, self.datagram),
            *(self.open, self.send, self.send, self.tick, self.tunnel, self.compress),
        )

    def step(self, draw: Draw) -> None:
        choice = draw.number()
        self.now += (choice >> 4) / 1_000
        self.steps[choice % len(self.steps)](draw)

    def receive(self, draw: Draw) -> None:
        self.heard(draw.take(draw.number(2)))

    def frame(self, draw: Draw) -> None:
        """Receive a well-formed frame, to reach more than the decoder."""
        kind, number, size = draw.number(), draw.number(), draw.number()
        payload = draw.take(size)
        if size == 0xFF:
            payload = bytes(draw.number(2))
        elif kind & 0x80 and len(payload) < 8:
            payload = Header(TCP, "10.0.0.1", 80).encode()
        self.heard(encode_frame(_TYPES[(kind & 0x7F) % len(_TYPES)], number, payload))

    def compress(self, draw: Draw) -> None:
        """Receive a block, whole or cut short, or begin or end to send such blocks."""
        choice, number = draw.number(), draw.number()
        if choice & 3:
            payload = compress(Algorithm.DEFLATE, [draw.take(8) + bytes(draw.number(2))])
            payload = payload[: len(payload) - (choice >> 6)]
            self.heard(encode_frame(FrameType.COMPRESSED, number, payload))
        elif compressor := self.session._compressor:
            compressor.active = bool(choice & 4)
            self.session._send_queue.compressor = compressor if compressor.active else None

    def heard(self, data: bytes) -> None:
        if self.session.attached:
            self.handle(self.session.receive_data(data, self.now))

    def handle(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, StreamOpened):
                self.asked.append(event.stream)
                self.told[event.stream.id] = event.stream
            elif isinstance(event, DataReceived):
                number = event.stream.id
                assert number in self.told
                assert number not in self.ended
                self.held[number] = self.held.get(number, 0) + len(event.data)
            elif isinstance(event, StreamEnded):
                assert event.stream.id in self.told
                self.ended.add(event.stream.id)
            elif isinstance(event, StreamReset | StreamRefused):
                assert self.told.pop(event.stream.id, None)

    def any(self, draw: Draw) -> Stream | None:
        streams = list(self.session.streams.values())
        return streams[draw.number() % len(streams)] if streams else None

    def consume(self, draw: Draw) -> None:
        stream = self.any(draw)
        if stream is not None:
            self.session.consume(stream, self.held.pop(stream.id, 0), self.now)

    def answer(self, draw: Draw) -> None:
        if self.asked:
            stream = self.asked.pop()
            if draw.number() & 1:
                self.session.accept(stream)
            else:
                self.told.pop(stream.id, None)
                self.session.refuse(stream, ErrorCode.REFUSED, "no")

    def write(self, draw: Draw) -> None:
        stream = self.any(draw)
        if stream is not None and not stream.end_queued and stream.queued < MAX_PAYLOAD:
            self.session.write(stream, bytes(draw.number(2)))

    def end(self, draw: Draw) -> None:
        stream = self.any(draw)
        if stream is not None:
            self.session.end(stream)

    def reset(self, draw: Draw) -> None:
        stream = self.any(draw)
        if stream is not None:
            self.told.pop(stream.id, None)
            self.session.reset(stream, ErrorCode.CANCELLED)

    def datagram(self, draw: Draw) -> None:
        stream = self.any(draw)
        if stream is not None:
            self.session.datagram(stream, bytes(draw.number(2)))

    def open(self, draw: Draw) -> None:
        with suppress(ProtocolError):
            stream = self.session.open(Header(TCP, "10.0.0.1", 80), self.now)
            self.told[stream.id] = stream

    def send(self, draw: Draw) -> None:
        sent = self.session.data_to_send((draw.number() + 1) << 10, self.now)
        assert all(len(piece) <= MAX_PAYLOAD for piece in sent)
        self.session.writable.clear()

    def tick(self, draw: Draw) -> None:
        when = self.session.tick(self.now)
        assert when is None or when > self.now or self.session.timed_out(self.now)

    def tunnel(self, draw: Draw) -> None:
        """Lose the tunnel, attach another, or begin or abort a resumption."""
        choice = draw.number()
        if choice & 1 and self.session.attached:
            self.session.detach()
        elif choice & 2:
            self.session.begin_resume()
        elif choice & 4:
            self.session.abort_resume()
        else:
            self.session.attach(choice >> 3, self.now)

    def check(self) -> None:
        live = self.session.streams
        assert len(live) <= _LIMITS.streams
        assert 0 <= self.session.unacknowledged <= self.session.memory
        assert 0 <= self.session._receive_counter.acknowledged <= self.session.received_count
        assert self.session.queued == sum(stream.queued for stream in live.values())
        assert all(stream.state is not State.CLOSED for stream in live.values())
        windows = sum(stream.window.size for stream in live.values())
        assert windows <= _LIMITS.windows + len(live) * INITIAL_WINDOW
        for number, stream in live.items():
            assert self.held.get(number, 0) <= stream.window.size
            assert stream.queued == sum(map(len, stream.queue)) - stream.taken

    def close(self) -> None:
        self.handle(self.session.close(ErrorCode.PROTOCOL))
        # Every open stream got its end as an event.
        for number, stream in self.told.items():
            assert number in self.ended
            assert stream.end_sent
        assert not self.session.streams
        assert not self.session.data_to_send(1 << 20, self.now)
