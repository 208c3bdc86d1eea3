"""Attach: one try to have a tunnel carry a session: dial, handshake, and what a no means."""

from __future__ import annotations

import asyncio
import secrets

from krelay.datapath.agent_link import AgentLink
from krelay.errors import TunnelError, TunnelRefusedError
from krelay.mux.connection import ClientTunnelProtocol, MuxConnection
from krelay.wire.errors import ErrorCode, HandshakeError
from krelay.wire.handshake import NONCE_SIZE, ClientHandshake, Resume, Welcome

_HANDSHAKE_TIMEOUT = 10.0


class LegacyAgentError(Exception):
    """The agent speaks plain mode only."""


class SessionGoneError(TunnelError):
    """The agent does not know the session that was to go on."""


async def attach(
    driver: MuxConnection, way: AgentLink, key: bytes, former: Welcome | None
) -> Welcome:
    """Have a new tunnel carry `driver`'s session; `former` is what the agent said when it was last
    carried, None for a session that begins. One that a tunnel carries now moves when the agent
    agrees, and stays where it is if this fails.

    Raises:
        LegacyAgentError: the agent knows no sessions.
        SessionGoneError: it does not know this one any more.
        TunnelError: no tunnel; TunnelRefusedError: nor will there be.
        ProtocolError: the two ends do not agree on what was received: the session is over.
        KrelayError, OSError: as the dial.
    """
    resume = None
    if former is not None:
        resume = Resume(former.session_id, former.session_key, driver.session.begin_resume)
    handshake = ClientHandshake(
        key, secrets.token_bytes(NONCE_SIZE), resume=resume, private=way.private
    )
    link = ClientTunnelProtocol(driver, handshake)
    try:
        transport = await way.dial(link)
        try:
            async with asyncio.timeout(_HANDSHAKE_TIMEOUT):
                return await link.welcome
        except BaseException:
            transport.abort()
            raise
    except TimeoutError as exc:
        raise TunnelError(f"no answer from the agent within {_HANDSHAKE_TIMEOUT:g} s") from exc
    except HandshakeError as exc:
        if exc.code is ErrorCode.UNKNOWN_SESSION:
            raise SessionGoneError("the agent does not know the session") from exc
        if exc.code is ErrorCode.UNKNOWN_PROTOCOL:
            raise LegacyAgentError from exc
        if exc.code in (ErrorCode.DENIED, ErrorCode.VERSION):
            raise TunnelRefusedError(f"the agent refused the tunnel: {exc}") from exc
        raise TunnelError(f"no session with the agent: {exc}") from exc
    finally:
        driver.session.abort_resume()
        link.welcome.cancel()
        if link.welcome.done() and not link.welcome.cancelled():
            link.welcome.exception()
