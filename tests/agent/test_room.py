"""What is taken comes back, whoever gives it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.room import Room
from krelay.wire.replay import FRAME_COST


@given(
    st.integers(0, 3000),
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["give", "all"]) | st.integers(0, 900))),
)
def test_no_more_is_taken_than_there_is_and_all_of_it_comes_back(
    size: int, steps: list[tuple[int, int | str]]
) -> None:
    room = Room(size)
    shares = [(room.share(), list[int]()) for _ in range(3)]
    for number, step in steps:
        share, taken = shares[number]
        if step == "all":
            share.give_all()
            taken.clear()
        elif step == "give" and taken:
            share.give(taken.pop())
        elif isinstance(step, int):
            room_for = room.left >= step + FRAME_COST
            assert share.take(step) == room_for
            if room_for:
                taken.append(step)
        assert room.left == size - sum(piece + FRAME_COST for _, taken in shares for piece in taken)
        assert room.left >= 0
    for share, _ in shares:
        share.give_all()
    assert room.left == size
