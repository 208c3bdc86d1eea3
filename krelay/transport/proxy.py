"""Proxy: asks an HTTP or SOCKS5 proxy for the way to an API server, before its TLS."""

from __future__ import annotations

from base64 import b64encode
from urllib.parse import SplitResult, unquote, urlunsplit

from krelay.net import socks
from krelay.transport import http
from krelay.transport.handshake_stream import HandshakeStream


class ProxyError(OSError):
    """The proxy says no."""


async def http_connect(dialogue: HandshakeStream, via: SplitResult, host: str, port: int) -> None:
    """CONNECT (RFC 9110, section 9.3.6), with the user's name and password of the proxy's URL.

    Raises:
        ProxyError: refused.
        OSError, EOFError: as the dialogue.
    """
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    headers = [("Host", authority)]
    if via.username is not None:
        pair = f"{unquote(via.username)}:{unquote(via.password or '')}"
        headers.append(("Proxy-Authorization", f"Basic {b64encode(pair.encode()).decode()}"))
    dialogue.write(http.request("CONNECT", authority, headers))
    answer = await http.read_answer(dialogue)
    if answer.status == 407:
        raise ProxyError("it wants a user name and a password (407)")
    if answer.status // 100 != 2:
        raise ProxyError(f"it answers {answer.status} to CONNECT {authority}")


async def socks_connect(dialogue: HandshakeStream, via: SplitResult, host: str, port: int) -> None:
    """SOCKS5; the proxy resolves the name.

    Raises:
        ProxyError: refused.
        OSError, EOFError: as the dialogue.
    """
    steps = socks.handshake(urlunsplit(via), host, port)
    try:
        data, wanted = next(steps)
        while True:
            if data:
                dialogue.write(data)
            data, wanted = steps.send(await dialogue.read_exactly(wanted))
    except StopIteration:
        return
    except socks.SocksError as exc:
        raise ProxyError(str(exc)) from exc
