"""Dials and lookups, with real sockets and a patched resolver."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from agent import dial
from agent.dial import DialError, Lookups, dial_tcp, literal
from agent.udp import dial_udp
from krelay.mux.descriptors import open_files
from krelay.wire.errors import ErrorCode
from tests import rig

TCP = socket.SOCK_STREAM


class Connected(asyncio.Protocol):
    """Waits for its connection, and for the first byte of the target."""

    def __init__(self) -> None:
        self.transport: asyncio.BaseTransport | None = None
        self.greeted = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.greeted.set()

    async def close(self) -> None:
        """Close the connection once the target has accepted it."""
        assert self.transport is not None
        await self.greeted.wait()
        self.transport.close()
        await asyncio.sleep(0)


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send a byte, then read until the end."""
    writer.write(b"x")
    await rig.swallow(reader, writer)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the resolver answer with these addresses, or raise this error."""

    def answer(*addresses: str, error: Exception | None = None) -> None:
        def getaddrinfo(host: str, port: int | None, *_: object, **__: object) -> list[object]:
            if error is not None:
                raise error
            families = [socket.AF_INET6 if ":" in a else socket.AF_INET for a in addresses]
            return [(f, TCP, 6, "", (a, port)) for f, a in zip(families, addresses, strict=True)]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return answer


async def failing(host: str, port: int, timeout: float = 5.0) -> DialError:
    with pytest.raises(DialError) as caught:
        await dial_tcp(host, port, timeout, Connected)
    return caught.value


# -- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "family"),
    [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6), ("fe80::1%lo", socket.AF_INET6)],
)
async def test_an_address_needs_no_lookup(
    host: str, family: int, names: Callable[..., None]
) -> None:
    names(error=AssertionError("asked"))
    assert await Lookups().find(host, None, 5.0) == [(family, host)]


async def test_a_name_resolves_to_its_addresses_in_order(names: Callable[..., None]) -> None:
    names("::1", "127.0.0.1")
    expected = [(socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1")]
    assert await Lookups().find("both.test", None, 5.0) == expected


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (socket.gaierror(socket.EAI_NONAME, "not known"), ErrorCode.NO_SUCH_HOST),
        (socket.gaierror(socket.EAI_FAIL, "failure"), ErrorCode.NO_SUCH_HOST),
        (socket.gaierror(socket.EAI_AGAIN, "try again"), ErrorCode.RESOLVE_TIMEOUT),
        (UnicodeError("label too long"), ErrorCode.NO_SUCH_HOST),
    ],
)
async def test_a_failed_lookup_is_a_dial_error(
    error: Exception, code: ErrorCode, names: Callable[..., None]
) -> None:
    names(error=error)
    failure = await failing("nowhere.test", 80)
    assert failure.code == code
    assert str(failure).startswith("nowhere.test: ")


async def test_a_name_that_cannot_be_encoded_is_a_dial_error() -> None:
    assert (await failing("x" * 200, 80)).code == ErrorCode.NO_SUCH_HOST


async def test_a_resolver_that_does_not_answer_is_a_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait())
    try:
        tcp = await failing("slow.test", 80, 0.02)
        with pytest.raises(DialError) as udp:
            await dial_udp("slow.test", 80, 0.02, lambda data: None, lambda: None)
    finally:
        answered.set()
    assert tcp.code == udp.value.code == ErrorCode.RESOLVE_TIMEOUT
    assert str(tcp) == "resolving slow.test took over 0.02 s"


# -- TCP ---------------------------------------------------------------------------------------


async def test_a_dial_returns_a_connected_protocol() -> None:
    async with rig.tcp_target(greet) as port:
        connected = await dial_tcp(rig.HOST, port, 5.0, Connected)
        await connected.close()


async def test_a_dial_of_a_closed_port_is_refused() -> None:
    port = rig.closed_port()
    failure = await failing(rig.HOST, port)
    assert failure.code == ErrorCode.REFUSED
    assert str(failure) == f"127.0.0.1:{port}: Connection refused"


async def test_a_port_that_does_not_answer_is_a_connect_timeout() -> None:
    with rig.silent() as port:
        assert (await failing(rig.HOST, port, 0.05)).code == ErrorCode.CONNECT_TIMEOUT


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EHOSTUNREACH, ErrorCode.UNREACHABLE),
        (errno.ENETUNREACH, ErrorCode.UNREACHABLE),
        (errno.EADDRNOTAVAIL, ErrorCode.UNREACHABLE),
        (errno.ECONNRESET, ErrorCode.REFUSED),
        (errno.EMFILE, ErrorCode.DIAL_FAILED),
    ],
)
async def test_errors_of_the_kernel_have_codes(
    number: int, code: ErrorCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "the kernel says no")

    monkeypatch.setattr(dial, "Attempt", refuse)
    monkeypatch.setattr("agent.udp.DatagramEndpoint", refuse)
    tcp = await failing(rig.HOST, 80)
    with pytest.raises(DialError) as udp:
        await dial_udp(rig.HOST, 80, 5.0, lambda data: None, lambda: None)
    assert tcp.code == udp.value.code == code
    assert str(tcp) == "127.0.0.1:80: the kernel says no"


async def test_the_kernel_s_own_timeout_is_a_connect_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def give_up(*_: object) -> None:
        raise OSError(errno.ETIMEDOUT, "the kernel gives up")

    monkeypatch.setattr(dial, "Attempt", give_up)
    assert (await failing(rig.HOST, 80)).code == ErrorCode.CONNECT_TIMEOUT


async def test_a_near_target_is_connected_at_once() -> None:
    async with rig.tcp_target(greet) as port:
        attempt = dial.begin(rig.HOST, port)
        assert attempt is not None
        assert attempt.connected or sys.platform != "linux"
        (await attempt.finish()).close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says so at once")
def test_a_near_target_that_refuses_is_known_at_once() -> None:
    with pytest.raises(DialError, match="Connection refused") as refusal:
        dial.begin(rig.HOST, rig.closed_port())
    assert refusal.value.code == ErrorCode.REFUSED


async def test_a_silent_target_is_awaited() -> None:
    with rig.silent() as dead:
        attempt = dial.begin(rig.HOST, dead)
        assert attempt is not None
        assert not attempt.connected
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.0):
                await attempt.finish()
        assert attempt.sock.fileno() == -1


@pytest.mark.parametrize("host", ["web.test", "localhost"])
def test_a_host_that_is_no_address_is_not_begun(host: str) -> None:
    assert dial.begin(host, 80) is None


async def test_the_next_address_is_tried_after_one_that_refuses(names: Callable[..., None]) -> None:
    names("127.0.0.2", "127.0.0.1")
    async with rig.tcp_target(greet) as port:
        connected = await dial_tcp("both.test", port, 5.0, Connected)
        assert connected.transport is not None
        assert connected.transport.get_extra_info("peername") == ("127.0.0.1", port)
        await connected.close()


async def test_an_address_that_is_silent_leaves_time_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with rig.tcp_target(greet, "127.0.0.2") as port:
        with rig.silent() as dead:
            both: list[tuple[int, str]] = [(socket.AF_INET, f"127.0.0.{n}") for n in (1, 2)]
            loop = asyncio.get_running_loop()
            real = dial.Attempt

            def redirect(family: int, address: str, _: int) -> dial.Attempt:
                return real(family, address, dead if address == "127.0.0.1" else port)

            monkeypatch.setattr(dial, "Attempt", redirect)
            connected = await dial._first(both, port, loop.time() + 2.0, Connected, None)
        await connected.close()


async def test_the_error_of_the_last_address_is_raised(names: Callable[..., None]) -> None:
    names("127.0.0.2", "127.0.0.1")
    port = rig.closed_port()
    assert str(await failing("both.test", port)).startswith(f"127.0.0.1:{port}: ")


async def test_an_empty_lookup_is_no_such_host(names: Callable[..., None]) -> None:
    names()
    assert (await failing("none.test", 80)).code == ErrorCode.NO_SUCH_HOST


# -- UDP ---------------------------------------------------------------------------------------


async def test_datagrams_pass_in_both_directions() -> None:
    got: asyncio.Queue[bytes] = asyncio.Queue()
    async with rig.udp_echo() as port:
        sock = await dial_udp(rig.HOST, port, 5.0, got.put_nowait, lambda: None)
        for data in (b"x", b"", b"y" * 65_507):
            sock.send(data)
            assert await got.get() == data
        sock.close()
        sock.send(b"nobody takes this")
        sock.close()
        await asyncio.sleep(0)


async def test_icmp_reports_an_absent_target() -> None:
    gone = asyncio.Event()
    port = rig.closed_port(socket.SOCK_DGRAM)
    sock = await dial_udp(rig.HOST, port, 5.0, lambda data: None, gone.set)
    sock.send(b"x")
    await gone.wait()
    sock.close()
    await asyncio.sleep(0)


async def test_only_a_datagram_that_is_too_long_is_lost() -> None:
    got: asyncio.Queue[bytes] = asyncio.Queue()
    gone = asyncio.Event()
    async with rig.udp_echo() as port:
        sock = await dial_udp(rig.HOST, port, 5.0, got.put_nowait, gone.set)
        sock.send(bytes(65_536))
        sock.send(b"x")
        assert await got.get() == b"x"
        assert not gone.is_set()
        sock.close()
        await asyncio.sleep(0)


async def test_a_socket_without_ipv6_is_a_dial_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "no IPv6")

    monkeypatch.setattr("agent.udp.socket.socket", none)
    with pytest.raises(DialError, match="no IPv6"):
        await dial_udp("::1", 80, 5.0, lambda data: None, lambda: None)


# -- descriptors -------------------------------------------------------------------------------


async def test_a_dial_leaves_the_last_descriptors_to_tunnels() -> None:
    used, (soft, hard) = open_files(), resource.getrlimit(resource.RLIMIT_NOFILE)
    assert used is not None
    async with rig.tcp_target(greet) as port:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 2, hard))
        try:
            tcp = await failing(rig.HOST, port)
            with pytest.raises(DialError) as udp:
                await dial_udp(rig.HOST, port, 5.0, lambda data: None, lambda: None)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert tcp.code == udp.value.code == ErrorCode.LIMIT
        assert str(tcp) == "the agent has no file descriptor to spare"
        connected = await dial_tcp(rig.HOST, port, 5.0, Connected)
        await connected.close()


class Resolver:
    """Names that begin with `slow` have no answer until `answer` is set."""

    def __init__(self) -> None:
        self.answer = threading.Event()
        self.asked: list[str] = []

    def getaddrinfo(self, host: str, *_: object, **__: object) -> list[object]:
        self.asked.append(host)
        if host.startswith("slow"):
            self.answer.wait()
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", 0))]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    made = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", made.getaddrinfo)
    yield made
    made.answer.set()


async def failed_lookup(lookups: Lookups, host: str, client: object, timeout: float) -> DialError:
    with pytest.raises(DialError) as caught:
        await lookups.find(host, client, timeout)
    return caught.value


async def slow(lookups: Lookups, names: list[str], client: object, resolver: Resolver) -> None:
    """Abandon look-ups; each that has a thread keeps it."""
    tasks = [asyncio.create_task(failed_lookup(lookups, name, client, 60.0)) for name in names]
    started = min(lookups.running + len(names), lookups._limit)
    await asyncio.sleep(0)
    await rig.until(lambda: len(resolver.asked) >= min(lookups.running, started))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "app.localhost"])
async def test_names_of_this_machine_need_no_lookup(host: str, resolver: Resolver) -> None:
    found = await Lookups(0).find(host, None, 1.0)
    assert found == [(socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1")]
    assert literal("localhost.test") is None
    assert resolver.asked == []


async def test_slow_names_of_one_client_leave_threads_for_itself_and_for_others(
    resolver: Resolver,
) -> None:
    lookups, one, other = Lookups(256), object(), object()
    await slow(lookups, [f"slow{n}" for n in range(1_000)], one, resolver)
    assert lookups.running == 128
    assert await lookups.find("web", other, 60.0) == [(socket.AF_INET, "192.0.2.7")]


async def test_sixty_four_slow_names_do_not_hold_up_their_own_client(resolver: Resolver) -> None:
    lookups, client = Lookups(256), object()
    await slow(lookups, [f"slow{n}" for n in range(64)], client, resolver)
    assert lookups.running == 64
    assert await lookups.find("web", client, 60.0) == [(socket.AF_INET, "192.0.2.7")]


async def test_a_dead_domain_takes_only_its_share_of_threads(resolver: Resolver) -> None:
    lookups, client = Lookups(256), object()
    await slow(lookups, [f"slow{n}.dead.test" for n in range(500)], client, resolver)
    assert lookups.running == 32
    assert await lookups.find("web.shop.svc", client, 60.0)
    failure = await failed_lookup(lookups, "slow.dead.test", client, 0.01)
    assert failure.code is ErrorCode.RESOLVE_TIMEOUT
    assert str(failure) == (
        "resolving slow.dead.test took over 0.01 s: the agent is waiting for 32 other names"
    )


async def test_returned_threads_serve_waiting_lookups(resolver: Resolver) -> None:
    lookups, client = Lookups(8), object()
    waiting = [
        asyncio.create_task(failed_lookup(lookups, f"slow{n}", client, 60.0)) for n in range(50)
    ]
    await rig.until(lambda: lookups.running == 4)
    resolver.answer.set()
    failures = await asyncio.gather(*waiting)
    assert {failure.code for failure in failures} == {ErrorCode.RESOLVE_TIMEOUT}
    assert len(resolver.asked) == 50
    assert (lookups.running, lookups._known, lookups._waiting) == (0, {}, {})


async def test_a_second_lookup_of_a_name_joins_the_first(resolver: Resolver) -> None:
    lookups, client = Lookups(8), object()
    for _ in range(3):
        await failed_lookup(lookups, "slow.test", client, 0.01)
    assert (lookups.running, resolver.asked) == (1, ["slow.test"])


async def test_a_thread_that_cannot_start_fails_one_lookup(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    lookups = Lookups()
    failure = await failed_lookup(lookups, "web.test", None, 60.0)
    assert failure.code is ErrorCode.LIMIT
    assert lookups.running == 0
