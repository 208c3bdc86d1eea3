"""Probe: one stream to where a route leads, to see that somebody is there; no part of the traffic.

It asks the agent as a connection would: a dial, and over that an HTTP request or, as a datagram, a
DNS query. Everything has a deadline, and a limit on what is read.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from struct import Struct

from krelay import __version__
from krelay.datapath.connector import open_now
from krelay.datapath.route import Route
from krelay.model import Check, CheckKind, Protocol
from krelay.mux.stream import Stream
from krelay.wire.errors import ErrorCode, ProtocolError
from krelay.wire.frames import Buffer

DIAL_DEADLINE = 30.0
"""Seconds to the agent's answer: longer than it dials, so that it is the one to say why not."""
HTTP_DEADLINE = 10.0
"""Seconds from there to the head of an HTTP answer."""
DNS_WAITS = (1.0, 2.0, 3.0)
"""Seconds for an answer to each of a few DNS queries: datagrams may be lost."""
PARTING = 2.0
"""Seconds that a target gets to end in its turn."""
MAX_READ = 64 << 10
_MAX_DATAGRAMS = 16
_DNS_HEAD = Struct(">2sHHHHH")
_RECURSION_DESIRED = 0x0100
_IS_ANSWER = 0x80
_A_IN = b"\0\1\0\1"


class ProbeError(Exception):
    """It did not work; `code` is the agent's answer, where that was it."""

    def __init__(self, message: str, code: ErrorCode | None = None) -> None:
        super().__init__(message)
        self.code = code


class NoRouteError(Exception):
    """There was nothing to ask: no endpoint, or no tunnel."""


async def probe(check: Check, route: Route) -> None:
    """Return when the endpoint that `route` leads to now works.

    Raises:
        ProbeError: it does not.
        NoRouteError: there is no way to it.
    """
    protocol = Protocol.UDP if check.kind is CheckKind.DNS else Protocol.TCP
    end = _End()
    host = str(route.endpoint)
    try:
        stream = open_now(route, protocol, end)
    except ProtocolError as exc:
        raise ProbeError(str(exc), exc.code) from exc
    if stream is None:
        raise NoRouteError
    end.stream = stream
    try:
        async with _deadline(DIAL_DEADLINE, "the agent gave no answer"):
            await end.accepted()
        if check.kind is CheckKind.HTTP:
            async with _deadline(HTTP_DEADLINE, f"no answer to {_words(check)}"):
                await _http(check, host, stream, end)
        elif check.kind is CheckKind.DNS:
            await _dns(check, stream, end)
    except BaseException:
        stream.reset(ErrorCode.CANCELLED)
        raise
    _part(stream, protocol)


def _part(stream: Stream, protocol: Protocol) -> None:
    """Leave as a client does that has said all: a target logs a reset as an error. One that does
    not end in its turn is cut after a while, for which nobody waits."""
    if protocol is Protocol.UDP:
        stream.reset(ErrorCode.CANCELLED)  # a flow has no other end
        return
    stream.end()
    asyncio.get_running_loop().call_later(PARTING, stream.reset, ErrorCode.CANCELLED)


@asynccontextmanager
async def _deadline(seconds: float, message: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as exc:
        raise ProbeError(f"{message} within {seconds:g} s") from exc


async def _http(check: Check, host: str, stream: Stream, end: _End) -> None:
    import h11

    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_READ)
    request = h11.Request(
        method=check.method,
        target=check.path,
        headers=[
            ("Host", host),
            ("User-Agent", f"krelay/{__version__}"),
            ("Accept", "*/*"),
            ("Connection", "close"),
        ],
    )
    stream.write(connection.send(request) or b"")
    stream.write(connection.send(h11.EndOfMessage()) or b"")
    try:
        while not isinstance(event := connection.next_event(), h11.Response):
            if event is h11.NEED_DATA:
                data = await end.read()
                if not (data or connection.trailing_data[0]):
                    raise ProbeError(
                        f"the connection was closed before an answer to {_words(check)}"
                    )
                connection.receive_data(data)
    except h11.RemoteProtocolError as exc:
        raise ProbeError(f"the answer to {_words(check)} is not HTTP: {exc}") from exc
    status = event.status_code
    if status != check.status if check.status else not 200 <= status < 400:
        expected = check.status or "200 to 399"
        raise ProbeError(f"{_words(check)} -> {status}, expected {expected}")


def _words(check: Check) -> str:
    return f"{check.method} {check.path}"


async def _dns(check: Check, stream: Stream, end: _End) -> None:
    """Any answer will do: that there is no such name is one."""
    number = secrets.token_bytes(2)
    labels = (label.encode() for label in check.name.rstrip(".").split(".") if label)
    name = b"".join(bytes([len(label)]) + label for label in labels)
    query = _DNS_HEAD.pack(number, _RECURSION_DESIRED, 1, 0, 0, 0) + name + b"\0" + _A_IN
    for wait in DNS_WAITS:
        stream.datagram(query)
        try:
            async with asyncio.timeout(wait):
                while True:
                    answer = await end.read()
                    if answer[:2] == number and len(answer) > 2 and answer[2] & _IS_ANSWER:
                        return
                    if end.ended:
                        raise ProbeError("the flow was ended")
        except TimeoutError:
            continue
    raise ProbeError(f"no answer to a DNS query for {check.name} within {sum(DNS_WAITS):g} s")


class _End:
    """What is heard on the stream."""

    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.ended = False
        self._accepted = False
        self._failure: ProbeError | None = None
        self._received: deque[bytes] = deque()
        self._size = 0
        self._news = asyncio.Event()

    async def accepted(self) -> None:
        """The endpoint is reached. Raises ProbeError."""
        while not self._accepted:
            await self._wait()

    async def read(self) -> bytes:
        """What came next; empty at the end. Raises ProbeError."""
        while not self._received and not self.ended:
            await self._wait()
        return self._received.popleft() if self._received else b""

    async def _wait(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._news.clear()
        await self._news.wait()

    def _fail(self, failure: ProbeError) -> None:
        self._failure = self._failure or failure
        self._news.set()

    def on_accepted(self) -> None:
        self._accepted = True
        self._news.set()

    def on_refused(self, code: ErrorCode, message: str) -> None:
        self._fail(ProbeError(message, code))

    def on_reset(self, code: ErrorCode) -> None:
        known = code if code is ErrorCode.REFUSED else None  # an ICMP for a flow
        self._fail(ProbeError("the connection was reset", known))

    def on_data(self, data: Buffer) -> None:
        self._size += len(data)
        if self._size > MAX_READ:
            self._fail(ProbeError(f"the answer is longer than {MAX_READ >> 10} KiB"))
            return
        self._received.append(bytes(data))
        self._news.set()
        if self.stream is not None:
            self.stream.consume(len(data))

    def on_datagram(self, data: Buffer) -> None:
        if len(self._received) < _MAX_DATAGRAMS:
            self._received.append(bytes(data))
            self._news.set()

    def on_end(self) -> None:
        self.ended = True
        self._news.set()

    def on_writable(self) -> None:
        """What is asked fits into any window."""
