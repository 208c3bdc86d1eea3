"""UDP listener: first stage of the data path for datagrams; a flow for each client address."""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from krelay.datapath.connector import Forwarding, StreamRequest
from krelay.datapath.metrics import BACKLOG, EARLY, KERNEL, UNROUTED, ForwardMetrics
from krelay.datapath.route import Route
from krelay.model import UDP_CLIENTS, Protocol, Target
from krelay.mux.datagrams import Address, DatagramEndpoint
from krelay.mux.stream import Stream
from krelay.net.bind import bind
from krelay.wire.errors import ErrorCode
from krelay.wire.frames import Buffer

IDLE = 110.0
"""Seconds without a datagram after which a flow ends."""
TFTP = 69
_EARLY_DATAGRAMS = 16
_RECEIVE_BUFFER = 4 << 20
"""Bytes to ask of the kernel for what the clients of a forward send while krelay is busy."""


@dataclass(eq=False, repr=False)
class UdpListener(Forwarding):
    """The local end of a UDP forward."""

    addresses: list[tuple[str, int]] = field(default_factory=list, init=False)
    _sockets: list[_LocalSocket] = field(default_factory=list, init=False)

    @property
    def live(self) -> int:
        """The number of flows."""
        return sum(len(sock.flows) for sock in self._sockets)

    max_flows: int = field(default=UDP_CLIENTS, init=False)
    """Clients that have a flow at each of the addresses; another one ends the quietest flow."""
    _full: bool = field(default=False, init=False)
    _warned: bool = field(default=False, init=False)

    def update(self, target: Target, open_timeout: float) -> None:
        super().update(target, open_timeout)
        self.max_flows = target.udp_clients
        self._full = False

    def evicted(self) -> None:
        """Log the first time that a flow makes room for another."""
        if not self._full:
            self._full = True
            self.log.warning(
                "more than %d UDP clients at once: the flows that are quiet for the longest end;"
                " set `udpClients` of the target to allow more",
                self.max_flows,
            )

    def opened(self) -> None:
        """Log the first time that a flow leads to a port whose answers do not arrive."""
        endpoint = self.route.endpoint
        if not self._warned and endpoint is not None and endpoint.port == TFTP:
            self._warned = True
            self.log.warning(
                "a TFTP server answers from another port than %d, and krelay relays only what comes"
                " from the port that was asked",
                TFTP,
            )

    async def open(self, address: str, port: int) -> None:
        """Bind and receive. Raises ListenError if the address cannot be bound."""
        self.addresses = []
        for sock in bind(address, port, socket.SOCK_DGRAM):
            self.addresses.append(sock.getsockname()[:2])
            local = _LocalSocket(self)
            local.attach(sock)
            self._sockets.append(local)

    def close(self) -> None:
        """End all flows and close the sockets."""
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()

    def reset(self) -> int:
        """End all flows; return how many. A client's next datagram begins another one."""
        return sum(sock.end_flows() for sock in self._sockets)

    moving = 0
    """Connections that a drain waits for: a flow has no end to wait for."""

    async def drain(self, timeout: float) -> None:
        """Close at once."""
        self.close()

    def end_quiet(self) -> None:
        """Do nothing: a drain has ended all flows."""

    cut = close


class FlowSocket:
    """A bound socket and its flows by address, the least recently used first."""

    def __init__(self, metrics: ForwardMetrics) -> None:
        self.metrics = metrics
        self.flows: OrderedDict[Address, Flow] = OrderedDict()
        self.loop = asyncio.get_running_loop()
        self._endpoint: DatagramEndpoint | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    def attach(self, sock: socket.socket) -> None:
        """Use `sock` from now on, and close it at the end."""
        self._endpoint = DatagramEndpoint(sock, self, receive_buffer=_RECEIVE_BUFFER)
        self._drops = self.metrics.add_socket(sock)

    def reply(self, data: Buffer, addr: Any) -> None:
        """Send the client a datagram from the flow of `addr`, and count it."""
        raise NotImplementedError

    def evicted(self) -> None:
        """Handle that a flow has made room for another."""

    def client(self, addr: Address) -> Address | None:
        """Return the local application's address, for the flow of `addr`."""
        return addr

    def end_flows(self) -> int:
        """End every flow; return how many."""
        ended = list(self.flows.values())
        for flow in ended:
            flow.close(ErrorCode.CANCELLED)
        self.flows.clear()
        return len(ended)

    def close(self) -> None:
        """End every flow and close the socket."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.end_flows()
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is not None:
            self.metrics.remove_socket(self._drops)
            endpoint.close()

    # -- the endpoint's side -------------------------------------------------------------------

    def datagram_received(self, data: bytes, addr: Address) -> None:
        raise NotImplementedError

    def error_received(self, exc: OSError) -> None:
        raise NotImplementedError

    def datagrams_sent(self, size: int) -> None:
        self.metrics.to_local += size

    def datagrams_dropped(self, count: int) -> None:
        self.metrics.drops[KERNEL] += count

    def _open(self, addr: Address, forwarding: Forwarding, most: int) -> Flow:
        """Return a new flow; the least recently used ones make room if there are `most`."""
        while len(self.flows) >= most:
            _, oldest = self.flows.popitem(last=False)
            oldest.evict()
            self.evicted()
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(IDLE, self._sweep)
        flow = self.flows[addr] = Flow(self, forwarding, addr)
        return flow

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


class _LocalSocket(FlowSocket):
    """One socket of a listener, and its flows by client address."""

    def __init__(self, listener: UdpListener) -> None:
        super().__init__(listener.metrics)
        self._listener = listener

    def datagram_received(self, data: bytes, addr: Address) -> None:
        flow = self.flows.get(addr)
        if flow is None:
            flow = self._open(addr, self._listener, self._listener.max_flows)
            self._listener.opened()
        flow.send(data)

    def evicted(self) -> None:
        self._listener.evicted()

    def error_received(self, exc: OSError) -> None:
        # ICMP from a client that has gone. The kernel does not say which one; its flow will expire.
        self._listener.log.debug("%s", exc)

    def reply(self, data: Buffer, addr: Address) -> None:
        if self._endpoint is not None:
            self._endpoint.send(data, addr)


class Flow:
    """One client address and its stream. It drops datagrams rather than wait.

    Datagrams have no connection to finish: when the route leads elsewhere, the next datagram goes
    there. A draining agent keeps its flows.
    """

    def __init__(self, sock: FlowSocket, forwarding: Forwarding, addr: Address) -> None:
        self._socket = sock
        self._forwarding = forwarding
        self._addr = addr
        self._stream: Stream | None = None
        self._early: deque[bytes] = deque(maxlen=_EARLY_DATAGRAMS)
        self._request = StreamRequest(forwarding, Protocol.UDP, self)
        self._request.peer = partial(sock.client, addr)
        self._request.metrics.counts = self
        self._metrics = forwarding.metrics
        self.received_bytes = self.sent_bytes = 0
        self._answered = False
        self.active_at = sock.loop.time()

    @property
    def route(self) -> Route:
        """Where its streams go."""
        return self._forwarding.route

    def send(self, data: bytes) -> None:
        """Forward a datagram of the client."""
        self._touch()
        if self._stream is not None:
            if self.route.endpoint is None or self.route.leads_to(self._request.endpoint):
                self._send_on(self._stream, data)
                return
            self.close(ErrorCode.CANCELLED)
        if len(self._early) == _EARLY_DATAGRAMS:
            self._metrics.drops[EARLY] += 1
        self._early.append(data)
        if not self._request.queued:
            self._answered = False
            self.received_bytes = self.sent_bytes = 0
            self._request.start()

    def close(self, code: ErrorCode) -> None:
        """End the flow at both ends."""
        self._end(code)
        if code is ErrorCode.IDLE:
            self._request.metrics.expired()
        else:
            self._request.metrics.closed(clean=True)

    def evict(self) -> None:
        """End the flow at both ends, since another one needs its place."""
        self._end(ErrorCode.IDLE)
        self._request.metrics.evicted()

    def _end(self, code: ErrorCode) -> None:
        self._request.cancel()
        self._drop_early()
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.reset(code)

    # -- the stream's side ---------------------------------------------------------------------

    def on_queued(self) -> None:
        """Nothing to do: the datagrams that wait are kept in any case."""

    def on_stream(self, stream: Stream) -> None:
        """Send what the client has sent so far."""
        self._stream = stream
        while self._early:
            self._send_on(stream, self._early.popleft())

    def on_open_failed(self, reason: str) -> None:
        """Drop what waits; the client's next datagram requests another stream."""
        self._forwarding.log.warning("datagrams dropped: %s", reason)
        self._forget()

    def on_accepted(self) -> None:
        # A UDP dial always succeeds: only an answer proves that the endpoint works.
        self._request.metrics.accepted(proof=False)

    def on_refused(self, code: ErrorCode, message: str) -> None:
        self._forwarding.log.warning("%s%s", code.text, message and f": {message}")
        self._request.metrics.refused(code, message)
        self._forget()

    def on_datagram(self, data: Buffer) -> None:
        self._touch()
        if not self._answered:
            self._answered = True
            self._request.metrics.dial_result(None)
        self.sent_bytes += len(data)
        self._socket.reply(data, self._addr)

    def on_reset(self, code: ErrorCode) -> None:
        metrics = self._request.metrics
        if code is ErrorCode.IDLE:
            metrics.expired()
        metrics.reset(code)
        if code is ErrorCode.REFUSED:
            metrics.dial_result(code, "by ICMP")
        self._forget()

    def on_end(self) -> None:
        self.close(ErrorCode.NONE)
        self._forget()

    def on_data(self, data: Buffer) -> None:
        """Ignore stream bytes, which a flow has none of; the window bounds them."""

    def on_writable(self) -> None:
        """Datagrams are dropped rather than queued here."""

    def _send_on(self, stream: Stream, data: bytes) -> None:
        if stream.datagram(data):
            self._metrics.to_remote += len(data)
            self.received_bytes += len(data)
        else:
            self._metrics.drops[BACKLOG] += 1

    def _touch(self) -> None:
        self.active_at = self._socket.loop.time()
        self._socket.flows.move_to_end(self._addr)

    def _drop_early(self) -> None:
        if self._early:
            self._metrics.drops[UNROUTED] += len(self._early)
            self._early.clear()

    def _forget(self) -> None:
        self._stream = None
        self._drop_early()
        if self._socket.flows.get(self._addr) is self:
            del self._socket.flows[self._addr]
