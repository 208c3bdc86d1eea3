"""A slow link on loopback: `python -m benchmarks.wan HOST PORT MBIT RTT` prints its local port.

Every connection to that port is passed on to HOST:PORT over one link each way, with a rate, a delay
and a router's queue in front of it that all connections share. MBIT is in Mbit/s (0: no limit), RTT
in ms. The end of stdin ends the program.

Two things are unlike a real path: nothing is lost, and TCP starts without a slow start.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import math
import socket
import sys

PACKET = 1448
QUEUE = 0.04
"""Seconds of traffic that wait in front of the link at most; a sender that has more waits."""
WINDOW = 4 << 20
"""Bytes of a connection on their way, as a receiver's TCP allows."""
RECEIVE_BUFFER = 64 << 10
"""What the kernel takes from a sender before the link does."""
EARLY = 0.0005
"""The loop's timers are up to 1 ms late: what is due so soon is delivered now."""


class Link:
    """One direction of the path, without I/O: the time goes in, the time of arrival comes out."""

    def __init__(self, mbit: float, delay: float) -> None:
        """Take the rate in Mbit/s (0: no limit) and the delay in seconds."""
        self._rate = mbit * 1e6 / 8 or math.inf
        self._delay = delay
        self._idle_at = -math.inf

    def wait(self, now: float) -> float:
        """Return the seconds until the queue takes the next packet."""
        return max(0.0, self._idle_at - now - QUEUE)

    def send(self, now: float, size: int) -> float:
        """Take a packet; return when it arrives."""
        self._idle_at = max(now, self._idle_at) + size / self._rate
        return self._idle_at + self._delay


class Direction:
    """A link, its packets on their way, and the sources that wait for its queue."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self._loop = asyncio.get_running_loop()
        self._flying: collections.deque[tuple[float, Half, bytes]] = collections.deque()
        self._waiting: list[Half] = []
        self._timer: asyncio.TimerHandle | None = None

    def wait(self, half: Half) -> bool:
        """Tell whether the queue is full; if so, wake `half` when it is not."""
        seconds = self.link.wait(self._loop.time())
        if seconds > EARLY:
            if not self._waiting:
                self._loop.call_later(seconds, self._wake)
            self._waiting.append(half)
            return True
        return False

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for half in waiting:
            half.read_on()

    def send(self, half: Half, data: bytes) -> None:
        """Let a packet fly; an empty one is the end."""
        self._flying.append((self.link.send(self._loop.time(), len(data)), half, data))
        if self._timer is None:
            self._timer = self._loop.call_at(self._flying[0][0], self._deliver)

    def _deliver(self) -> None:
        self._timer = None
        due = self._loop.time() + EARLY
        while self._flying and self._flying[0][0] <= due:
            _, half, data = self._flying.popleft()
            half.arrived(data)
        if self._flying:
            self._timer = self._loop.call_at(self._flying[0][0], self._deliver)


class Half:
    """One direction of a connection."""

    def __init__(
        self, direction: Direction, source: socket.socket, sink: socket.socket, pair: Pair
    ) -> None:
        self._direction, self._source, self._sink, self._pair = direction, source, sink, pair
        self._loop = asyncio.get_running_loop()
        self._on_the_way = 0
        self._unwritten = bytearray()
        self._reading = self._writing = False
        self._ended = False

    def read_on(self) -> None:
        """Read what the source sends."""
        if not self._reading and not self._pair.closed and not self._ended:
            self._reading = True
            self._loop.add_reader(self._source, self._readable)

    def stop_reading(self) -> None:
        """Leave the rest to the kernel."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._source)

    def _readable(self) -> None:
        if self._on_the_way > WINDOW or self._direction.wait(self):
            self.stop_reading()
            return
        try:
            data = self._source.recv(PACKET)
        except BlockingIOError:
            return
        except OSError:
            self._pair.close()
            return
        if not data:
            self._ended = True
            self.stop_reading()
        self._on_the_way += len(data)
        self._direction.send(self, data)

    def arrived(self, data: bytes) -> None:
        """Hand a packet to the sink."""
        if self._pair.closed:
            return
        if not data:
            self._pair.half_ended(self)
            if not self._unwritten:
                self._end()
            return
        self._unwritten += data
        self._write()

    def _write(self) -> None:
        try:
            sent = self._sink.send(self._unwritten)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._pair.close()
            return
        del self._unwritten[:sent]
        was_full = self._on_the_way > WINDOW
        self._on_the_way -= sent
        if was_full and self._on_the_way <= WINDOW:
            self.read_on()
        if self._unwritten and not self._writing:
            self._writing = True
            self._loop.add_writer(self._sink, self._write)
        elif not self._unwritten:
            self.stop_writing()
            if self._pair.has_ended(self):
                self._end()

    def stop_writing(self) -> None:
        """Wait no longer for the sink."""
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._sink)

    def _end(self) -> None:
        with contextlib.suppress(OSError):
            self._sink.shutdown(socket.SHUT_WR)
        self._pair.finished(self)


class Pair:
    """A connection: two sockets, and what flies between them."""

    def __init__(
        self, near: socket.socket, far: socket.socket, up: Direction, down: Direction
    ) -> None:
        self._sockets = (near, far)
        self._halves = (Half(up, near, far, self), Half(down, far, near, self))
        self._at_end: set[Half] = set()
        self._done: set[Half] = set()
        self.closed = False

    def start(self) -> None:
        """Begin to relay."""
        for half in self._halves:
            half.read_on()

    def half_ended(self, half: Half) -> None:
        """Note that the end of a direction has arrived."""
        self._at_end.add(half)

    def has_ended(self, half: Half) -> bool:
        """Tell whether nothing more arrives."""
        return half in self._at_end

    def finished(self, half: Half) -> None:
        """Close both sockets once both directions have ended."""
        self._done.add(half)
        if len(self._done) == len(self._halves):
            self.close()

    def close(self) -> None:
        """Close both sockets."""
        if not self.closed:
            self.closed = True
            for half in self._halves:
                half.stop_reading()
                half.stop_writing()
            for sock in self._sockets:
                sock.close()


def listening_socket() -> socket.socket:
    """Return a socket whose connections buffer no more than those of a real network would."""
    sock = socket.socket()
    # Over loopback's huge segments, senders would get a buffer of 2.5 MiB at once.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, PACKET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    sock.bind(("127.0.0.1", 0))
    sock.listen(1024)
    sock.setblocking(False)
    return sock


class Emulator:
    """The path: its two links, and the connections over it."""

    def __init__(self, host: str, port: int, mbit: float, rtt: float) -> None:
        self._address = (host, port)
        self._up = Direction(Link(mbit, rtt / 2))
        self._down = Direction(Link(mbit, rtt / 2))
        self._rtt = rtt

    async def serve(self, listener: socket.socket) -> None:
        """Accept for ever."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:  # noqa: TID251
            while True:
                near, _ = await loop.sock_accept(listener)
                near.setblocking(False)
                tasks.create_task(self._connect(near))

    async def _connect(self, near: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        far = socket.socket()
        far.setblocking(False)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        try:
            async with asyncio.timeout(30):
                await loop.sock_connect(far, self._address)
        except OSError:
            near.close()
            far.close()
            return
        for sock in (near, far):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A connection over a real path opens one round trip later than this one did.
        await asyncio.sleep(self._rtt)
        Pair(near, far, self._up, self._down).start()


async def main(host: str, port: int, mbit: float, rtt: float) -> None:
    """Serve until stdin ends."""
    emulator = Emulator(host, port, mbit, rtt / 1000)
    loop = asyncio.get_running_loop()
    stdin = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    with listening_socket() as listener:
        print(listener.getsockname()[1], flush=True)
        async with asyncio.TaskGroup() as tasks:  # noqa: TID251
            serving = tasks.create_task(emulator.serve(listener))
            await stdin.read()
            serving.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])))
