"""What one client's reads are allowed."""

from __future__ import annotations

from agent.budget import MemoryBudget
from agent.client import READ, Client, ReadBuffer


def test_what_waits_in_a_session_counts_until_it_is_over() -> None:
    budget = MemoryBudget(8 << 20)
    held = 1 << 20
    client = Client(budget, lambda: held)
    assert client.allows(READ)
    assert budget.left == 7 << 20
    held = 3 << 20
    assert not client.allows(READ)
    assert client.room == 0
    assert not client.allows(1)
    client.release()
    client.settle()
    assert budget.left == budget.size


def test_parts_of_the_read_buffer_are_the_same_memory() -> None:
    buffer = ReadBuffer()
    buffer.part(4)[:] = b"abcd"
    assert bytes(buffer.part(2)) == b"ab"
    assert len(buffer.part(READ)) == READ
