"""A handle on a stream that has gone does nothing, whatever it is asked."""

from __future__ import annotations

from krelay.mux.stream import SESSION_HIGH_WATER
from krelay.wire.errors import ErrorCode
from tests import rig
from tests.mux.pair import pair


async def test_calls_on_a_closed_stream_do_nothing() -> None:
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


async def test_many_stalled_streams_queue_little_each() -> None:
    """While the tunnel is lost, targets go on sending; the queued bytes are bounded in all."""
    async with pair() as both:
        streams = [await both.stream() for _ in range(200)]
        for tunnel in both.tunnels:
            tunnel.transport.abort()
        await rig.until(lambda: not both.agent.attached)
        for _, _, far, _ in streams:
            while far.write(bytes(16 << 10)):
                pass
        queued = both.agent.session.queued
        assert queued == sum(s.queued for s in both.agent.session.streams.values())
        assert queued <= SESSION_HIGH_WATER + 200 * (16 << 10)
        for _, _, far, _ in streams:
            far.reset()
        assert both.agent.session.queued == 0
