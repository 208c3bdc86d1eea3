"""How streams come to be; what listeners make of it is in their own tests."""

from __future__ import annotations

import asyncio

import pytest

from krelay.datapath.opening import open_now, open_parked
from krelay.model import Endpoint, Protocol, Resolution
from krelay.mux.relay import TcpRelay
from krelay.wire.errors import ErrorCode, ProtocolError
from krelay.wire.session import Limits
from tests import rig


async def test_a_stream_carries_its_endpoint_in_the_header() -> None:
    async with rig.path() as path:
        for protocol, number in ((Protocol.TCP, 0), (Protocol.UDP, 1)):
            stream = open_now(path.route(80, protocol, "::1"), protocol, TcpRelay())
            assert stream is not None
            header = stream.header
            assert (header.protocol, header.host, header.port) == (number, "::1", 80)
            stream.reset()
        await rig.until(lambda: path.streams == (0, 0))


async def test_without_an_endpoint_or_a_tunnel_there_is_none() -> None:
    async with rig.path() as path:
        assert open_now(path.route(None), Protocol.TCP, TcpRelay()) is None
        path.way.cut(blocked=True)
        await rig.until(lambda: path.pool.pick() is None)
        assert open_now(path.route(80), Protocol.TCP, TcpRelay()) is None


async def test_a_full_session_is_a_protocol_error_also_for_who_waited() -> None:
    async with rig.path() as path:
        driver = path.pool.pick()
        assert driver is not None
        driver.session.limits = Limits(streams=0)
        with pytest.raises(ProtocolError) as caught:
            open_now(path.route(80), Protocol.TCP, TcpRelay())
        assert caught.value.code == ErrorCode.LIMIT
        with pytest.raises(ProtocolError):
            await open_parked(path.route(80), Protocol.TCP, TcpRelay(), 1.0)


async def test_waiting_ends_in_time() -> None:
    async with rig.path() as path:
        with pytest.raises(TimeoutError):
            await open_parked(path.route(None), Protocol.TCP, TcpRelay(), 0.01)


async def test_an_endpoint_that_goes_while_the_tunnel_comes_is_waited_for_again() -> None:
    async with rig.path() as path, rig.tcp_target(rig.hold) as target:
        route = path.route(rig.closed_port())
        path.way.cut(blocked=True)
        await rig.until(lambda: path.pool.pick() is None)
        async with asyncio.TaskGroup() as tasks:
            parked = tasks.create_task(open_parked(route, Protocol.TCP, TcpRelay(), 3600.0))
            await asyncio.sleep(0)
            route.update(Resolution(Protocol.TCP, None, reason="gone"))
            path.way.blocked = False
            await rig.until(path.pool.pick)
            assert not parked.done()
            route.update(Resolution(Protocol.TCP, Endpoint(rig.HOST, target)))
        assert parked.result().header.port == target
        parked.result().reset()


async def test_after_a_refusal_a_route_that_leads_elsewhere_is_taken_at_once() -> None:
    async with rig.path() as path, rig.tcp_target(rig.hold) as target:
        refused = Endpoint(rig.HOST, 1)
        route = path.route(target)
        stream = await open_parked(route, Protocol.TCP, TcpRelay(), 3600.0, after=refused)
        assert stream.header.port == target
        stream.reset()
