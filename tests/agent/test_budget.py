"""What is reserved comes back, and no client takes what others need."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.budget import FLOOR, MemoryBudget

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
    shares = [budget.share() for _ in range(3)]
    holders = [share.reserve() for share in shares]
    for number, step in steps:
        share, holder = shares[number], holders[number]
        if step == "release":
            holder.release()
        elif step == "admit":
            fits = share.held + 20 * KIB <= budget.free
            assert holder.admit(10 * KIB) == fits
        elif isinstance(step, int):
            more = step * KIB
            fair = share.held + 2 * more <= budget.free
            low = share.held - share.fixed + more <= FLOOR
            assert holder.take(more) == (fair or low)
        assert budget.left == budget.size - sum(holder.size for holder in holders)
    for holder in holders:
        holder.release()
    assert budget.left == budget.size
    assert [(share.held, share.fixed) for share in shares] == [(0, 0)] * 3


def test_a_client_that_takes_all_it_may_leaves_room_for_the_next() -> None:
    budget = MemoryBudget(64 << 20)
    got = []
    for _ in range(4):
        share = budget.share()
        holder = share.reserve()
        while share.allows(1024):
            holder.set(holder.size + 1024)
        assert share.room < 1024
        assert holder.admit(1 << 20), "new streams have their part"
        got.append(holder.size)
    assert got == sorted(got, reverse=True)
    assert got[0] <= budget.size // 3 + (1 << 20)
    assert got[-1] > 2 << 20


def test_every_client_has_its_floor() -> None:
    budget = MemoryBudget(64 << 20)
    budget.share().reserve().set(63 << 20)
    share = budget.share()
    connection, waiting = share.reserve(), share.reserve()
    assert not connection.admit(1)
    connection.fix(1 << 20)
    assert waiting.take(FLOOR)
    assert not waiting.take(1)


def test_a_session_s_first_streams_and_floor_are_kept_for_it() -> None:
    budget = MemoryBudget(64 << 20)
    share = budget.share(first=2 << 20)
    kept = (2 << 20) + FLOOR
    assert budget.left == budget.size - kept
    budget.share().reserve().set(budget.left)
    stream, another, waiting = share.reserve(), share.reserve(), share.reserve()
    assert stream.admit(2 << 20)
    assert not another.admit(1)
    assert waiting.take(FLOOR)
    assert not waiting.take(1)
    assert budget.left == 0
    share.close()
    assert budget.left == 0
    stream.release()
    waiting.release()
    assert budget.left == kept


def test_what_came_unasked_is_counted_even_past_the_budget() -> None:
    budget = MemoryBudget(1000)
    share = budget.share()
    holder = share.reserve()
    holder.set(5000)
    assert (budget.left, share.room, share.allows(0), share.admits(0)) == (-4000, 0, False, False)
    holder.set(10)
    assert budget.left == 990
