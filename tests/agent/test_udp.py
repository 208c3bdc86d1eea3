"""What dialling does not show of a connected UDP socket."""

from __future__ import annotations

import asyncio
import socket

import pytest

from agent.dial import dial_udp
from agent.losses import Losses
from agent.udp import UdpSocket
from tests import rig


async def test_what_the_kernel_does_not_take_is_dropped() -> None:
    gone = asyncio.Event()
    async with rig.udp_echo() as port:
        sock = await dial_udp(rig.HOST, port, 5.0, lambda data: None, gone.set)

        class Full:
            def send(self, data: bytes) -> None:
                raise BlockingIOError

        sock._sock = Full()  # type: ignore[assignment]
        sock.send(b"x")
        sock.close()
        await asyncio.sleep(0)
    assert not gone.is_set()


async def test_after_its_end_it_tells_nothing() -> None:
    def fail(*_: object) -> None:
        pytest.fail("told")

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as raw:
        sock = UdpSocket(raw, fail, fail, Losses())
        sock.close()
        sock.datagram_received(b"x", None)
        sock.error_received(ConnectionRefusedError())
