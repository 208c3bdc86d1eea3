"""A probe through a whole data path, against targets that answer well, badly or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

import pytest

from krelay.datapath import probe as module
from krelay.datapath.probe import NoRouteError, ProbeError, probe
from krelay.model import Check, CheckKind, Protocol
from krelay.wire.errors import ErrorCode
from krelay.wire.session import Limits
from tests import rig

DIAL = Check()
HTTP = Check(CheckKind.HTTP, path="/healthz")
DNS = Check(CheckKind.DNS, name="www.example.com.")


async def fails(path: rig.Path, check: Check, port: int) -> ProbeError:
    """The error of a probe, which leaves nothing behind."""
    protocol = Protocol.UDP if check.kind is CheckKind.DNS else Protocol.TCP
    with pytest.raises(ProbeError) as caught:
        await probe(check, path.route(port, protocol))
    await rig.until(lambda: path.streams == (0, 0))
    return caught.value


def answering(answer: bytes, asked: list[bytes] | None = None) -> rig.Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if asked is not None:
            asked.append(head)
        writer.write(answer)
        await writer.drain()

    return serve


# -- dial --------------------------------------------------------------------------------------


async def test_a_dial_reaches_the_target_and_ends_in_good_order() -> None:
    """A server that logs its errors has none to log, every ten seconds."""
    heard = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 welcome\r\n")
        assert await reader.read() == b""
        heard.set()

    async with rig.path() as path, rig.tcp_target(serve) as target:
        await probe(DIAL, path.route(target))
        await heard.wait()
        await rig.until(lambda: path.streams == (0, 0))


async def test_a_target_that_does_not_end_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        with contextlib.suppress(ConnectionError):
            while not cut.done():
                writer.write(b"still here")
                await writer.drain()
                await asyncio.sleep(0.01)
        cut.set_result(True)

    monkeypatch.setattr(module, "CLOSE_TIMEOUT", 0.1)
    async with rig.path() as path, rig.tcp_target(serve) as target:
        await probe(DIAL, path.route(target))
        assert path.streams[0] == 1  # the verdict did not wait for that
        assert await cut
        await rig.until(lambda: path.streams == (0, 0))


async def test_a_dial_that_is_refused_has_the_agents_answer() -> None:
    async with rig.path() as path:
        port = rig.closed_port()
        error = await fails(path, DIAL, port)
        assert error.code is ErrorCode.REFUSED
        assert str(error).startswith(f"127.0.0.1:{port}: ")


async def test_a_dial_without_an_answer_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with rig.silent() as port:
        async with rig.path(connect_timeout=0.05) as path:
            assert (await fails(path, DIAL, port)).code is ErrorCode.CONNECT_TIMEOUT
        monkeypatch.setattr(module, "DIAL_DEADLINE", 0.05)
        async with rig.path() as path:
            error = await fails(path, DIAL, port)
            assert (str(error), error.code) == ("the agent gave no answer within 0.05 s", None)


async def test_a_route_without_an_endpoint_or_a_tunnel_is_no_failure() -> None:
    async with rig.path() as path:
        with pytest.raises(NoRouteError):
            await probe(DIAL, path.route(None))
        path.link.cut(blocked=True)
        await rig.until(lambda: path.pool.pick() is None)
        with pytest.raises(NoRouteError):
            await probe(DIAL, path.route(1))


async def test_a_probe_on_a_full_session_fails() -> None:
    async with rig.path() as path:
        connection = rig.connection(path.pool)
        connection.session.limits = Limits(streams=0)
        assert (await fails(path, DIAL, 1)).code is ErrorCode.LIMIT


async def test_a_probe_on_a_session_that_is_lost_fails() -> None:
    with rig.silent() as port:
        await _lost_meanwhile(port)


async def _lost_meanwhile(port: int) -> None:
    async with rig.path() as path:
        async with asyncio.TaskGroup() as tasks:
            probing = tasks.create_task(fails(path, DIAL, port))
            await rig.until(lambda: path.streams[0] == 1)
            carrier = path.pool.pick()
            assert carrier is not None
            carrier.close(ErrorCode.RESET)
        assert str(probing.result()) == "the connection was reset"


# -- HTTP --------------------------------------------------------------------------------------


async def test_an_http_probe_sends_the_configured_request() -> None:
    asked: list[bytes] = []
    answer = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"
    async with rig.path() as path, rig.tcp_target(answering(answer, asked)) as target:
        check = Check(CheckKind.HTTP, "HEAD", "/ready?full=1", 204)
        await probe(check, path.route(target))
        (head,) = asked
        assert head.startswith(b"HEAD /ready?full=1 HTTP/1.1\r\n")
        assert f"\r\nHost: 127.0.0.1:{target}\r\n".encode() in head
        assert b"\r\nConnection: close\r\n" in head
        await rig.until(lambda: path.streams == (0, 0))


@pytest.mark.parametrize(
    ("answer", "status", "message"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\n", None, None),
        (b"HTTP/1.1 302 Found\r\nLocation: /x\r\n\r\n", None, None),
        (b"HTTP/1.1 503 No\r\n\r\n", 503, None),
        (b"HTTP/1.1 503 No\r\n\r\n", None, "GET /healthz -> 503, expected 200 to 399"),
        (b"HTTP/1.1 204 No\r\n\r\n", 200, "GET /healthz -> 204, expected 200"),
        (b"SSH-2.0-x\r\n\r\n", None, "the answer to GET /healthz is not HTTP"),
        (b"", None, "^the connection was closed before an answer to GET /healthz$"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", None, "^the connection was closed before an answer"),
        (b"HTTP/1.1 200 OK\r\nX", None, "the answer to GET /healthz is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1 << 17), None, "longer than 64 KiB|not HTTP"),
    ],
)
async def test_an_http_probe_judges_the_status(
    answer: bytes, status: int | None, message: str | None
) -> None:
    check = Check(CheckKind.HTTP, path="/healthz", status=status)
    async with rig.path() as path, rig.tcp_target(answering(answer)) as target:
        if message is None:
            await probe(check, path.route(target))
        else:
            with pytest.raises(ProbeError, match=message):
                await probe(check, path.route(target))
        await rig.until(lambda: path.streams == (0, 0))


async def test_an_http_probe_without_an_answer_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HTTP_DEADLINE", 0.05)
    async with rig.path() as path, rig.tcp_target(rig.hold) as target:
        error = await fails(path, HTTP, target)
        assert str(error) == "no answer to GET /healthz within 0.05 s"


async def test_an_http_probe_that_is_reset_fails() -> None:
    async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        rig.rst(writer)

    async with rig.path() as path, rig.tcp_target(slam) as target:
        assert str(await fails(path, HTTP, target)) == "the connection was reset"


# -- DNS ---------------------------------------------------------------------------------------


async def serve_dns(
    path: rig.Path, answer: Callable[[bytes, int], list[bytes]], queries: list[bytes]
) -> None:
    """Probe a server that answers each query, of which it is the n-th, like this."""
    loop = asyncio.get_running_loop()
    async with rig.udp_socket() as sock:

        def serve() -> None:
            query, address = sock.recvfrom(1 << 16)
            queries.append(query)
            for data in answer(query, len(queries)):
                sock.sendto(data, address)

        loop.add_reader(sock, serve)
        try:
            await probe(DNS, path.route(sock.getsockname()[1], Protocol.UDP))
        finally:
            loop.remove_reader(sock)


async def test_a_dns_probe_takes_any_answer() -> None:
    queries: list[bytes] = []
    async with rig.path() as path:
        # What is no answer, or another query's, is passed over.
        await serve_dns(
            path,
            lambda q, n: [q, b"", b"xx\x80", q[:2] + b"\x81\x83" + q[4:]],
            queries,
        )
        await rig.until(lambda: path.streams == (0, 0))
    (query,) = queries
    assert query[2:] == (b"\1\0\0\1\0\0\0\0\0\0" + b"\3www\7example\3com\0" + b"\0\1\0\1")


async def test_a_lost_dns_query_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DNS_WAITS", (0.02, 5.0))
    queries: list[bytes] = []
    async with rig.path() as path:
        await serve_dns(path, lambda q, n: [q[:2] + b"\x81\x80"] if n > 1 else [], queries)
    assert len(queries) == 2


async def test_a_dns_probe_without_an_answer_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DNS_WAITS", (0.01, 0.02))
    async with rig.path() as path, rig.udp_socket() as silent:
        error = await fails(path, DNS, silent.getsockname()[1])
        assert str(error) == "no answer to a DNS query for www.example.com. within 0.03 s"


async def test_a_dns_probe_of_a_closed_port_fails() -> None:
    async with rig.path() as path:
        error = await fails(path, DNS, rig.closed_port(socket.SOCK_DGRAM))
        assert error.code is ErrorCode.REFUSED
