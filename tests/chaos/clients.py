"""The load: checksummed transfers both ways, questions on kept connections, datagrams."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import secrets
import socket
from collections import deque
from collections.abc import Callable

from tests.chaos.account import EXACT, HUNG, RESET, TRUNCATED, WRONG, Account, Carried, now
from tests.e2e.program import Check, send

Address = tuple[str, int]
Where = Callable[[], Address]

_KEYS = itertools.count(1)
_LOST = (ConnectionResetError, BrokenPipeError, ConnectionAbortedError)
_PATIENCE = 5.0
_KEPT = 4_096


class Clients:
    """All of them, while `run` runs. `hang` is how many seconds without a byte are a hang."""

    def __init__(
        self, account: Account, chance: random.Random, *, hang: float, sizes: tuple[int, int]
    ) -> None:
        self.account = account
        self.hang = hang
        self._chance = chance
        self._sizes = sizes
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Begin nothing new; what lives goes on to its end."""
        self._stop.set()

    async def _pause(self, seconds: float) -> None:
        """A pause, or the stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()

    # -- transfers -----------------------------------------------------------------------------

    async def transfers(self, where: Where, *, rate: int = 0) -> None:
        """One transfer after the other. `rate`: bytes per second, each way; 0 for one of its
        own."""
        await self._pause(self._chance.uniform(0, 3))
        while not self._stop.is_set():
            one = Carried(next(_KEYS))
            self.account.opened(one)
            speed = rate or self._chance.randint(16 << 10, 48 << 10)
            size = self._chance.randint(*self._sizes)
            try:
                end, detail = await self._transfer(where(), one, size, speed)
            except _LOST as exc:
                end, detail = RESET, str(exc)
            except TimeoutError:
                end, detail = HUNG, f"no byte for {now() - one.moved:.0f} s"
            except OSError as exc:
                end, detail = RESET, f"not connected: {exc}"
            self.account.close(one, end, detail)
            if end != EXACT:
                await self._pause(self._chance.uniform(0.2, 1.0))

    async def _transfer(
        self, address: Address, one: Carried, size: int, rate: int
    ) -> tuple[str, str]:
        reader, writer = await asyncio.open_connection(*address)
        check = Check(2 * one.key + 1, size)
        tail = bytearray()
        try:
            async with asyncio.TaskGroup() as tasks:
                writer.write(f"duplex {one.key} {size} {rate}\n".encode())
                sending = tasks.create_task(self._send(writer, one.key, size, rate))
                try:
                    one.pod = (await self._read(reader.readline(), one)).decode().strip()
                    if not one.pod:
                        return TRUNCATED, "before the first byte"
                    while data := await self._read(reader.read(1 << 16), one):
                        room = size - check.received
                        check.feed(data[:room])
                        tail += data[room:]
                        if check.wrong:
                            return WRONG, f"{check.wrong}, on the way here"
                finally:
                    sending.cancel()
        except* _LOST as group:
            raise next(leaf for leaf in _leaves(group)) from None
        except* TimeoutError:
            raise TimeoutError from None
        finally:
            writer.transport.abort()
        verdict = bytes(tail).decode(errors="replace").strip()
        if not check.complete or not tail.endswith(b"\n"):
            return TRUNCATED, f"{check.received} of {size} bytes, then an orderly end"
        if verdict != "ok":
            return TRUNCATED if verdict.startswith("short") else WRONG, f"{verdict}, on the way in"
        return EXACT, ""

    async def _send(self, writer: asyncio.StreamWriter, key: int, size: int, rate: int) -> None:
        await send(writer, 2 * key, size, rate)
        writer.write_eof()

    async def _read(self, reading: object, one: Carried) -> bytes:
        async with asyncio.timeout(self.hang):
            data: bytes = await reading  # type: ignore[misc]
        if data:
            self.account.progress(one, len(data))
        return data

    # -- questions -----------------------------------------------------------------------------

    async def questions(self, where: Where, number: int) -> None:
        """Keeps a connection and asks on it; each answer is to be the question."""
        asked = self.account.asked
        for count in itertools.count():
            if self._stop.is_set():
                return
            asked["connections"] += 1
            try:
                reader, writer = await asyncio.open_connection(*where())
            except OSError:
                asked["not connected"] += 1
                await self._pause(0.5)
                continue
            try:
                writer.write(b"ask\n")
                while not self._stop.is_set():
                    question = f"{number}:{count}:{secrets.token_hex(32)};".encode()
                    question *= self._chance.randint(1, 20)
                    began = now()
                    writer.write(question)
                    async with asyncio.timeout(self.hang):
                        answer = await reader.readexactly(len(question))
                    self.account.slowest_answer = max(self.account.slowest_answer, now() - began)
                    asked["answered" if answer == question else WRONG] += 1
                    await self._pause(self._chance.uniform(0.05, 0.5))
            except _LOST:
                asked[RESET] += 1
            except asyncio.IncompleteReadError:
                asked[TRUNCATED] += 1
            except TimeoutError:
                asked[HUNG] += 1
            finally:
                writer.transport.abort()
            await self._pause(self._chance.uniform(0, 0.5))

    # -- datagrams -----------------------------------------------------------------------------

    async def datagrams(self, where: Where, number: int) -> None:
        """Sends datagrams; an answer is to be to one that this client has sent, and comes once."""
        loop = asyncio.get_running_loop()
        count = self.account.datagrams
        sent: dict[bytes, int] = {}
        order: deque[bytes] = deque()

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.bind(("127.0.0.1", 0))

            def hear() -> None:
                try:
                    data = sock.recv(1 << 16)
                except OSError:
                    return
                times = sent.get(data)
                if times is None:
                    count["not asked for"] += 1
                else:
                    sent[data] = times + 1
                    count["answered" if not times else "answered twice"] += 1

            loop.add_reader(sock, hear)
            try:
                for turn in itertools.count():
                    if self._stop.is_set():
                        break
                    data = f"{number}:{turn}:{secrets.token_hex(8)}".encode()
                    data *= self._chance.randint(1, 40)
                    sent[data] = 0
                    order.append(data)
                    if len(order) > _KEPT:
                        sent.pop(order.popleft())
                    with contextlib.suppress(OSError):
                        sock.sendto(data, where())
                        count["sent"] += 1
                    await self._pause(self._chance.uniform(0.02, 0.3))
                # What is still under way may come.
                await asyncio.sleep(1.0)
            finally:
                loop.remove_reader(sock)


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for exc in group.exceptions:
        found += _leaves(exc) if isinstance(exc, BaseExceptionGroup) else [exc]
    return found
