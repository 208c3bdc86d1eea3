"""The account and the report tell what must not be, so that a run that finds nothing says much."""

from __future__ import annotations

import asyncio

import pytest

from tests.chaos.account import EXACT, RESET, WRONG, Account, Carried
from tests.chaos.report import Ends, Report
from tests.e2e import program

SIZE = 10 * program.PIECE + 100


def pieces(key: int = 7, size: int = SIZE) -> list[bytes]:
    return [program.piece(key, number, size) for number in range(-(-size // program.PIECE))]


def checked(*data: bytes) -> program.Check:
    check = program.Check(7, SIZE)
    for part in data:
        check.feed(part)
    return check


def test_all_of_it_is_complete_in_whatever_parts_it_comes() -> None:
    whole = b"".join(pieces())
    assert len(whole) == SIZE
    assert checked(whole).complete
    assert checked(*(whole[at : at + 999] for at in range(0, SIZE, 999))).complete
    assert not checked(whole[:-1]).complete


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        ([*pieces()[:2], *pieces()[3:]], "lost or reordered at piece 2"),
        ([*pieces()[:3], *pieces()[2:]], "repeated at piece 3"),
        ([pieces()[1], pieces()[0]], "lost or reordered at piece 0"),
        ([pieces()[0][:-1] + b"x"], "corrupt at piece 0"),
        ([b"".join(pieces())[10:]], "lost or reordered at piece 0"),
        ([pieces(key=8)[0]], "foreign or corrupt at piece 0"),
        ([*pieces(), b"x"], "too much"),
    ],
)
def test_what_is_wrong_is_told_apart(data: list[bytes], wrong: str) -> None:
    check = checked(*data)
    assert check.wrong == wrong
    assert not check.complete


def report(account: Account, *outcomes: str, **changes: int) -> Report:
    same = {"descriptors": 20, "memory": 50, "tasks": 9, "streams": 0}
    agent = {"agent_descriptors": 8, "agent_memory": 30}
    before = Ends(**same, **agent)
    after = Ends(**{**same, **agent, **changes})
    return Report(1, 10.0, account, list(outcomes), before, after, (1, 1))


def carried(account: Account, key: int, end: str, pod: str = "web-1") -> Carried:
    one = Carried(key, pod)
    account.opened(one)
    account.close(one, end)
    return one


def test_a_run_without_a_flaw_has_no_violations() -> None:
    account = Account()
    carried(account, 1, EXACT)
    account.kill("the target was deleted", frozenset({"web-2"}))
    assert carried(account, 2, RESET, "web-2").cause == "the target was deleted"
    assert carried(account, 3, RESET, "").cause == "not opened"
    assert report(account, "1 ok", "2 reset").violations() == []


@pytest.mark.parametrize(
    ("end", "outcome", "changes", "violation"),
    [
        (WRONG, "1 reset", {}, "transfer 1 to web-1: wrong bytes: "),
        (RESET, "1 reset", {}, "transfer 1 to web-1: reset for no reason: "),
        (EXACT, "1 reset", {}, "transfer 1 is exact here and reset there"),
        (EXACT, "9 short 5", {}, "transfer 9, seen from the target: short 5"),
        (EXACT, "1 ok", {"streams": 1}, "1 streams are left"),
        (EXACT, "1 ok", {"descriptors": 21}, "krelay's descriptors: 20 before, 21 after"),
        (EXACT, "1 ok", {"memory": 200}, "krelay's memory: 50 MiB before, 200 after"),
        (EXACT, "1 ok", {"agent_memory": 250}, "the agent's memory: 250 MiB of its 256"),
    ],
)
def test_a_flaw_is_a_violation(
    end: str, outcome: str, changes: dict[str, int], violation: str
) -> None:
    account = Account()
    carried(account, 1, end)
    assert report(account, outcome, **changes).violations() == [violation]


def test_what_still_lives_and_agents_that_nobody_called_for_are_violations() -> None:
    account = Account()
    account.opened(Carried(5))
    found = report(account)
    found.agents = (2, 1)
    assert found.violations() == [
        "a transfer never ended: 5",
        "2 agents were started, 1 were called for",
    ]


def test_recovery_is_from_the_end_of_a_fault_to_the_first_and_to_the_last_that_moves() -> None:
    account = Account()
    first, second = Carried(1, "web-1"), Carried(2, "web-1")
    for one in (first, second):
        account.opened(one)
    account.fault("cut")
    account.healed("cut")
    (recovery,) = account.recoveries
    account.progress(first, 10)
    assert recovery.first is not None
    assert recovery.every is None
    account.close(second, EXACT)
    assert recovery.every is not None
    assert recovery.every >= recovery.first
    assert "| cut " in report(account).table()
    assert report(account).as_json()["recovery"]["cut"]["everyMax"] >= 0


async def test_a_duplex_ends_with_the_verdict_of_the_target() -> None:
    server = await asyncio.start_server(program.command, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    reader, writer = await asyncio.open_connection(*address)
    writer.write(f"duplex 3 {SIZE} 0\n".encode())
    await program.send(writer, 6, SIZE, 0)
    writer.write_eof()
    await reader.readline()
    check = program.Check(7, SIZE)
    check.feed(await reader.readexactly(SIZE))
    assert check.complete
    assert await reader.read() == b"ok\n"
    writer.close()
    server.close()
    assert program.outcomes[-1] == "3 ok"
