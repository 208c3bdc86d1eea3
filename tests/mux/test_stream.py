"""A handle on a stream that has gone does nothing, whatever it is asked."""

from __future__ import annotations

from krelay.wire.errors import ErrorCode
from tests.mux.pair import pair


async def test_a_closed_stream_is_deaf() -> None:
    async with pair() as both:
        near, near_ear, far, far_ear = await both.stream()
        near.reset(ErrorCode.CANCELLED)
        await far_ear.until("reset CANCELLED")
        before = list(far_ear.said)
        assert near.write(b"x")
        near.end()
        near.consume(10)
        assert not near.datagram(b"x")
        near.refuse(ErrorCode.REFUSED, "late")
        near.reset()
        other, _, _, other_ear = await both.stream()
        other.write(b"y")
        await other_ear.until_size(1)
        assert far_ear.said == before
        assert near_ear.said == ["accepted"]
