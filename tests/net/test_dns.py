"""Lookups that hang, fail and succeed."""

from __future__ import annotations

import asyncio
import math
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from krelay.net import dns as module
from krelay.net.api_access import ApiAccess
from krelay.net.dns import lookup
from krelay.transport.portforward import reachable_again
from tests import rig

LOCAL = [(socket.AF_INET, "127.0.0.1")]


class Resolver:
    """Replaces the system's: each lookup of `name.test` waits for its turn, then answers."""

    def __init__(self) -> None:
        self.asked = 0
        self.turns: list[threading.Event] = []
        self.answers: list[str | OSError] = []

    def hang(self, answer: str | OSError) -> int:
        """The next lookup hangs until `let`; its number."""
        self.turns.append(threading.Event())
        self.answers.append(answer)
        return len(self.turns) - 1

    def let(self, number: int) -> None:
        self.turns[number].set()

    def getaddrinfo(self, name: str, port: object, **_: object) -> list[Any]:
        assert name == "name.test"
        number, self.asked = self.asked, self.asked + 1
        if number < len(self.turns):
            self.turns[number].wait()
        answer = self.answers[min(number, len(self.answers) - 1)]
        if isinstance(answer, OSError):
            raise answer
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answer, 0))]


@contextmanager
def replaced(monkeypatch: pytest.MonkeyPatch, again: float) -> Iterator[Resolver]:
    resolver = Resolver()
    monkeypatch.setattr(module, "REPEAT_AFTER", again)
    monkeypatch.setattr(socket, "getaddrinfo", resolver.getaddrinfo)
    try:
        yield resolver
    finally:
        for turn in resolver.turns:
            turn.set()


async def no_lookup_is_pending() -> None:
    await rig.until(lambda: not module._hosts)


async def test_an_address_is_returned_without_a_lookup() -> None:
    assert await lookup("192.0.2.1") == [(socket.AF_INET, "192.0.2.1")]
    assert await lookup("2001:db8::1") == [(socket.AF_INET6, "2001:db8::1")]


async def test_a_name_has_addresses_or_raises() -> None:
    assert {address for _, address in await lookup("localhost")} <= {"127.0.0.1", "::1"}
    with pytest.raises(socket.gaierror):
        await lookup("no.invalid")
    await no_lookup_is_pending()


async def test_callers_of_one_host_share_a_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    with replaced(monkeypatch, 3600.0) as resolver:
        number = resolver.hang("127.0.0.1")
        async with asyncio.TaskGroup() as tasks:
            asking = [tasks.create_task(lookup("name.test")) for _ in range(5)]
            await rig.until(lambda: resolver.asked)
            asking[0].cancel()  # the others go on
            await asyncio.sleep(0)
            resolver.let(number)
        assert [task.result() for task in asking[1:]] == [LOCAL] * 4
        assert resolver.asked == 1
        await lookup("name.test")
        assert resolver.asked == 2
    await no_lookup_is_pending()


async def test_a_lookup_that_hangs_is_joined_by_a_limited_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with replaced(monkeypatch, 0.001) as resolver:
        for _ in range(module.CONCURRENCY_LIMIT):
            resolver.hang("127.0.0.1")
        async with asyncio.TaskGroup() as tasks:
            asking = [tasks.create_task(lookup("name.test")) for _ in range(2)]
            await rig.until(lambda: resolver.asked == module.CONCURRENCY_LIMIT)
            await asyncio.sleep(0.01)
            assert resolver.asked == module.CONCURRENCY_LIMIT
            resolver.let(3)
        assert [task.result() for task in asking] == [LOCAL] * 2
        # Those that still hang delay no later caller.
        assert await lookup("name.test") == LOCAL


async def test_a_failure_is_raised_to_the_callers_of_that_lookup_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fails() -> str:
        with pytest.raises(OSError) as caught:
            await lookup("name.test")
        return str(caught.value)

    monkeypatch.setattr(module, "CONCURRENCY_LIMIT", 3)
    with replaced(monkeypatch, 0.001) as resolver:
        for answer in (OSError("first"), OSError("second"), "127.0.0.1"):
            resolver.hang(answer)
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(fails())
            await rig.until(lambda: resolver.asked == 3)
            monkeypatch.setattr(module, "REPEAT_AFTER", 3600.0)
            third = tasks.create_task(lookup("name.test"))
            resolver.let(1)
            (host,) = module._hosts.values()
            await rig.until(lambda: len(host._pending) == 2)
            await asyncio.sleep(0)
            assert not first.done()
            resolver.let(0)
            assert await first == "first"
            assert not third.done()
            resolver.let(2)
            assert await third == LOCAL
    await no_lookup_is_pending()


async def test_reachability_probes_that_hang_leave_the_executor_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with replaced(monkeypatch, 0.001) as resolver:
        for _ in range(module.CONCURRENCY_LIMIT):
            resolver.hang("127.0.0.1")
        access = ApiAccess("http://name.test", None, None, (), expires=math.inf)
        async with asyncio.TaskGroup() as tasks:
            looks = [tasks.create_task(reachable_again(access)) for _ in range(4)]
            await rig.until(lambda: resolver.asked == module.CONCURRENCY_LIMIT)
            await asyncio.to_thread(lambda: None)
            for look in looks:
                look.cancel()


END = """
import asyncio, socket, threading
from krelay.net.dns import lookup
asked = threading.Event()
def hang(*args, **kwargs):
    asked.set()
    threading.Event().wait()
socket.getaddrinfo = hang
async def main():
    asking = asyncio.get_running_loop().create_task(lookup("name.test"))
    await asyncio.to_thread(asked.wait)
    asking.cancel()
asyncio.run(main())
print("ended")
"""


@pytest.mark.process
def test_the_end_of_a_program_does_not_wait_for_a_lookup() -> None:
    done = subprocess.run([sys.executable, "-c", END], capture_output=True, text=True, check=True)
    assert done.stdout == "ended\n"
    assert done.stderr == ""


def test_an_answer_after_the_end_of_the_loop_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    with replaced(monkeypatch, 3600.0) as resolver:
        number = resolver.hang("127.0.0.1")

        async def ask() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await lookup("name.test")

        asyncio.run(ask())
        (thread,) = (t for t in threading.enumerate() if t.name == "lookup name.test")
        resolver.let(number)
        thread.join()
    assert not module._hosts


@contextmanager
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        yield


async def test_without_threads_a_lookup_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with replaced(monkeypatch, 3600.0) as resolver:
        resolver.answers.append("127.0.0.1")
        with no_threads(monkeypatch):
            with pytest.raises(OSError, match="cannot look up name.test: can't start new thread"):
                await lookup("name.test")
            assert not module._hosts
        assert await lookup("name.test") == LOCAL


async def test_without_threads_a_pending_lookup_is_awaited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with replaced(monkeypatch, 3600.0) as resolver:
        number = resolver.hang("127.0.0.1")
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(lookup("name.test"))
            await rig.until(lambda: resolver.asked)
            monkeypatch.setattr(module, "REPEAT_AFTER", 0.001)
            with no_threads(monkeypatch):
                await asyncio.sleep(0.01)
                joined = tasks.create_task(lookup("name.test"))
                await asyncio.sleep(0.01)
                assert not asking.done()
                assert not joined.done()
            resolver.let(number)
        assert asking.result() == joined.result() == LOCAL
    await no_lookup_is_pending()
