"""What krelay relies on in the transports of both engines, in the clear and in TLS."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import ssl
import struct
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from krelay.net import engine as engines
from krelay.net.dial import dial
from krelay.net.handshake_stream import HandshakeStream

pytestmark = pytest.mark.usefixtures("engine")

PKI = Path(__file__).parent.parent / "cluster" / "pki"
CHUNK = 256 << 10


class Watched:
    """What both kinds of protocol record."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.calls: list[str] = []
        self.lost: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._changed = asyncio.Event()

    def arrived(self, data: bytes | memoryview) -> None:
        self.data += data
        self._changed.set()

    def pause_writing(self) -> None:
        self.calls.append("pause")
        self._changed.set()

    def resume_writing(self) -> None:
        self.calls.append("resume")
        self._changed.set()

    def eof_received(self) -> bool:
        self.calls.append("eof")
        self._changed.set()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append("lost")
        self.lost.set_result(exc)
        self._changed.set()

    async def until(self, met: Callable[[], bool]) -> None:
        while not met():
            self._changed.clear()
            await self._changed.wait()


class Plain(Watched, asyncio.Protocol):
    """Receives bytes objects."""

    data_received = Watched.arrived


class Buffered(Watched, asyncio.BufferedProtocol):
    """Receives into its own buffer."""

    def __init__(self, size: int = 1 << 16) -> None:
        super().__init__()
        self._view = memoryview(bytearray(size))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        self.arrived(self._view[:nbytes])


class Link:
    """A connection: krelay's end, and the peer's socket, which blocks."""

    def __init__(self, transport: asyncio.Transport, peer: socket.socket) -> None:
        self.transport, self.peer = transport, peer

    async def at_peer(self, call: Callable[[socket.socket], Any]) -> Any:
        """Return what `call` does with the peer's socket, in a thread."""
        return await asyncio.to_thread(call, self.peer)


def receive(size: int) -> Callable[[socket.socket], bytes]:
    """Return a call that receives `size` bytes, or all until the end."""

    def call(sock: socket.socket) -> bytes:
        got = bytearray()
        while len(got) < size and (piece := sock.recv(1 << 20)):
            got += piece
        return bytes(got)

    return call


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=PKI / "ca.pem")
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


@pytest.fixture(params=["clear", "tls"])
async def link(request: pytest.FixtureRequest) -> AsyncIterator[Link]:
    """An open connection, whose bytes go to a HandshakeStream until a test sets its protocol."""
    async with connected(tls=request.param == "tls") as found:
        yield found


@contextlib.asynccontextmanager
async def connected(*, tls: bool) -> AsyncIterator[Link]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> socket.socket:
            peer, _ = listener.accept()
            peer.settimeout(30)
            if not tls:
                return peer
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(PKI / "server.pem", PKI / "server-key.pem")
            return context.wrap_socket(peer, server_side=True, suppress_ragged_eofs=False)

        async with asyncio.TaskGroup() as tasks:
            accepting = tasks.create_task(asyncio.to_thread(accept))
            transport, stream = await dial(HandshakeStream, *listener.getsockname())
            if tls:
                await stream.start_tls(client_context(), "localhost")
                transport = stream.transport
        with accepting.result() as peer:
            try:
                yield Link(transport, peer)
            finally:
                if not transport.is_closing():
                    transport.abort()
                # A connection that is aborted is closed within two turns of the loop.
                for _ in range(4):
                    await asyncio.sleep(0)


async def test_the_engine_makes_the_transport(engine: str, link: Link) -> None:
    assert type(link.transport).__module__.partition(".")[0] == engine


async def test_the_transport_knows_its_socket_and_addresses(link: Link) -> None:
    info = link.transport.get_extra_info
    assert info("peername") == link.peer.getsockname()
    assert info("sockname") == link.peer.getpeername()
    assert info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert info("nonsense", "default") == "default"
    assert isinstance(info("sslcontext"), ssl.SSLContext) == isinstance(link.peer, ssl.SSLSocket)


@pytest.mark.parametrize("kind", [Plain, Buffered])
async def test_bytes_arrive_whole_and_in_order(link: Link, kind: type[Plain | Buffered]) -> None:
    sent = os.urandom(3_000_000)
    protocol = kind()
    link.transport.set_protocol(protocol)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(link.at_peer(lambda peer: peer.sendall(sent)))
        await protocol.until(lambda: len(protocol.data) == len(sent))
    assert protocol.data == sent


async def test_a_protocol_may_be_replaced_while_bytes_arrive(link: Link) -> None:
    """Each byte reaches one protocol, of whichever kind. krelay replaces none within a callback."""
    sent = os.urandom(2_000_000)
    used: list[Plain | Buffered] = []

    def switch() -> None:
        used.append(Plain() if len(used) % 2 else Buffered())
        link.transport.set_protocol(used[-1])

    def total() -> bytes:
        return b"".join(bytes(protocol.data) for protocol in used)

    switch()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(link.at_peer(lambda peer: peer.sendall(sent)))
        while len(total()) < len(sent):
            await used[-1].until(lambda: bool(used[-1].data) or len(total()) == len(sent))
            switch()
    assert total() == sent
    assert len(used) > 2


async def test_a_paused_transport_reads_nothing_until_it_is_resumed(link: Link) -> None:
    protocol = Plain()
    link.transport.set_protocol(protocol)
    link.transport.pause_reading()
    link.transport.pause_reading()
    assert not link.transport.is_reading()
    await link.at_peer(lambda peer: peer.sendall(b"later"))
    for _ in range(5):
        await asyncio.sleep(0)
    assert protocol.data == b""
    link.transport.resume_reading()
    link.transport.resume_reading()
    assert link.transport.is_reading()
    await protocol.until(lambda: protocol.data == b"later")


@pytest.mark.parametrize("kind", [Plain, Buffered])
async def test_a_callback_may_pause_and_nothing_is_lost(
    link: Link, kind: type[Plain | Buffered]
) -> None:
    """As a relay does whose stream is slow: pause at each read, resume a turn later."""
    sent = os.urandom(2_000_000)
    loop = asyncio.get_running_loop()

    class Pausing(kind):  # type: ignore[misc, valid-type]
        paused = False

        def arrived(self, data: bytes | memoryview) -> None:
            assert not self.paused
            self.paused = True
            link.transport.pause_reading()
            loop.call_soon(self.resume)
            super().arrived(data)

        data_received = arrived

        def resume(self) -> None:
            self.paused = False
            link.transport.resume_reading()

    protocol = Pausing()
    link.transport.set_protocol(protocol)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(link.at_peer(lambda peer: peer.sendall(sent)))
        await protocol.until(lambda: len(protocol.data) == len(sent))
    assert protocol.data == sent


def counts_its_own_only(transport: asyncio.Transport) -> bool:
    """Whether the transport leaves out what waits in the transport below: asyncio's TLS does."""
    return type(transport).__module__ == "asyncio.sslproto"


@pytest.mark.parametrize("high", [0, 100_000])
async def test_a_slow_peer_pauses_the_writer_and_a_fast_one_resumes_it(
    link: Link, high: int
) -> None:
    if high == 0 and counts_its_own_only(link.transport):
        return  # Python 3.11.2 may never resume it; krelay sets no such limit for TLS
    protocol = Plain()
    link.transport.set_protocol(protocol)
    link.transport.set_write_buffer_limits(high=high)
    assert link.transport.get_write_buffer_limits() == (high // 4, high)
    sent = bytearray()
    while protocol.calls != ["pause"]:
        chunk = os.urandom(CHUNK)
        link.transport.write(chunk)
        sent += chunk
    # aiofastnet's TLS counts a piece twice while it passes it on, so it pauses a little early.
    assert link.transport.get_write_buffer_size() > 0 or counts_its_own_only(link.transport)
    assert await link.at_peer(receive(len(sent))) == sent
    await protocol.until(lambda: protocol.calls == ["pause", "resume"])
    assert link.transport.get_write_buffer_size() <= high // 4


async def test_limits_that_change_pause_and_resume_at_once(link: Link) -> None:
    protocol = Plain()
    link.transport.set_protocol(protocol)
    link.transport.set_write_buffer_limits(high=1 << 30)
    sent = bytearray()
    while len(sent) < 8_000_000:
        chunk = os.urandom(CHUNK)
        link.transport.write(chunk)
        sent += chunk
    assert protocol.calls == []
    link.transport.set_write_buffer_limits(high=0)
    if protocol.calls:  # asyncio's TLS looks at the next write
        assert protocol.calls == ["pause"]
    assert await link.at_peer(receive(len(sent))) == sent


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
async def test_written_buffers_of_every_kind_are_sent(
    link: Link, wrap: Callable[[bytes], Any]
) -> None:
    pieces = [os.urandom(size) for size in (1, 0, 5, 16_384, 300_000, 1_000_000)]
    for piece in pieces:
        link.transport.write(wrap(piece))
    link.transport.writelines([wrap(piece) for piece in pieces])
    sent = b"".join(pieces) * 2
    assert await link.at_peer(receive(len(sent))) == sent


async def test_close_sends_what_was_written(link: Link) -> None:
    protocol = Plain()
    link.transport.set_protocol(protocol)
    sent = os.urandom(4_000_000)
    link.transport.write(sent)
    assert link.transport.get_write_buffer_size() > 0 or counts_its_own_only(link.transport)
    link.transport.close()
    link.transport.close()
    assert link.transport.is_closing()
    received = await link.at_peer(receive(len(sent)))
    if isinstance(link.peer, ssl.SSLSocket):
        # As Go's TLS: close after the other's close_notify.
        assert await link.at_peer(lambda peer: peer.recv(1)) == b""
        await link.at_peer(lambda peer: cast(ssl.SSLSocket, peer).unwrap())
    assert received == sent
    assert await protocol.lost is None
    assert protocol.calls.count("lost") == 1


async def test_abort_drops_what_was_written_and_is_seen_at_once(link: Link) -> None:
    protocol = Plain()
    link.transport.set_protocol(protocol)
    link.transport.write(bytes(8_000_000))
    link.transport.abort()
    assert link.transport.is_closing()
    link.transport.abort()
    assert await protocol.lost is None
    link.transport.write(b"x")
    link.transport.close()
    assert protocol.calls.count("lost") == 1


async def test_abort_with_linger_0_resets(link: Link) -> None:
    protocol = Plain()
    link.transport.set_protocol(protocol)
    sock = link.transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.transport.abort()
    await protocol.lost
    with socket.socket(fileno=link.peer.detach()) as bare, pytest.raises(ConnectionResetError):
        await asyncio.to_thread(bare.recv, 1)


async def test_a_reset_is_the_reason_of_the_loss(link: Link) -> None:
    protocol = Plain()
    link.transport.set_protocol(protocol)
    link.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    socket.socket.close(link.peer)
    assert isinstance(await protocol.lost, ConnectionResetError)
    assert protocol.calls == ["lost"]


async def test_each_direction_ends_by_itself() -> None:
    async with connected(tls=False) as link:
        protocol = Plain()
        link.transport.set_protocol(protocol)
        sent = os.urandom(3_000_000)
        assert link.transport.can_write_eof()
        link.transport.write(sent)
        link.transport.write_eof()
        link.transport.write_eof()
        with pytest.raises(RuntimeError):
            link.transport.write(b"more")
        assert await link.at_peer(receive(len(sent) + 1)) == sent
        await link.at_peer(lambda peer: peer.sendall(b"answer"))
        await protocol.until(lambda: protocol.data == b"answer")
        await link.at_peer(lambda peer: peer.shutdown(socket.SHUT_WR))
        await protocol.until(lambda: protocol.calls == ["eof"])
        assert not link.transport.is_closing()
        link.transport.close()
        assert await protocol.lost is None


async def test_the_peer_s_end_leaves_the_other_direction_open() -> None:
    async with connected(tls=False) as link:
        protocol = Plain()
        link.transport.set_protocol(protocol)
        await link.at_peer(lambda peer: peer.sendall(b"last"))
        await link.at_peer(lambda peer: peer.shutdown(socket.SHUT_WR))
        await protocol.until(lambda: protocol.calls == ["eof"])
        assert protocol.data == b"last"
        sent = os.urandom(1_000_000)
        link.transport.write(sent)
        assert await link.at_peer(receive(len(sent))) == sent


async def test_tls_has_no_half_close() -> None:
    async with connected(tls=True) as link:
        assert not link.transport.can_write_eof()
        with pytest.raises(NotImplementedError):
            link.transport.write_eof()


@pytest.mark.parametrize("notify", [True, False])
async def test_the_end_of_tls_comes_after_the_last_byte(notify: bool) -> None:
    """By close_notify, or by the end of the connection alone, as some servers do."""
    async with connected(tls=True) as link:
        protocol = Plain()
        link.transport.set_protocol(protocol)
        sent = os.urandom(1_000_000)

        def end(peer: socket.socket) -> None:
            peer.sendall(sent)
            if notify:
                with contextlib.suppress(OSError):
                    cast(ssl.SSLSocket, peer).unwrap()
            else:
                socket.socket.shutdown(peer, socket.SHUT_WR)

        await link.at_peer(end)
        assert await protocol.lost is None
        assert protocol.data == sent
        assert protocol.calls in (["eof", "lost"], ["lost"])


async def test_a_record_cut_in_two_by_the_end_is_no_data() -> None:
    async with connected(tls=True) as link:
        protocol = Plain()
        link.transport.set_protocol(protocol)
        bare = socket.socket(fileno=link.peer.detach())
        with bare:
            bare.sendall(b"\x17\x03\x03\x40\x00" + bytes(100))
            bare.shutdown(socket.SHUT_WR)
            await protocol.lost
        assert protocol.data == b""


async def test_bytes_that_are_no_tls_end_the_connection_with_an_ssl_error() -> None:
    async with connected(tls=True) as link:
        protocol = Plain()
        link.transport.set_protocol(protocol)
        with socket.socket(fileno=link.peer.detach()) as bare:
            bare.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            assert isinstance(await protocol.lost, ssl.SSLError)
        assert protocol.calls == ["lost"]


@pytest.mark.parametrize("error", [ValueError("broken"), OSError("broken")])
async def test_an_error_in_a_callback_ends_the_connection(link: Link, error: Exception) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

    class Broken(Plain):
        def data_received(self, data: bytes | memoryview) -> None:
            raise error

    protocol = Broken()
    link.transport.set_protocol(protocol)
    await link.at_peer(lambda peer: peer.sendall(b"x"))
    assert await protocol.lost is error
    assert protocol.calls == ["lost"]
    assert [context["exception"] for context in told] == [error] * isinstance(error, ValueError)


async def test_a_protocol_may_pause_reading_as_soon_as_it_is_connected(engine: str) -> None:
    if engine == "asyncio" and sys.version_info < (3, 11, 4):
        return  # it reads on

    class Pausing(Plain):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.calls.append("made")
            cast(asyncio.Transport, transport).pause_reading()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with asyncio.TaskGroup() as tasks:
            accepting = tasks.create_task(asyncio.to_thread(listener.accept))
            transport, protocol = await dial(Pausing, *listener.getsockname())
        with accepting.result()[0] as peer:
            fd = transport.get_extra_info("socket").fileno()
            assert fd not in watched()
            await asyncio.to_thread(peer.sendall, b"later")
            await asyncio.to_thread(select.select, [fd], [], [], 30)
            assert protocol.data == b""
            transport.resume_reading()
            await protocol.until(lambda: protocol.data == b"later")
            transport.abort()
            await protocol.lost
    assert protocol.calls == ["made", "lost"]


async def test_a_protocol_may_close_as_soon_as_it_is_connected() -> None:
    """Its descriptor is watched no more: the next connection gets the same number."""

    class Closing(Plain):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.calls.append("made")
            cast(asyncio.Transport, transport).abort()

    before = watched()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(3):
            _, protocol = await dial(Closing, *listener.getsockname())
            assert await protocol.lost is None
            assert protocol.calls == ["made", "lost"]
            assert watched() == before


async def test_a_protocol_that_fails_at_once_is_closed(engine: str) -> None:
    class Failing(Plain):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            raise ValueError("broken")

    if engine == "asyncio":
        return  # it logs the error, and reads on
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(ValueError, match="broken"):
            await dial(Failing, *listener.getsockname())
        peer, _ = await asyncio.to_thread(listener.accept)
        with peer:
            assert await asyncio.to_thread(peer.recv, 1) == b""


def watched() -> set[int]:
    """The descriptors that the loop watches."""
    selector = cast(Any, asyncio.get_running_loop())._selector
    return {key.fd for key in selector.get_map().values()}


@pytest.mark.parametrize("turns", range(6))
async def test_a_cancelled_connection_is_closed(turns: int) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        async with asyncio.TaskGroup() as tasks:
            connecting = tasks.create_task(
                engines.create_connection(Plain, host, port, socket.AF_INET)
            )
            for _ in range(turns):
                await asyncio.sleep(0)
            connecting.cancel()
        if not connecting.cancelled():
            connecting.result()[0].abort()
        for _ in range(4):
            await asyncio.sleep(0)
        listener.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            peer, _ = listener.accept()
            with peer:
                assert await loop.sock_recv(peer, 1) == b""


@pytest.mark.parametrize("turns", range(6))
async def test_a_cancelled_handshake_ends_its_connection(turns: int) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        transport, protocol = await engines.create_connection(Plain, host, port, socket.AF_INET)
        peer, _ = listener.accept()
        peer.setblocking(False)
        with peer:
            async with asyncio.TaskGroup() as tasks:
                starting = tasks.create_task(
                    engines.start_tls(transport, protocol, client_context(), "localhost")
                )
                for _ in range(turns):
                    await asyncio.sleep(0)
                starting.cancel()
            transport.abort()
            with contextlib.suppress(ConnectionError):
                while await loop.sock_recv(peer, 1 << 16):
                    pass
            for _ in range(4):
                await asyncio.sleep(0)
            assert protocol.calls.count("lost") <= 1


async def test_no_loop_and_no_policy_is_changed(engine: str, link: Link) -> None:
    """krelay is a library, too: a program that uses it keeps asyncio's transports."""
    loop = asyncio.get_running_loop()
    assert type(asyncio.get_event_loop_policy()).__module__.startswith("asyncio.")
    assert {"create_connection", "start_tls", "connect_accepted_socket"}.isdisjoint(vars(loop))
