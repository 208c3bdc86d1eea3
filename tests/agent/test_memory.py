"""The memory limit, the budget of all clients, and what each client may hold and read."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import memory
from agent.memory import FLOOR, READ, Client, MemoryBudget, ReadBuffer

MIB = 1 << 20


def written(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, 256),
        ({"sys__fs__cgroup__memory_dot_max": f"{128 * MIB}\n"}, 128),
        ({"sys__fs__cgroup__memory_dot_max": "max\n"}, 256),
        ({"sys__fs__cgroup__memory_dot_max": f"{64 << 30}\n"}, 1024),
        ({"sys__fs__cgroup__memory__memory_dot_limit_in_bytes": f"{100 * MIB}\n"}, 100),
        ({"sys__fs__cgroup__memory__memory_dot_limit_in_bytes": "9223372036854771712\n"}, 256),
        (
            {
                "proc__self__cgroup": "0::/a/b\n",
                "sys__fs__cgroup__a__b__memory_dot_max": "max\n",
                "sys__fs__cgroup__a__memory_dot_max": f"{200 * MIB}\n",
            },
            200,
        ),
        (
            {
                "proc__self__cgroup": "5:cpu:/x\n4:memory:/pod\n",
                "sys__fs__cgroup__memory__pod__memory_dot_limit_in_bytes": f"{90 * MIB}\n",
            },
            90,
        ),
    ],
)
def test_the_smallest_limit_counts(files: dict[str, str], limit: int, tmp_path: Path) -> None:
    assert memory.memory_limit({}, written(tmp_path, **files)) == limit * MIB


def test_the_environment_may_lower_the_limit(tmp_path: Path) -> None:
    root = written(tmp_path, sys__fs__cgroup__memory_dot_max=f"{128 * MIB}")
    assert memory.memory_limit({memory.ENV: str(96 * MIB)}, root) == 96 * MIB
    assert memory.memory_limit({memory.ENV: str(900 * MIB)}, root) == 128 * MIB
    with pytest.raises(ValueError):
        memory.memory_limit({memory.ENV: "a lot"}, root)


def test_the_budget_leaves_a_fifth_of_the_limit() -> None:
    assert memory.budget_for(256 * MIB) + memory.BASE == 256 * MIB * 4 // 5
    assert memory.budget_for(16 * MIB) == memory.MIN_BUDGET


KIB = 1 << 10


@given(
    st.integers(0, 4_000),
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["release", "admit"]) | st.integers(0, 900))
    ),
)
def test_reservations_are_fair_and_all_of_them_come_back(
    size: int, steps: list[tuple[int, int | str]]
) -> None:
    budget = MemoryBudget(size * KIB)
    clients = [Client(budget) for _ in range(3)]
    holders = [client.reserve() for client in clients]
    for number, step in steps:
        client, holder = clients[number], holders[number]
        if step == "release":
            holder.release()
        elif step == "admit":
            fits = client.held + 20 * KIB <= budget.free
            assert holder.admit(10 * KIB) == fits
        elif isinstance(step, int):
            more = step * KIB
            fair = client.held + 2 * more <= budget.free
            low = client.held - client.fixed + more <= FLOOR
            assert holder.take(more) == (fair or low)
        assert budget.left == budget.size - sum(holder.size for holder in holders)
    for holder in holders:
        holder.release()
    assert budget.left == budget.size
    assert [(client.held, client.fixed) for client in clients] == [(0, 0)] * 3


def test_a_greedy_client_leaves_memory_for_the_next() -> None:
    budget = MemoryBudget(64 << 20)
    got = []
    for _ in range(4):
        client = Client(budget)
        holder = client.reserve()
        while client.allows(1024):
            holder.set(holder.size + 1024)
        assert client.available < 1024
        assert holder.admit(1 << 20), "new streams have their part"
        got.append(holder.size)
    assert got == sorted(got, reverse=True)
    assert got[0] <= budget.size // 3 + (1 << 20)
    assert got[-1] > 2 << 20


def test_every_client_has_its_floor() -> None:
    budget = MemoryBudget(64 << 20)
    Client(budget).reserve().set(63 << 20)
    client = Client(budget)
    connection, waiting = client.reserve(), client.reserve()
    assert not connection.admit(1)
    connection.fix(1 << 20)
    assert waiting.take(FLOOR)
    assert not waiting.take(1)


def test_a_session_s_first_streams_and_floor_are_kept_for_it() -> None:
    budget = MemoryBudget(64 << 20)
    client = Client(budget, first=2 << 20)
    kept = (2 << 20) + FLOOR
    assert budget.left == budget.size - kept
    Client(budget).reserve().set(budget.left)
    stream, another, waiting = client.reserve(), client.reserve(), client.reserve()
    assert stream.admit(2 << 20)
    assert not another.admit(1)
    assert waiting.take(FLOOR)
    assert not waiting.take(1)
    assert budget.left == 0
    client.close()
    assert budget.left == 0
    stream.release()
    waiting.release()
    assert budget.left == kept


def test_bytes_past_the_budget_are_counted() -> None:
    budget = MemoryBudget(1000)
    client = Client(budget)
    holder = client.reserve()
    holder.set(5000)
    assert (budget.left, client.available, client.admits(0)) == (-4000, 0, False)
    holder.set(10)
    assert budget.left == 990


def test_waiting_bytes_of_a_session_count_until_it_closes() -> None:
    budget = MemoryBudget(8 << 20)
    held = 1 << 20
    client = Client(budget, lambda: held)
    assert client.allows(READ)
    assert budget.left == 7 << 20
    held = 3 << 20
    assert not client.allows(READ)
    assert client.available == 0
    assert not client.allows(1)
    client.close()
    client.settle()
    assert budget.left == budget.size


def test_parts_of_the_read_buffer_are_the_same_memory() -> None:
    buffer = ReadBuffer()
    buffer.part(4)[:] = b"abcd"
    assert bytes(buffer.part(2)) == b"ab"
    assert len(buffer.part(READ)) == READ
