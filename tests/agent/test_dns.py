"""Names that no resolver answers block themselves, and no others."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest

from agent.dns import Lookups, literal
from agent.errors import DialError
from krelay.wire.errors import ErrorCode
from tests import rig


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


async def failing(lookups: Lookups, host: str, client: object, timeout: float) -> DialError:
    with pytest.raises(DialError) as caught:
        await lookups.find(host, client, timeout)
    return caught.value


async def slow(lookups: Lookups, names: list[str], client: object, resolver: Resolver) -> None:
    """Look-ups that were given up, each of which keeps its thread as far as it has got one."""
    tasks = [asyncio.create_task(failing(lookups, name, client, 60.0)) for name in names]
    started = min(lookups.running + len(names), lookups._most)
    await asyncio.sleep(0)
    await rig.until(lambda: len(resolver.asked) >= min(lookups.running, started))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "app.localhost"])
async def test_names_of_this_machine_ask_no_resolver(host: str, resolver: Resolver) -> None:
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


async def test_a_dead_domain_takes_a_part_of_the_threads(resolver: Resolver) -> None:
    lookups, client = Lookups(256), object()
    await slow(lookups, [f"slow{n}.dead.test" for n in range(500)], client, resolver)
    assert lookups.running == 32
    assert await lookups.find("web.shop.svc", client, 60.0)
    failure = await failing(lookups, "slow.dead.test", client, 0.01)
    assert failure.code is ErrorCode.RESOLVE_TIMEOUT
    assert str(failure) == (
        "resolving slow.dead.test took over 0.01 s: the agent waits for the answers to 32 other "
        "names"
    )


async def test_threads_that_come_back_are_used_again(resolver: Resolver) -> None:
    lookups, client = Lookups(8), object()
    waiting = [asyncio.create_task(failing(lookups, f"slow{n}", client, 60.0)) for n in range(50)]
    await rig.until(lambda: lookups.running == 4)
    resolver.answer.set()
    failures = await asyncio.gather(*waiting)
    assert {failure.code for failure in failures} == {ErrorCode.RESOLVE_TIMEOUT}
    assert len(resolver.asked) == 50
    assert (lookups.running, lookups._known, lookups._waiting) == (0, {}, {})


async def test_a_name_that_is_asked_again_joins_its_look_up(resolver: Resolver) -> None:
    lookups, client = Lookups(8), object()
    for _ in range(3):
        await failing(lookups, "slow.test", client, 0.01)
    assert (lookups.running, resolver.asked) == (1, ["slow.test"])


async def test_a_thread_that_cannot_be_started_fails_one_look_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    lookups = Lookups()
    failure = await failing(lookups, "web.test", None, 60.0)
    assert failure.code is ErrorCode.LIMIT
    assert lookups.running == 0
