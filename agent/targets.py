"""Targets of the streams that clients open: a TCP connection or a UDP flow each."""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from agent.dial import Attempt, DialError, Lookups, begin, dial_tcp
from agent.memory import CONNECTION_COST, PIECE, READ, Client, ReadBuffer, Reservation
from agent.udp import Losses, UdpSocket, dial_udp
from krelay.mux.datagrams import MAX_WAITING
from krelay.mux.log import about
from krelay.mux.relay import TcpRelay
from krelay.mux.sockets import reset_socket
from krelay.mux.stream import HIGH_WATER, MuxStream
from krelay.mux.transport import SocketTransport
from krelay.wire import header
from krelay.wire.errors import ErrorCode
from krelay.wire.frames import MAX_PAYLOAD, Buffer
from krelay.wire.replay import FRAME_COST

logger = logging.getLogger("krelay.agent")

_MOST_EARLY_DATAGRAMS = 64
EARLY_DATAGRAMS = 1 << 20
"""Bytes of a session's datagrams that may wait for their targets."""
UDP_IDLE = 150.0
"""Idle seconds of a flow. The client's own limit is shorter; this one is for lost clients."""
LINGER = 120.0
"""Seconds that a target has to take its last bytes, or to end, when its stream is closed."""


class Targets:
    """Opens the targets of one session's streams."""

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        timeout: float,
        client: Client,
        *,
        lookups: Lookups,
        buffer: ReadBuffer,
    ) -> None:
        """Each dial runs in `tasks` and has `timeout` seconds."""
        self._tasks = tasks
        self._timeout = timeout
        self.client = client
        self.lookups = lookups
        self.buffer = buffer
        self.losses = Losses()
        self.early_datagrams = 0
        """Bytes of datagrams that wait for their targets."""
        self.datagram_room = DatagramRoom(client.reserve())

    def open(self, stream: MuxStream) -> None:
        """Dial the target of `stream`, or refuse the stream."""
        protocol = stream.header.protocol
        if protocol not in (header.TCP, header.UDP):
            stream.refuse(ErrorCode.UNKNOWN_PROTOCOL, f"protocol {protocol}")
            return
        reservation = self.client.reserve()
        self.client.settle()
        if not reservation.admit(CONNECTION_COST):
            stream.refuse(ErrorCode.LIMIT, "the agent has no memory left for this client's streams")
            return
        kind = TargetRelay if protocol == header.TCP else TargetFlow
        target = kind(stream, self, reservation)
        stream.handler = target
        if isinstance(target, TargetRelay) and target.dial_at_once(stream):
            return
        target.dialling = self._tasks.create_task(_dial(stream, target, self._timeout))
        # A callback: a task that is cancelled before it starts runs none of its lines.
        target.dialling.add_done_callback(target.on_dialled)


class DatagramRoom:
    """Room for a session's datagrams that wait for the sockets of their targets."""

    def __init__(self, reservation: Reservation) -> None:
        self._reservation = reservation

    def take(self, size: int) -> bool:
        return self._reservation.size + size <= MAX_WAITING and self._reservation.take(size)

    def give_back(self, size: int) -> None:
        self._reservation.set(self._reservation.size - size)


async def _dial(stream: MuxStream, target: TargetRelay | TargetFlow, timeout: float) -> None:
    request, failure = stream.header, None
    try:
        await target.dial(request.host, request.port, timeout)
    except Exception as exc:
        failure = exc
    finally:
        target.dialling = None
    if failure is None:
        target.begin(stream)
    else:
        _refuse(stream, target, failure)


def _refuse(stream: MuxStream, target: TargetRelay | TargetFlow, exc: Exception) -> None:
    """Tell the client why the target was not reached. A bug costs its stream, not the agent."""
    code, message = ErrorCode.INTERNAL, ""
    if isinstance(exc, DialError):
        code, message = exc.code, str(exc)
        about(logger, stream=repr(stream)).info("%s: %s", code.text, message)
    else:
        about(logger, stream=repr(stream)).error("the dial failed", exc_info=exc)
    stream.handler = None
    stream.refuse(code, message)
    target.on_reset(code)


class TargetRelay(TcpRelay, asyncio.BufferedProtocol):
    """A TCP relay that begins before its target is reached; a reset cancels the dial.

    It holds as many bytes as its client's part of the budget allows. The stream gets credit back
    when the target's socket has taken the bytes, and reads of the target are as large as the memory
    allows.
    """

    write_high_water = 0

    def __init__(self, stream: MuxStream, targets: Targets, reservation: Reservation) -> None:
        super().__init__()
        self.stream: MuxStream | None = stream
        self.dialling: asyncio.Task[None] | None = None
        self._begun: Attempt | None = None
        self._targets = targets
        self._client = targets.client
        self._reservation = reservation
        self._high_water = HIGH_WATER
        self._accepted = False
        self._end_waits = False
        self._linger: asyncio.TimerHandle | None = None

    def dial_at_once(self, stream: MuxStream) -> bool:
        """Begin to connect; return whether that is over in this turn of the loop.

        It is for a target on the same node, and for one that refuses at once.
        """
        try:
            self._begun = begin(stream.header.host, stream.header.port)
            if self._begun is None or not self._begun.connected:
                return False
            SocketTransport(self._begun.sock, self)
        except Exception as exc:
            if self._begun is not None:
                self._begun.sock.close()
            self._reservation.release()
            _refuse(stream, self, exc)
        else:
            self._begun = None
            self.begin(stream)
        return True

    async def dial(self, host: str, port: int, timeout: float) -> None:
        """Connect to the target.

        Raises:
            DialError: the target was not reached.
        """
        targets = self._targets
        await dial_tcp(
            host, port, timeout, lambda: self, targets.lookups, self._client, self._begun
        )

    def on_dialled(self, _: object) -> None:
        """Release the memory and the socket if the dial led to nothing."""
        begun, self._begun = self._begun, None
        if self.transport is None:
            if begun is not None:
                begun.sock.close()
            self._reservation.release()

    def begin(self, stream: MuxStream) -> None:
        """Relay: the target is reached."""
        if self.stream is None:
            # The client reset the stream while the connection came up.
            self.on_reset(ErrorCode.CANCELLED)
            return
        self._accepted = True
        stream.accept()
        self.start(stream)

    # -- from the stream to the socket ---------------------------------------------------------

    def on_data(self, data: Buffer) -> None:
        if self.stream is None:
            return
        if self.transport is None or self._paused:
            self.keep(data)
            return
        if not self._client.allows(READ):
            # Bytes that the socket does not take at once would keep the whole read in memory.
            data = bytes(data)
        super().on_data(data)
        if self._paused:
            whole = data.obj if isinstance(data, memoryview) else data
            if not self._reservation.take(len(whole)):
                self._give_up()

    def keep(self, data: Buffer) -> None:
        if not self._reservation.take(len(data)):
            self._give_up()
        elif self._early:
            self._early[0] += data  # type: ignore[operator]
        else:
            self._early.append(bytearray(data))

    def on_end(self) -> None:
        if self._early and self.transport is not None:
            self._end_waits = True
            return
        super().on_end()
        self._wait_for_last_bytes()

    def resume_writing(self) -> None:
        early, self._early = self._early, []
        self._reservation.set(CONNECTION_COST)
        super().resume_writing()
        for data in early:
            self.on_data(data)
        if self._end_waits:
            self._end_waits = False
            self.on_end()

    def _give_up(self) -> None:
        """End the stream: the target is too slow for the client's part of the memory."""
        stream = self.stream
        assert stream is not None
        if self._accepted:
            stream.reset(ErrorCode.LIMIT)
        else:
            stream.refuse(ErrorCode.LIMIT, "the agent has no memory left for queued data")
        self.on_reset(ErrorCode.LIMIT)

    # -- from the socket to the stream ---------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._reservation.set(CONNECTION_COST)
        super().connection_made(transport)
        if self.stream is None:
            # The stream was reset too late to cancel the dial.
            reset_socket(transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        roomy = self._client.allows(READ)
        self._high_water = HIGH_WATER if roomy else PIECE
        return self._targets.buffer.part(READ if roomy else PIECE)

    def buffer_updated(self, nbytes: int) -> None:
        stream = self.stream
        if stream is None:
            return
        self.received_bytes += nbytes
        data = self._targets.buffer.part(nbytes)
        pieces = [bytes(data[at : at + MAX_PAYLOAD]) for at in range(0, nbytes, MAX_PAYLOAD)]
        if not stream.write_pieces(pieces, self._high_water) and self.transport is not None:
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        super().eof_received()
        self._wait_for_last_bytes()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._early.clear()
        self._reservation.release()
        if self._linger is not None:
            self._linger.cancel()

    def on_reset(self, code: ErrorCode) -> None:
        self._early.clear()
        if self.dialling is not None:
            self.dialling.cancel()
        super().on_reset(code)

    def _wait_for_last_bytes(self) -> None:
        """Limit the time of a socket whose stream is closed: no limit of a client covers it."""
        if self._local_ended and self._remote_ended and self.transport is not None:
            loop = asyncio.get_running_loop()
            self._linger = loop.call_later(LINGER, reset_socket, self.transport)


class TargetFlow:
    """A UDP flow: relays between a connected socket and a stream."""

    def __init__(self, stream: MuxStream, targets: Targets, reservation: Reservation) -> None:
        self.dialling: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._stream: MuxStream | None = stream
        self._socket: UdpSocket | None = None
        self._targets = targets
        self._client = targets.client
        self._losses = targets.losses
        self._reservation = reservation
        self._early: deque[bytes] = deque()
        self._active_at = self._loop.time()
        self._timer = self._loop.call_later(UDP_IDLE, self._check_idle)

    async def dial(self, host: str, port: int, timeout: float) -> None:
        """Open a socket to the target.

        Raises:
            DialError: the target has no address, or the socket could not be made.
        """
        # If ICMP says that nothing listens there, the flow ends; the client's next datagram opens
        # another.
        self._socket = await dial_udp(
            host,
            port,
            timeout,
            self._receive,
            lambda: self.close(ErrorCode.REFUSED),
            self._losses,
            self._targets.lookups,
            self._client,
            self._targets.datagram_room,
        )

    def on_dialled(self, _: object) -> None:
        """Release the memory if the dial led to nothing."""
        if self._socket is None or self._stream is None:
            self._reservation.release()

    def begin(self, stream: MuxStream) -> None:
        """Relay: the socket is there."""
        stream.accept()
        while self._early:
            self.on_datagram(self._pop_early())

    def close(self, code: ErrorCode) -> None:
        """End the flow, and reset its stream with `code`."""
        self._timer.cancel()
        while self._early:
            self._pop_early()
            self._losses.early += 1
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.reset(code)
        if self.dialling is not None:
            self.dialling.cancel()
        else:
            self._reservation.release()
        if self._socket is not None:
            self._socket.close()

    def on_datagram(self, data: Buffer) -> None:
        self._active_at = self._loop.time()
        if self._socket is not None:
            self._socket.send(data)
            return
        if len(self._early) == _MOST_EARLY_DATAGRAMS:
            self._pop_early()
            self._losses.early += 1
        cost = len(data) + FRAME_COST
        if self._targets.early_datagrams + cost > EARLY_DATAGRAMS or not self._reservation.take(
            cost
        ):
            self._losses.early += 1
            return
        self._targets.early_datagrams += cost
        self._early.append(bytes(data))

    def _pop_early(self) -> bytes:
        data = self._early.popleft()
        cost = len(data) + FRAME_COST
        self._targets.early_datagrams -= cost
        self._reservation.set(self._reservation.size - cost)
        return data

    def on_end(self) -> None:
        self.close(ErrorCode.NONE)

    def on_reset(self, code: ErrorCode) -> None:
        self.close(code)

    def on_data(self, data: Buffer) -> None:
        """Ignore DATA on a flow; the window bounds it."""

    def on_accepted(self) -> None:
        """Never called: the client opens the streams."""

    def on_refused(self, code: ErrorCode, message: str) -> None:
        """Never called: the client opens the streams."""

    def on_writable(self) -> None:
        """Never called: datagrams are dropped rather than queued."""

    def _receive(self, data: bytes) -> None:
        self._active_at = self._loop.time()
        if self._stream is None:
            return
        if not self._client.allows(len(data) + FRAME_COST) or not self._stream.datagram(data):
            self._losses.backlog += 1

    def _check_idle(self) -> None:
        idle = self._loop.time() - self._active_at
        if idle >= UDP_IDLE:
            self.close(ErrorCode.IDLE)
        else:
            self._timer = self._loop.call_later(UDP_IDLE - idle, self._check_idle)
