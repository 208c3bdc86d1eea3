"""HTTP relay: one client's connection to many targets, message by message. Sans-I/O.

h11 frames each request and each response (RFC 9112), and a routing function says where each request
goes. A request has a connection to its target for itself, so none of its bytes can reach the target
of another one. Only a CONNECT or a 101 turns the client's connection into a splice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Generic, Protocol, TypeVar

import h11

MAX_HEAD = 1 << 16
MAX_HEADERS = 256
MAX_PIPELINED = 1 << 16
"""Bytes behind a request that are kept until its response is done."""
EVENTS_A_TURN = 512
"""How many h11 events one call handles, since a body may be chunked byte by byte. `go_on` handles
the rest. A refusal by `route`, which costs more and waits for no target, ends a call."""
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"

_CHUNK = 1 << 16
_VIA = b"krelay"
_BLANK_LINE = re.compile(rb"\n\r?\n")
_FOLD = re.compile(rb"\n[ \t]")
_LENGTH = re.compile(rb"^content-length[ \t]*:([^\n]*)", re.IGNORECASE | re.MULTILINE)
# h11 takes only ASCII in a request target: it sees a parenthesis for each other byte, which it
# takes nowhere else in a request line.
_ASCII = bytes(n if n < 0x80 else ord("(") for n in range(256))
# RFC 9110, section 7.6.1. Transfer-Encoding is left to h11, which writes the framing.
_HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"te", b"upgrade"})
# A Connection header cannot take these away: they say where the message goes and where it ends.
_NEVER_LISTED = frozenset({b"host", b"content-length", b"transfer-encoding"})
# Neither belongs in a trailer (RFC 9110, section 6.5.1).
_NO_TRAILERS = _NEVER_LISTED | {b"trailer", b"authorization", b"content-encoding", b"content-type"}
_MAX_MESSAGE = 300
_EMPTY_LINES = 4

P = TypeVar("P")


class HttpRefusal(Exception):
    """A request that cannot be served; the response has `status` and the message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message[:_MAX_MESSAGE])
        self.status = status


def answer(status: int, message: str, *, close: bool = True, body: bool = True) -> bytes:
    """Return a whole response with a message; without its `body` for a HEAD request."""
    message = "".join(char if char.isprintable() else "?" for char in message)
    text = f"krelay: {message}\n".encode(errors="replace")
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(text)}",
        *(["Connection: close"] if close else []),
        *(['Proxy-Authenticate: Basic realm="krelay"'] if status == 407 else []),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (text if body else b"")


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request as the routing function sees it. `target` is as sent, maybe not ASCII."""

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    """Names in lower case."""

    def values(self, name: bytes) -> list[bytes]:
        """Return the values of a header, in order."""
        return [value for found, value in self.headers if found == name]


@dataclass(frozen=True, slots=True)
class Hop(Generic[P]):
    """Where a request goes: to `place`, with this request target and this Host header."""

    place: P
    target: bytes
    host: bytes


# -- actions -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Open(Generic[P]):
    """Connect to the target of the next request."""

    place: P


@dataclass(frozen=True, slots=True)
class ToTarget:
    """Send bytes to the target."""

    data: bytes


@dataclass(frozen=True, slots=True)
class EndTarget:
    """End the direction to the target: the client has ended behind this request."""


@dataclass(frozen=True, slots=True)
class CloseTarget:
    """Close the connection to the target; reset it unless `clean`."""

    clean: bool


@dataclass(frozen=True, slots=True)
class ToClient:
    """Send bytes to the client."""

    data: bytes


@dataclass(frozen=True, slots=True)
class EndClient:
    """End the direction to the client, but go on reading, so that the answer arrives."""


@dataclass(frozen=True, slots=True)
class CutClient:
    """Reset the client's connection: the response is cut short."""


@dataclass(frozen=True, slots=True)
class Splice:
    """Couple both connections from here on, beginning with these bytes."""

    to_target: bytes
    to_client: bytes


Action = Open[P] | ToTarget | EndTarget | CloseTarget | ToClient | EndClient | CutClient | Splice


# -- the relay ---------------------------------------------------------------------------------


class HttpRelay(Generic[P]):
    """Takes what the client and the current target send; `actions` returns what to do.

    `route` returns the `Hop` of a request, or raises `HttpRefusal`. `on_refusal` is called with the
    status and the message for each request that is not HTTP, or that `route` refuses.
    """

    def __init__(
        self,
        route: Callable[[RequestHead], Hop[P]],
        on_refusal: Callable[[int, str], None] = lambda status, message: None,
    ) -> None:
        self._route = route
        self._on_refusal = on_refusal
        self._actions: list[Action[P]] = []
        self._reader = _Reader(h11.Connection(h11.SERVER, MAX_HEAD))
        self._exchange: _Exchange[P] | None = None
        self._budget = 0
        self._last = False
        self.blocked = False
        """Whether the client takes no more for now, so that no further request begins."""
        self.switched = False
        """Whether both connections are spliced."""
        self.ending = False
        """Whether the client gets no more. Only the rest of a body is still read from it."""
        self.client_ended = False
        self.target_ended = False

    @property
    def idle(self) -> bool:
        """Whether the client may send its next request."""
        return self._exchange is None and not self.ending and not self.switched

    @property
    def in_head(self) -> bool:
        """Whether a part of the next request's head has arrived."""
        return self.idle and bool(self._reader.pending)

    @property
    def wants_client(self) -> bool:
        """Whether the client should be read now."""
        exchange = self._exchange
        waits = self.blocked if exchange is None else exchange.request_done
        return self.ending or not waits or len(self._reader.pending) < MAX_PIPELINED

    @property
    def discarding(self) -> bool:
        """Whether the client's bytes are discarded."""
        return self.ending and self._exchange is None

    @property
    def more(self) -> bool:
        """Whether `go_on` has work to do."""
        return self._budget < 0

    def actions(self) -> list[Action[P]]:
        """Return the actions since the last call, in order."""
        actions, self._actions = self._actions, []
        return actions

    # -- events --------------------------------------------------------------------------------

    def receive_from_client(self, data: bytes) -> None:
        """Handle bytes of the client."""
        if not self.discarding:
            self._reader.feed(data)
            self.go_on()

    def client_sent_end(self) -> None:
        """Handle the end of what the client sends."""
        self.client_ended = True
        exchange = self._exchange
        if exchange is not None and exchange.request_done and exchange.head.method != b"CONNECT":
            self._actions.append(EndTarget())
        self.go_on()

    def target_accepted(self) -> None:
        """Handle that the target was reached."""
        exchange = self._exchange
        if exchange is not None and exchange.head.method == b"CONNECT" and not self.switched:
            self._actions.append(ToClient(ESTABLISHED))
            self._splice(b"")

    def target_refused(self, status: int, message: str) -> None:
        """Handle that the target could not be reached."""
        exchange = self._exchange
        if exchange is not None and not self.switched:
            self._exchange = None
            self._refuse(exchange, status, message)
            self.go_on()

    def receive_from_target(self, data: bytes) -> None:
        """Handle bytes of the target."""
        if self._exchange is not None and not self._exchange.response_done:
            self._exchange.reader.feed(data)
            self.go_on()

    def target_sent_end(self) -> None:
        """Handle the end of what the target sends."""
        exchange = self._exchange
        if exchange is not None:
            self.target_ended = True
            if exchange.response_done:
                self._fail(exchange)
            self.go_on()

    def target_lost(self) -> None:
        """Handle a reset of the connection to the target."""
        exchange = self._exchange
        if exchange is not None and not self.switched:
            self._fail(exchange, *exchange.bad_gateway("the connection was reset"))
            self.go_on()

    def finish(self) -> None:
        """Serve no request but the current one."""
        self._last = True
        if self.idle:
            self._end_client()

    def go_on(self) -> None:
        """Handle what was received, up to `EVENTS_A_TURN`."""
        self._budget = EVENTS_A_TURN
        while not self.switched and self._budget >= 0:
            # Responses first: what follows a request waits until its response is done.
            if not self._respond() and not self._request():
                break

    # -- the client's side ---------------------------------------------------------------------

    def _request(self) -> bool:
        """Handle a part of what the client sent; return whether anything changed."""
        exchange = self._exchange
        if self.discarding or (exchange is not None and exchange.request_done):
            return False
        try:
            if exchange is None:
                return self._next_request()
            return self._request_body(exchange)
        except h11.RemoteProtocolError as exc:
            refusal = HttpRefusal(exc.error_status_hint, f"not HTTP: {_reason(exc)}")
        except HttpRefusal as exc:
            refusal = exc
        self._on_refusal(refusal.status, str(refusal))
        # What the client sends next cannot be told from the rest of this request.
        if exchange is not None:
            self._fail(exchange, refusal.status, str(refusal))
        else:
            self._actions.append(ToClient(answer(refusal.status, str(refusal))))
            self._end_client()
        return True

    def _next_request(self) -> bool:
        if self.blocked:
            return False
        event = self._reader.next_event()
        if event is h11.NEED_DATA:
            if not self.client_ended:
                return False
            if self._reader.pending:
                raise HttpRefusal(400, "the request ends in its head")
            self._end_client()
            return True
        assert isinstance(event, h11.Request)
        self._budget -= 1
        head = RequestHead(event.method, self._reader.target(event), list(event.headers))
        _check(event)
        exchange: _Exchange[P] = _Exchange(head, event, self._reader.connection)
        if not exchange.has_body:
            self._reader.connection.next_event()  # EndOfMessage, for which h11 needs no bytes
            self._request_ended(exchange)
        try:
            hop = self._route(head)
        except HttpRefusal as exc:
            self._on_refusal(exc.status, str(exc))
            self._refuse(exchange, exc.status, str(exc))
            self._budget = -1
            return True
        self._exchange = exchange
        exchange.host = hop.host
        self._actions.append(Open(hop.place))
        if head.method != b"CONNECT":
            self._actions.append(ToTarget(exchange.send_head(event, hop)))
        if exchange.request_done and self.client_ended:
            self._actions.append(EndTarget())
        return True

    def _request_body(self, exchange: _Exchange[P]) -> bool:
        data, event = self._read(self._reader, ended=self.client_ended)
        if data:
            self._actions.append(ToTarget(exchange.send_data(data)))
        if isinstance(event, Exception):
            raise event
        if isinstance(event, h11.EndOfMessage):
            self._actions.append(ToTarget(exchange.send_end(event)))
            self._request_ended(exchange)
            if self.client_ended:
                self._actions.append(EndTarget())
            if exchange.response_done:
                self._close(exchange)
        return event is not h11.NEED_DATA

    def _read(self, reader: _Reader, *, ended: bool) -> tuple[bytes, object]:
        """Return a part of a body, and the event or error behind it; None if more follows."""
        data: list[bytes] = []
        size = 0
        while self._budget >= 0 and size < _CHUNK:
            self._budget -= 1
            try:
                event = reader.next_event(ended=ended)
            except (h11.RemoteProtocolError, HttpRefusal) as exc:
                return b"".join(data), exc
            if not isinstance(event, h11.Data):
                return b"".join(data), event
            data.append(event.data)
            size += len(event.data)
        return data[0] if len(data) == 1 else b"".join(data), None

    def _request_ended(self, exchange: _Exchange[P]) -> None:
        exchange.request_done = True
        self._reader = _Reader(h11.Connection(h11.SERVER, MAX_HEAD), self._reader.rest())

    # -- the target's side ---------------------------------------------------------------------

    def _respond(self) -> bool:
        """Handle a part of what the target sent; return whether anything changed."""
        exchange = self._exchange
        if exchange is None or exchange.response_done or exchange.head.method == b"CONNECT":
            return False
        try:
            return self._response(exchange)
        except (h11.RemoteProtocolError, HttpRefusal) as exc:
            self._fail(exchange, *exchange.bad_gateway(f"no HTTP response: {_reason(exc)}"))
            return True

    def _response(self, exchange: _Exchange[P]) -> bool:
        data, event = self._read(exchange.reader, ended=self.target_ended)
        if data:
            self._actions.append(ToClient(exchange.pass_data(data)))
        if isinstance(event, Exception):
            raise event
        if isinstance(event, h11.InformationalResponse):
            switches = event.status_code == 101
            if switches and not exchange.request_done:
                raise HttpRefusal(502, "it switches protocols in the middle of the request")
            if switches or exchange.version >= b"1.1":
                self._actions.append(ToClient(exchange.pass_informational(event)))
            if switches:
                self._splice(bytes(exchange.reader.rest()))
        elif isinstance(event, h11.Response):
            self._actions.append(ToClient(exchange.pass_head(event, last=self._last)))
        elif isinstance(event, h11.EndOfMessage):
            self._actions.append(ToClient(exchange.pass_end(event)))
            self._response_ended(exchange)
        return event is not h11.NEED_DATA

    def _response_ended(self, exchange: _Exchange[P]) -> None:
        exchange.response_done = True
        if exchange.request_done:
            self._close(exchange)
            return
        # The response was early. The target may go on reading, unless it has ended.
        self._end_client()
        if self.target_ended:
            self._fail(exchange)

    # -- ends ----------------------------------------------------------------------------------

    def _close(self, exchange: _Exchange[P]) -> None:
        """End an exchange whose messages are both whole."""
        self._exchange, self.target_ended = None, False
        self._actions.append(CloseTarget(clean=True))
        if not self.ending and (self._last or not exchange.reusable):
            self._end_client()

    def _fail(self, exchange: _Exchange[P], status: int = 502, message: str = "") -> None:
        """End an exchange in which one message stays incomplete."""
        self._exchange, self.target_ended = None, False
        self._actions.append(CloseTarget(clean=False))
        if exchange.response_done:
            return
        if exchange.response_begun:
            self.ending = True
            self._actions.append(CutClient())
        else:
            self._refuse(exchange, status, message)

    def _refuse(self, exchange: _Exchange[P], status: int, message: str) -> None:
        """Answer instead of the target.

        A request with a body, or one that could have begun a splice, is the connection's last,
        however much of what follows it has arrived.
        """
        close = exchange.has_body or self._last or not exchange.keep
        body = exchange.head.method != b"HEAD"
        message = message[:_MAX_MESSAGE]
        self._actions.append(ToClient(answer(status, message, close=close, body=body)))
        if close:
            self._end_client()

    def _end_client(self) -> None:
        self.ending = True
        self._actions.append(EndClient())

    def _splice(self, to_client: bytes) -> None:
        self.switched = True
        self._actions.append(Splice(bytes(self._reader.rest()), to_client))


class _Exchange(Generic[P]):
    """One request and its response, as h11 writes each for the other end."""

    def __init__(self, head: RequestHead, request: h11.Request, server: h11.Connection) -> None:
        self.head = head
        self.host = b""
        self.version = request.http_version
        names = {name for name, _ in request.headers}
        length = dict(request.headers).get(b"content-length", b"0")
        self.has_body = b"transfer-encoding" in names or int(length) > 0
        self._wanted = self._upgrade(request.headers)
        # What follows a CONNECT or an upgrade may be meant for a tunnel, even if that is refused:
        # it must not be read as requests.
        self.keep = (
            request.http_version >= b"1.1"
            and b"close" not in _tokens(request.headers, b"connection")
            and head.method != b"CONNECT"
            and not self._wanted
        )
        self.request_done = False
        self.response_begun = False
        self.response_done = False
        self._server = server
        self._client = h11.Connection(h11.CLIENT, MAX_HEAD)
        self.reader = _Reader(self._client)

    @property
    def reusable(self) -> bool:
        """Whether the client's connection may carry another request."""
        return self.keep and self._server.our_state is h11.DONE

    def bad_gateway(self, why: str) -> tuple[int, str]:
        """Return the status and the message for a failure of the target."""
        return 502, f"{self.host.decode(errors='replace')}: {why}"

    def send_head(self, request: h11.Request, hop: Hop[P]) -> bytes:
        """Return the head of the request for the target."""
        headers = [pair for pair in _end_to_end(request.headers) if pair[0].lower() != b"host"]
        if self.version < b"1.1":
            headers = [pair for pair in headers if pair[0].lower() != b"expect"]
        headers.insert(0, (b"Host", hop.host))
        headers.append((b"Via", b"%s %s" % (self.version, _VIA)))
        if self._wanted:
            headers += [(b"Connection", b"Upgrade"), (b"Upgrade", self._wanted)]
        else:
            headers.append((b"Connection", b"close"))
        sent = h11.Request(method=self.head.method, target=b"/", headers=headers)
        data = self._client.send(sent)
        assert data is not None
        return data.replace(b" / ", b" %s " % hop.target, 1)

    def send_data(self, data: bytes) -> bytes:
        """Return a part of the request's body for the target."""
        return self._client.send(h11.Data(data)) or b""

    def send_end(self, event: h11.EndOfMessage) -> bytes:
        """Return the end of the request for the target."""
        return self._client.send(h11.EndOfMessage(headers=_trailers(event.headers))) or b""

    def pass_informational(self, event: h11.InformationalResponse) -> bytes:
        """Return a 1xx response for the client."""
        headers = [
            pair
            for pair in _end_to_end(event.headers)
            if pair[0].lower() not in (b"content-length", b"transfer-encoding")
        ]
        if event.status_code == 101:
            headers += [
                (b"Connection", b"Upgrade"),
                *((b"Upgrade", value) for name, value in event.headers if name == b"upgrade"),
            ]
        passed = h11.InformationalResponse(
            status_code=event.status_code, reason=event.reason, headers=headers
        )
        return self._server.send(passed) or b""

    def pass_head(self, event: h11.Response, *, last: bool) -> bytes:
        """Return the head of the response for the client."""
        _check(event)
        self.response_begun = True
        status = event.status_code
        dropped = set()
        if status == 204:
            dropped = {b"content-length", b"transfer-encoding"}
        elif status == 304 or self.head.method == b"HEAD":
            dropped = {b"transfer-encoding"}
        if self.version < b"1.1":
            dropped.add(b"trailer")
        headers = [pair for pair in _end_to_end(event.headers) if pair[0].lower() not in dropped]
        headers.append((b"Via", b"%s %s" % (event.http_version, _VIA)))
        connection = []
        if status == 426:
            connection.append(b"Upgrade")
            headers += [(b"Upgrade", value) for name, value in event.headers if name == b"upgrade"]
        if last or not self.keep or not self.request_done:
            # A client whose body is refused early may leave it out or not: this ends the doubt.
            self.keep = False
            connection.append(b"close")
        if connection:
            headers.append((b"Connection", b", ".join(connection)))
        passed = h11.Response(status_code=status, reason=event.reason, headers=headers)
        return self._server.send(passed) or b""

    def pass_data(self, data: bytes) -> bytes:
        """Return a part of the response's body for the client."""
        return self._server.send(h11.Data(data)) or b""

    def pass_end(self, event: h11.EndOfMessage) -> bytes:
        """Return the end of the response for the client."""
        trailers = _trailers(event.headers) if self.version >= b"1.1" else []
        return self._server.send(h11.EndOfMessage(headers=trailers)) or b""

    def _upgrade(self, headers: _Headers) -> bytes:
        """Return the protocols to which the client wants to switch.

        HTTP/2 is none of them: RFC 9113 has withdrawn h2c, whose settings are for one hop alone.
        """
        if self.version < b"1.1" or b"upgrade" not in _tokens(headers, b"connection"):
            return b""
        values = b",".join(value for name, value in headers if name == b"upgrade").split(b",")
        wanted = [value.strip() for value in values if value.strip().lower() not in (b"", b"h2c")]
        return b", ".join(wanted)


class _Reader:
    """Hands one peer's bytes to h11: first a head that is whole and in bounds, then the body."""

    def __init__(self, connection: h11.Connection, pending: bytearray | None = None) -> None:
        self.connection = connection
        self.pending = bytearray() if pending is None else pending
        """Bytes that h11 does not have yet."""
        self._searched = 0
        self._skipped = 0
        self._in_head = True
        self._first_line = b""
        self._ended = False

    def feed(self, data: bytes) -> None:
        """Take bytes."""
        if self._in_head:
            self.pending += data
            return
        self._flush()
        # h11 takes an empty chunk for the end of the connection.
        if data:
            self.connection.receive_data(data)

    def rest(self) -> bytearray:
        """Return the bytes behind the messages that were read, for the next reader."""
        self.pending[:0] = self.connection.trailing_data[0]
        return self.pending

    def target(self, request: h11.Request) -> bytes:
        """Return the target of a request as it was sent."""
        start = len(request.method) + 1
        return self._first_line[start : start + len(request.target)]

    def next_event(self, *, ended: bool = False) -> object:
        """Return h11's next event; `ended`: the peer has sent its end.

        Raises:
            HttpRefusal: a head is out of bounds or ambiguous.
            h11.RemoteProtocolError: it is not HTTP.
        """
        if self._in_head:
            if (head := self._cut()) is None:
                if ended:
                    raise HttpRefusal(400, "the connection was closed")
                return h11.NEED_DATA
            self.connection.receive_data(head)
            event = self.connection.next_event()
            informational = isinstance(event, h11.InformationalResponse)
            self._in_head = informational and event.status_code != 101  # type: ignore[union-attr]
            return event
        self._flush()
        if ended and not self._ended:
            self._ended = True
            self.connection.receive_data(b"")
        return self.connection.next_event()

    def _flush(self) -> None:
        if self.pending:
            self.connection.receive_data(bytes(self.pending))
            self.pending.clear()

    def _cut(self) -> bytes | None:
        """Take a whole head off the pending bytes; return None if it is not complete."""
        pending = self.pending
        if self._searched == 0:
            # RFC 9112, section 2.2: empty lines before a request are ignored.
            empty = len(pending) - len(pending.lstrip(b"\r\n"))
            del pending[:empty]
            self._skipped += empty
        if self._skipped > _EMPTY_LINES or (pending and pending[0] < 0x21):
            raise HttpRefusal(400, "not HTTP")
        found = _BLANK_LINE.search(pending, max(0, self._searched - 2))
        if (found.end() if found else len(pending)) > MAX_HEAD:
            raise HttpRefusal(431, f"the head is longer than {MAX_HEAD >> 10} KiB")
        if found is None:
            self._searched = len(pending)
            return None
        head = bytes(pending[: found.end()])
        del pending[: found.end()]
        self._searched = 0
        if head.count(b"\n") > MAX_HEADERS + 2:
            raise HttpRefusal(431, f"more than {MAX_HEADERS} headers")
        if _FOLD.search(head):
            raise HttpRefusal(400, "a folded header")
        lengths: list[bytes] = _LENGTH.findall(head)
        if len(lengths) > 1 or any(b"," in length for length in lengths):
            raise HttpRefusal(400, "more than one Content-Length")
        if self.connection.our_role is h11.CLIENT:
            return head
        self._first_line, newline, headers = head.partition(b"\n")
        return self._first_line.translate(_ASCII) + newline + headers


def _reason(error: Exception) -> str:
    """Return the text of an error without the bytes that h11 quotes."""
    return str(error).partition(": ")[0]


def _check(event: h11.Request | h11.Response) -> None:
    """Refuse a message that two readers may frame differently (RFC 9112, section 6.3)."""
    names = {name for name, _ in event.headers}
    if not event.http_version.startswith(b"1."):
        raise HttpRefusal(505, "neither HTTP/1.1 nor HTTP/1.0")
    chunked, sized = b"transfer-encoding" in names, b"content-length" in names
    if chunked and sized:
        raise HttpRefusal(400, "both Content-Length and Transfer-Encoding")
    if chunked and event.http_version < b"1.1":
        raise HttpRefusal(400, "Transfer-Encoding in HTTP/1.0")
    if not isinstance(event, h11.Request):
        return
    if event.method == b"CONNECT" and (
        chunked or dict(event.headers).get(b"content-length", b"0").strip(b"0")
    ):
        raise HttpRefusal(400, "CONNECT with a body")


class _Headers(Protocol):
    """h11's headers: pairs whose names are in lower case, or as they were sent."""

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]: ...
    def __len__(self) -> int: ...
    def raw_items(self) -> list[tuple[bytes, bytes]]: ...


def _tokens(headers: _Headers, name: bytes) -> set[bytes]:
    return {
        token.strip().lower()
        for found, value in headers
        if found == name
        for token in value.split(b",")
    }


def _end_to_end(headers: _Headers) -> list[tuple[bytes, bytes]]:
    """Return the headers that are not hop-by-hop."""
    dropped = _HOP_BY_HOP | (_tokens(headers, b"connection") - _NEVER_LISTED)
    return [
        (raw, value)
        for raw, value in headers.raw_items()
        if (name := raw.lower()) not in dropped and not name.startswith(b"proxy-")
    ]


def _trailers(headers: _Headers) -> list[tuple[bytes, bytes]]:
    if len(headers) > MAX_HEADERS:
        raise HttpRefusal(431, f"more than {MAX_HEADERS} trailers")
    return [pair for pair in _end_to_end(headers) if pair[0].lower() not in _NO_TRAILERS]
