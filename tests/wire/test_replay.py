from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.wire.errors import ProtocolError
from krelay.wire.replay import FRAME_COST, ReceiveCounter, ReplayBuffer


def sent(count: int) -> ReplayBuffer:
    kept = ReplayBuffer()
    for number in range(count):
        assert kept.keep((b"head", bytes(number))) == 4 + number
    return kept


def test_acknowledged_frames_are_dropped() -> None:
    kept = sent(3)
    assert (len(kept), kept.cost) == (3, 3 * (FRAME_COST + 4) + 3)
    kept.acknowledge(2)
    assert (len(kept), kept.acked, kept.cost) == (1, 2, FRAME_COST + 6)
    kept.acknowledge(2)
    kept.acknowledge(3)
    assert (len(kept), kept.cost) == (0, 0)


@pytest.mark.parametrize("count", [0, 4])
def test_an_impossible_acknowledgement_is_a_protocol_error(count: int) -> None:
    kept = sent(3)
    kept.acknowledge(1)
    with pytest.raises(ProtocolError, match=f"ACK of {count} frames after 1"):
        kept.acknowledge(count)


def test_a_new_tunnel_carries_the_frames_that_the_peer_lacks() -> None:
    kept = sent(4)
    kept.acknowledge(1)
    assert kept.rewind(2) == 4 + 2 + 4 + 3
    assert [len(frame[1]) for frame in kept.resend] == [2, 3]
    with pytest.raises(ProtocolError, match="ACK of 3"):
        kept.acknowledge(3)  # it is not sent again yet
    kept.resend.popleft()
    kept.acknowledge(3)
    for count in (2, 5):
        with pytest.raises(ProtocolError, match=f"the peer has {count} frames, kept are 1 from 3"):
            kept.rewind(count)


def test_frames_after_begin_resume_are_accepted_once() -> None:
    came = ReceiveCounter()
    assert [came.accept_frame(), came.accept_frame()] == [True, True]
    assert came.begin_resume() == 2
    assert came.accept_frame()  # by the old tunnel
    assert (came.count, came.acknowledged) == (3, 2)
    came.resumed()
    assert (came.count, came.acknowledged) == (3, 2)
    assert not came.accept_frame()  # the same by the new one
    assert came.accept_frame()
    assert (came.count, came.acknowledged) == (4, 4)


def test_an_aborted_resume_acknowledges_everything_again() -> None:
    came = ReceiveCounter()
    came.begin_resume()
    assert came.accept_frame()
    assert came.acknowledged == 0
    came.abort_resume()
    assert came.acknowledged == 1
    came.resumed()
    assert came.accept_frame()
    assert came.count == 2


@given(st.lists(st.sampled_from(["frame", "begin", "abort", "resumed"])))
def test_a_count_never_falls_and_no_acknowledgement_passes_the_resume_point(
    steps: list[str],
) -> None:
    """At any time an ACK is at most the count, and at most a resume point that may yet be used, so
    that the peer keeps the frames that it will have to repeat."""
    came, resume_from, counts = ReceiveCounter(), None, [0]
    for step in steps:
        if step == "frame":
            came.accept_frame()
        elif step == "begin":
            resume_from = came.begin_resume()
        elif step == "abort":
            came.abort_resume()
            resume_from = None
        else:
            came.resumed()
            resume_from = None
        counts.append(came.count)
        assert came.acknowledged <= came.count
        assert resume_from is None or came.acknowledged <= resume_from
    assert counts == sorted(counts)
