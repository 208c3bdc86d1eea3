"""Probe: open a stream to where a route leads, to learn whether the endpoint works.

A probe takes the way of a connection, but is not counted as traffic. It ends after the dial, or
after the answer to an HTTP request or a DNS query. Each step has a deadline, each answer a limit.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Iterable
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
"""Seconds for the agent's answer: longer than it dials, so that its own reason arrives."""
HTTP_DEADLINE = 10.0
"""Seconds from then on for the head of an HTTP answer."""
DNS_WAITS = (1.0, 2.0, 3.0)
"""Seconds to wait for an answer to each DNS query: datagrams may be lost."""
CLOSE_TIMEOUT = 2.0
"""Seconds for a target to end the connection in its turn."""
MAX_READ = 64 << 10
_MAX_DATAGRAMS = 16
_DNS_HEAD = Struct(">2sHHHHH")
_RECURSION_DESIRED = 0x0100
_IS_ANSWER = 0x80
_A_IN = b"\0\1\0\1"


ONE_CLIENT_PORTS = frozenset({1234, 2345, 5005, 5678, 40000})
"""Usual ports of debuggers: gdbserver and LLDB, Delve, JDWP, debugpy, and Delve in a container."""
_ONE_CLIENT_NAMES = frozenset(
    {"debug", "debugger", "debugpy", "delve", "dlv", "gdb", "gdbserver", "jdwp", "lldb", "pdb"}
    | {"ptvsd", "rpdb"}
)


def takes_one_client(names: Iterable[int | str]) -> bool:
    """Return whether a port with these names and numbers is that of a debugger.

    Many debuggers take the first connection for their user, and end with it.
    """
    return any(
        name in ONE_CLIENT_PORTS
        if isinstance(name, int)
        else not _ONE_CLIENT_NAMES.isdisjoint(name.lower().split("-"))
        for name in names
    )


class ProbeError(Exception):
    """The endpoint does not work; `code` is the agent's answer, if that says so."""

    def __init__(self, message: str, code: ErrorCode | None = None) -> None:
        super().__init__(message)
        self.code = code


class NoRouteError(Exception):
    """The route has no endpoint, or its pool no tunnel."""


async def probe(check: Check, route: Route) -> None:
    """Return if the present endpoint of `route` passes the check.

    Raises ProbeError if it does not, NoRouteError if it cannot be dialled now.
    """
    protocol = Protocol.UDP if check.kind is CheckKind.DNS else Protocol.TCP
    handler = _Handler()
    host = str(route.endpoint)
    try:
        stream = open_now(route, protocol, handler)
    except ProtocolError as exc:
        raise ProbeError(str(exc), exc.code) from exc
    if stream is None:
        raise NoRouteError
    handler.stream = stream
    try:
        async with _deadline(DIAL_DEADLINE, "the agent gave no answer"):
            await handler.accepted()
        if check.kind is CheckKind.HTTP:
            async with _deadline(HTTP_DEADLINE, f"no answer to {_name(check)}"):
                await _http(check, host, stream, handler)
        elif check.kind is CheckKind.DNS:
            await _dns(check, stream, handler)
    except BaseException:
        stream.reset(ErrorCode.CANCELLED)
        raise
    _close(stream, protocol)


def _close(stream: Stream, protocol: Protocol) -> None:
    """End the stream in good order, since many a target logs a reset as an error.

    A target that does not end in its turn is reset later.
    """
    if protocol is Protocol.UDP:
        stream.reset(ErrorCode.CANCELLED)  # a flow ends in no other way
        return
    stream.end()
    asyncio.get_running_loop().call_later(CLOSE_TIMEOUT, stream.reset, ErrorCode.CANCELLED)


@asynccontextmanager
async def _deadline(seconds: float, message: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as exc:
        raise ProbeError(f"{message} within {seconds:g} s") from exc


async def _http(check: Check, host: str, stream: Stream, handler: _Handler) -> None:
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
                data = await handler.read()
                if not (data or connection.trailing_data[0]):
                    raise ProbeError(
                        f"the connection was closed before an answer to {_name(check)}"
                    )
                connection.receive_data(data)
    except h11.RemoteProtocolError as exc:
        raise ProbeError(f"the answer to {_name(check)} is not HTTP: {exc}") from exc
    status = event.status_code
    if status != check.status if check.status else not 200 <= status < 400:
        expected = check.status or "200 to 399"
        raise ProbeError(f"{_name(check)} -> {status}, expected {expected}")


def _name(check: Check) -> str:
    return f"{check.method} {check.path}"


async def _dns(check: Check, stream: Stream, handler: _Handler) -> None:
    """Send queries until one is answered. Any answer will do, also that the name does not exist."""
    number = secrets.token_bytes(2)
    labels = (label.encode() for label in check.name.rstrip(".").split(".") if label)
    name = b"".join(bytes([len(label)]) + label for label in labels)
    query = _DNS_HEAD.pack(number, _RECURSION_DESIRED, 1, 0, 0, 0) + name + b"\0" + _A_IN
    for wait in DNS_WAITS:
        stream.datagram(query)
        try:
            async with asyncio.timeout(wait):
                while True:
                    answer = await handler.read()
                    if answer[:2] == number and len(answer) > 2 and answer[2] & _IS_ANSWER:
                        return
                    if handler.ended:
                        raise ProbeError("the flow has ended")
        except TimeoutError:
            continue
    raise ProbeError(f"no answer to a DNS query for {check.name} within {sum(DNS_WAITS):g} s")


class _Handler:
    """The stream's handler: keeps what arrives until it is read."""

    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.ended = False
        self._accepted = False
        self._failure: ProbeError | None = None
        self._received: deque[bytes] = deque()
        self._size = 0
        self._changed = asyncio.Event()

    async def accepted(self) -> None:
        """Return when the endpoint is reached. Raises ProbeError."""
        while not self._accepted:
            await self._wait()

    async def read(self) -> bytes:
        """Return the next bytes; empty at the end. Raises ProbeError."""
        while not self._received and not self.ended:
            await self._wait()
        return self._received.popleft() if self._received else b""

    async def _wait(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._changed.clear()
        await self._changed.wait()

    def _fail(self, failure: ProbeError) -> None:
        self._failure = self._failure or failure
        self._changed.set()

    def on_accepted(self) -> None:
        self._accepted = True
        self._changed.set()

    def on_refused(self, code: ErrorCode, message: str) -> None:
        self._fail(ProbeError(message, code))

    def on_reset(self, code: ErrorCode) -> None:
        known = code if code is ErrorCode.REFUSED else None  # by ICMP, for a flow
        self._fail(ProbeError("the connection was reset", known))

    def on_data(self, data: Buffer) -> None:
        self._size += len(data)
        if self._size > MAX_READ:
            self._fail(ProbeError(f"the answer is longer than {MAX_READ >> 10} KiB"))
            return
        self._received.append(bytes(data))
        self._changed.set()
        if self.stream is not None:
            self.stream.consume(len(data))

    def on_datagram(self, data: Buffer) -> None:
        if len(self._received) < _MAX_DATAGRAMS:
            self._received.append(bytes(data))
            self._changed.set()

    def on_end(self) -> None:
        self.ended = True
        self._changed.set()

    def on_writable(self) -> None:
        """Nothing to do: a probe's request fits into any window."""
