"""SOCKS: how aiohttp's connections get through a SOCKS5 proxy, which it takes for an HTTP one."""

from __future__ import annotations

import functools
import socket
import ssl
from urllib.parse import urlsplit

import aiohttp
from aiohttp.client_proto import ResponseHandler

from krelay.net.dns import lookup
from krelay.net.socks import SocksError, handshake


@functools.cache
def _default_context() -> ssl.SSLContext:
    return ssl.create_default_context()


class SocksConnector(aiohttp.BaseConnector):
    """Opens every connection through the SOCKS5 proxy at `proxy`, a URL; without a limit."""

    def __init__(self, proxy: str) -> None:
        super().__init__(limit=0)
        self._proxy = proxy

    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: object, timeout: object
    ) -> ResponseHandler:
        """aiohttp's hook for its connectors; the deadline is `connect`'s, around this call."""
        host, port = req.url.raw_host or "", req.url.port or 443
        context: ssl.SSLContext | None = None
        if req.is_ssl():
            context = req.ssl if isinstance(req.ssl, ssl.SSLContext) else _default_context()
        sock = await self._dial()
        try:
            await self._ask(sock, host, port)
            _, protocol = await self._loop.create_connection(
                self._factory,
                sock=sock,
                ssl=context,
                server_hostname=(req.server_hostname or host) if context else None,
            )
        except BaseException:
            sock.close()
            raise
        return protocol

    async def _dial(self) -> socket.socket:
        parts = urlsplit(self._proxy)
        found = await lookup(parts.hostname or "")
        for left, (family, address) in enumerate(found, 1 - len(found)):
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            try:
                await self._loop.sock_connect(sock, (address, parts.port or 1080))
            except BaseException as exc:
                sock.close()
                if left == 0 or not isinstance(exc, OSError):
                    raise
            else:
                return sock
        raise socket.gaierror(f"no address for {parts.hostname}")

    async def _ask(self, sock: socket.socket, host: str, port: int) -> None:
        steps = handshake(self._proxy, host, port)
        try:
            data, wanted = next(steps)
            while True:
                await self._loop.sock_sendall(sock, data)
                data, wanted = steps.send(await self._exactly(sock, wanted))
        except StopIteration:
            return
        except SocksError as exc:
            raise ConnectionError(f"the SOCKS5 proxy says: {exc}") from exc

    async def _exactly(self, sock: socket.socket, wanted: int) -> bytes:
        got = b""
        while len(got) < wanted:
            chunk = await self._loop.sock_recv(sock, wanted - len(got))
            if not chunk:
                raise SocksError("nothing: it closed the connection")
            got += chunk
        return got
