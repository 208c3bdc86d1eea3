"""UDP listener: first stage of the data path for datagrams; one socket, a flow for each client."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import OrderedDict, deque
from typing import Any

from krelay.datapath.bind import bind
from krelay.datapath.opening import open_now, open_parked
from krelay.datapath.route import Route
from krelay.model import Protocol
from krelay.mux.stream import MuxStream
from krelay.wire.errors import ErrorCode, ProtocolError
from krelay.wire.frames import Buffer

logger = logging.getLogger("krelay.listener")

IDLE = 110.0
MAX_FLOWS = 1_024
_EARLY_DATAGRAMS = 16
_SEND_BACKLOG = 1 << 20
_RECEIVE_BUFFER = 1 << 20

Address = tuple[Any, ...]


class UdpListener:
    """A UDP forward's local end. Flows are bounded: the least recently used makes room."""

    def __init__(self, name: str, route: Route, tasks: asyncio.TaskGroup, *, park: float) -> None:
        self.name = name
        self.route = route
        self.park = park
        self.tasks = tasks
        self.addresses: list[tuple[str, int]] = []
        self._sockets: list[_LocalSocket] = []

    @property
    def flows(self) -> int:
        """How many clients have a flow now."""
        return sum(len(sock.flows) for sock in self._sockets)

    async def open(self, address: str, port: int) -> None:
        """Bind and receive.

        Raises:
            ListenError: the address cannot be bound.
        """
        loop = asyncio.get_running_loop()
        for sock in bind(address, port, socket.SOCK_DGRAM):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            self.addresses.append(sock.getsockname()[:2])
            _, protocol = await loop.create_datagram_endpoint(lambda: _LocalSocket(self), sock=sock)
            self._sockets.append(protocol)

    def close(self) -> None:
        """End all flows and free the sockets."""
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()

    async def drain(self, timeout: float) -> None:
        """Datagrams wait for nobody: the same as `close`."""
        self.close()

    def cut(self) -> None:
        """The same as `close`."""
        self.close()


class _LocalSocket(asyncio.DatagramProtocol):
    """One bound socket and its flows by client address, the least recently used first."""

    def __init__(self, listener: UdpListener) -> None:
        self.listener = listener
        self.flows: OrderedDict[Address, Flow] = OrderedDict()
        self.loop = asyncio.get_running_loop()
        # A DatagramTransport; typeshed does not know that it tells its buffer's size.
        self.transport: Any = None
        self._sweeper: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Address) -> None:
        flow = self.flows.get(addr)
        if flow is None:
            if len(self.flows) >= MAX_FLOWS:
                _, oldest = self.flows.popitem(last=False)
                oldest.close(ErrorCode.LIMIT)
            flow = self.flows[addr] = Flow(self, addr)
            if self._sweeper is None:
                self._sweeper = self.loop.call_later(IDLE, self._sweep)
        else:
            self.flows.move_to_end(addr)
        flow.send(data)

    def error_received(self, exc: Exception) -> None:
        # ICMP from a client that has gone; which one, the kernel does not say. It will expire.
        logger.debug("%s: %s", self.listener.name, exc)

    def reply(self, data: Buffer, addr: Address) -> None:
        """Answer the client that asked; dropped when the socket takes no more."""
        if self.transport.get_write_buffer_size() < _SEND_BACKLOG:
            self.transport.sendto(data, addr)

    def close(self) -> None:
        """End every flow."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for flow in list(self.flows.values()):
            flow.close(ErrorCode.CANCELLED)
        self.flows.clear()
        self.transport.abort()

    def _sweep(self) -> None:
        now = self.loop.time()
        self._sweeper = None
        while self.flows:
            addr, flow = next(iter(self.flows.items()))
            if now - flow.active_at < IDLE:
                self._sweeper = self.loop.call_at(flow.active_at + IDLE, self._sweep)
                return
            del self.flows[addr]
            flow.close(ErrorCode.IDLE)


class Flow:
    """One client address and its stream. It drops rather than waits."""

    def __init__(self, sock: _LocalSocket, addr: Address) -> None:
        self._socket = sock
        self._addr = addr
        self._stream: MuxStream | None = None
        self._early: deque[bytes] = deque(maxlen=_EARLY_DATAGRAMS)
        self._opening: asyncio.Task[None] | None = None
        self.active_at = sock.loop.time()

    def send(self, data: bytes) -> None:
        """A datagram from the client."""
        self.active_at = self._socket.loop.time()
        if self._stream is None:
            self._early.append(data)
            self._open()
        else:
            self._stream.datagram(data)

    def close(self, code: ErrorCode) -> None:
        """End the flow at both ends."""
        if self._opening is not None:
            self._opening.cancel()
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.reset(code)

    def on_datagram(self, data: Buffer) -> None:
        self.active_at = self._socket.loop.time()
        self._socket.flows.move_to_end(self._addr)
        self._socket.reply(data, self._addr)

    def on_refused(self, code: ErrorCode, message: str) -> None:
        listener = self._socket.listener
        logger.warning("%s: %s%s", listener.name, code.text, message and f": {message}")
        self._forget()

    def on_reset(self, code: ErrorCode) -> None:
        self._forget()

    def on_end(self) -> None:
        self._forget()

    def on_accepted(self) -> None:
        """Datagrams are on their way already."""

    def on_data(self, data: Buffer) -> None:
        """Stream bytes on a flow are nobody's: the window bounds them."""

    def on_writable(self) -> None:
        """Datagrams are dropped rather than held."""

    def _open(self) -> None:
        if self._opening is not None:
            return
        listener = self._socket.listener
        try:
            stream = open_now(listener.route, Protocol.UDP, self)
        except ProtocolError as exc:
            logger.warning("%s: %s", listener.name, exc)
            self._forget()
            return
        if stream is not None:
            self._begin(stream)
        else:
            self._opening = listener.tasks.create_task(self._open_later(), name=listener.name)

    async def _open_later(self) -> None:
        listener = self._socket.listener
        stream = await open_parked(listener.route, Protocol.UDP, self, listener.park)
        self._opening = None
        if stream is None:
            self._forget()
        else:
            self._begin(stream)

    def _begin(self, stream: MuxStream) -> None:
        self._stream = stream
        while self._early:
            stream.datagram(self._early.popleft())

    def _forget(self) -> None:
        self._stream = None
        if self._socket.flows.get(self._addr) is self:
            del self._socket.flows[self._addr]
