"""Malformed requests: each is answered or refused, and none gets text into the log."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from krelay.cli.output import LineFormatter
from krelay.state.error_codec import from_json
from krelay.status import connections
from tests import rig
from tests.status.serving import TOKEN, Service, service

EVIL = b"\x1b]0;owned\x07\x1b[31m%0a00:00:00%20forged%1b[2J"
HOST = b"Host: 127.0.0.1\r\n"


def request(
    target: bytes = b"/v1/status",
    *headers: bytes,
    method: bytes = b"GET",
    version: bytes = b"HTTP/1.1",
    host: bytes = HOST,
    body: bytes = b"",
) -> bytes:
    head = b"".join(header + b"\r\n" for header in headers)
    return method + b" " + target + b" " + version + b"\r\n" + host + head + b"\r\n" + body


ODD = {
    "origin": [
        request(b"/v1/status", b"Origin: " + value)
        for value in (b"http://[", b"http://[::1", b"", b"null", b"\xff\xfe", EVIL, b"//" * 2000)
    ],
    "host": [
        request(host=b"Host: " + value + b"\r\n")
        for value in (b"[", b"[::1", b"", b":", b"\xff", b"a" * 3000, b"127.0.0.1:x", b"%5b", EVIL)
    ]
    + [request(host=b""), request(host=HOST + HOST), request(host=b"", version=b"HTTP/1.0")],
    "target": [
        request(target)
        for target in (
            b"/" + EVIL.replace(b"\x1b", b"%1b").replace(b"\x07", b"%07"),
            b"/%",
            b"/%zz",
            b"/%ff%fe",
            b"/%00",
            b"/\xff\xfe",
            b"/" + b"a" * 5000,
            b"/" + b"a" * 20_000,
            b"*",
            b"",
            b"//",
            b"http://[/",
            b"http://evil.example/v1/status",
            b"/?token=%ff%00" + b"&a" * 500,
            b"/readyz?target=%1b%5b31m%0a&target=%ff",
            b"/v1/events?after=" + b"9" * 300,
            b"/v1/events?after=\xc2\xb2",
            b"/?" + b"%" * 100,
            b"/v1/plan/../status",
        )
    ],
    "method": [
        request(method=method)
        for method in (
            b"\x1b[31m",
            b"get",
            b"G" * 500,
            b"CONNECT",
            b"TRACE",
            b"PRI",
            b"",
            b"OPTIONS",
        )
    ]
    + [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", request(method=b"CONNECT", target=b"x:1")],
    "header": [
        request(b"/v1/status", header)
        for header in (
            b"A: " + b"a" * 20_000,
            b"A" * 20_000 + b": a",
            b"\x1b[31m: x",
            b"no colon",
            b": no name",
            b"A: a\r\n b",
            b"A: \x00",
            b"Cookie: =;=;\xff=\x1b;" + b"a=b;" * 500,
            b'Cookie: krelay-00000000="\\377"; $Version=x; a\x1b=b',
            b"Authorization: Bearer \xff\xfe",
            b"Authorization: " + EVIL,
            b"Accept: " + EVIL,
            b"Accept: \xff",
            b"Last-Event-ID: \xff",
            b"Range: bytes=x-",
            b"If-Modified-Since: \xff",
            b"Expect: \x1b[31m",
            b"Upgrade: websocket\r\nConnection: Upgrade",
            b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings",
            b"Content-Type: \xff; charset=\x1b",
            b"Connection: \xff",
        )
    ]
    + [request(b"/v1/status", *[b"A%d: a" % number for number in range(2000)])],
    "body": [
        request(b"/v1/echo", b"X-Krelay: 1", *headers, method=b"POST", body=body)
        for headers, body in (
            ([b"Content-Length: -1"], b""),
            ([b"Content-Length: x"], b""),
            ([b"Content-Length: 99999999999999999999999"], b""),
            ([b"Content-Length: 2", b"Content-Length: 3"], b"{}"),
            ([b"Content-Length: 2", b"Transfer-Encoding: chunked"], b"{}"),
            ([b"Transfer-Encoding: chunked"], b"zz\r\n"),
            ([b"Transfer-Encoding: chunked"], b"ffffffffffffffffff\r\n"),
            ([b"Transfer-Encoding: \x1b"], b"0\r\n\r\n"),
            ([b"Content-Length: 2", b"Content-Encoding: gzip"], b"{}"),
            ([b"Content-Length: 2", b"Content-Encoding: \x1b"], b"{}"),
            ([b"Content-Length: 3", b"Content-Type: application/json"], b"\xff\xfe{"),
            ([b"Content-Length: 60000"], b"[" * 60_000),
        )
    ],
    "nothing of HTTP": [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xaa" * 100,
        b"\r\n" * 50,
        b"\x00" * 100,
        EVIL + b"\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"GET",
        b"",
    ],
}


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send less than a whole request."""
    monkeypatch.setattr(connections, "PATIENCE", 0.05)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """The log as a terminal shows it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter(colour=False))
    handler.addFilter(lambda record: not record.getMessage().startswith("status: http://"))
    logging.getLogger().addHandler(handler)
    yield stream
    logging.getLogger().removeHandler(handler)


async def answer(made: Service, said: bytes) -> bytes:
    """Return the head of the answer to these bytes; b"" if there is none."""
    address = made.listening.addresses[0]
    reader, writer = await asyncio.open_connection(address.host, address.port)
    got = b""
    try:
        writer.write(said)
        got = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as exc:
        got = exc.partial
    except (ConnectionError, asyncio.LimitOverrunError):
        pass  # it is cut off
    finally:
        writer.transport.abort()
    return got


@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize("what", ODD)
async def test_no_malformed_request_logs_a_traceback(
    what: str, token: str | None, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service(token) as made:
        for said in ODD[what]:
            if token and b"Authorization" not in said:
                shown = said.replace(
                    b"\r\n", b"\r\nAuthorization: Bearer %s\r\n" % TOKEN.encode(), 1
                )
            else:
                shown = said
            for sent in {said, shown}:
                got = await answer(made, sent)
                assert not got.startswith(b"HTTP/1.1 5"), (sent[:200], got)
        # nothing of the hostile bytes reaches the log
        assert log.getvalue() == ""
        monkeypatch.undo()  # a busy machine takes longer for a whole request, too
        assert (await answer(made, request(b"/healthz"))).startswith(b"HTTP/1.1 200")
        assert made.listening._connections is not None
        live = made.listening._connections.open
        await rig.until(lambda: not live)


@given(st.binary(max_size=300) | st.binary(max_size=60).map(lambda odd: request(b"/" + odd, odd)))
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_bytes_log_a_traceback(log: io.StringIO, said: bytes) -> None:
    async def ask() -> None:
        async with service() as made:
            assert not (await answer(made, said)).startswith(b"HTTP/1.1 5")

    asyncio.run(ask())
    assert log.getvalue() == ""


def test_an_error_of_any_shape_is_decoded() -> None:
    """Another version, or another program, may answer on the socket."""
    for found in ({}, {"message": 1}, {"message": "\x1b[31mx", "hint": "a\nb", "exitCode": 3}):
        error = from_json(found)
        assert error.message.isprintable()
        assert (error.hint or "").isprintable()
