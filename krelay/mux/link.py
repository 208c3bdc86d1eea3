"""Link: one tunnel's asyncio protocol, from the handshake to the session's driver."""

from __future__ import annotations

import asyncio
from typing import cast

from krelay.mux.connection import MuxConnection
from krelay.mux.sockets import no_delay
from krelay.wire.errors import WireError
from krelay.wire.handshake import ClientHandshake, Welcome


class Link(asyncio.Protocol):
    """Hands what its transport says to the driver that it was given to, if any."""

    driver: MuxConnection | None = None
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        no_delay(transport)

    def data_received(self, data: bytes) -> None:
        if self.driver is not None:
            self.driver.receive(self.transport, data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.driver is not None:
            self.driver.lost(self.transport, exc)

    def pause_writing(self) -> None:
        if self.driver is not None:
            self.driver.pause_writing(self.transport)

    def resume_writing(self) -> None:
        if self.driver is not None:
            self.driver.resume_writing(self.transport)


class ClientLink(Link):
    """The client's end: await `welcome` after connecting, then `driver` has the tunnel."""

    def __init__(self, driver: MuxConnection, handshake: ClientHandshake) -> None:
        self._driver = driver
        self._handshake = handshake
        self.welcome: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.write(self._handshake.data_to_send())

    def data_received(self, data: bytes) -> None:
        if self.driver is not None:
            self.driver.receive(self.transport, data)
            return
        if self.welcome.done():
            return
        try:
            welcome = self._handshake.receive_data(data)
            if welcome is not None:
                self._driver.attach(self.transport, welcome.received)
                self._driver.session.version = self._handshake.version
        except WireError as exc:
            self.welcome.set_exception(exc)
            self.transport.abort()
            return
        if out := self._handshake.data_to_send():
            self.transport.write(out)
        if welcome is not None:
            self.driver = self._driver
            self.welcome.set_result(welcome)
            if welcome.rest:
                self.driver.receive(self.transport, welcome.rest)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.welcome.done():
            # No answer is not a no: it is worth another try.
            lost = exc or ConnectionResetError("the connection ended during the handshake")
            self.welcome.set_exception(lost)
        super().connection_lost(exc)
