"""Engine: the transports of the connections to the cluster, aiofastnet's or asyncio's.

aiofastnet (`pip install 'krelay[speed]'`) does TLS with less CPU than asyncio. krelay calls it for
the connections that it dials. Nothing of the process or of an event loop is replaced, so a program
that uses krelay as a library keeps its transports.

Accepted connections stay with asyncio: with aiofastnet they cost no less CPU, and 4 KiB more memory
each.

aiofastnet 1.2 has faults, which krelay works around here:

- It begins to read a connection after `connection_made`, even if that paused reading or closed the
  connection: the loop then spins, or keeps a closed descriptor. So a connection gets its protocol
  when it is read already.
- Its TLS calls OpenSSL without Python's objects. A context with a key log (SSLKEYLOGFILE) needs
  them, and would crash the process: it gets asyncio's TLS.
- Each handshake writes the peer's certificate to a temporary file. If that fails, asyncio's
  transports serve from then on.
- It reports a peer that ends the connection during the handshake to the loop's exception handler,
  passes names to OpenSSL without IDNA, and words their mismatch otherwise than `ssl` does.
- Its TLS fails if a callback replaces a protocol by one of the other kind (buffered or not). No
  protocol of krelay does.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import ssl
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar, cast

from krelay.net import tls_in_tls
from krelay.threads import in_thread_or_here

logger = logging.getLogger("krelay.engine")

VARIABLE = "KRELAY_ENGINE"
"""The environment variable that names the engine: `auto`, or `asyncio` to do without aiofastnet."""

_MINIMUM, _LIMIT = (1, 2), (2, 0)  # the versions of aiofastnet that krelay knows: from, below
_MISMATCHES = {62: "Hostname mismatch", 64: "IP address mismatch"}  # X509_V_ERR_*, as `ssl` says it
_FILE_ERRORS = (
    errno.EACCES,
    errno.EDQUOT,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOENT,
    errno.ENOSPC,
    errno.EROFS,
)

_ProtocolT = TypeVar("_ProtocolT", bound=asyncio.BaseProtocol)


@dataclass(frozen=True, slots=True)
class Engine:
    """`reason` says why aiofastnet does not serve; empty if it does, or is not installed."""

    name: str = "asyncio"
    reason: str = ""
    module: ModuleType | None = None


_chosen: Engine | None = None
_lock = threading.Lock()


def choose() -> Engine:
    """Return the engine of this process. The first call chooses it, and blocks for moments."""
    global _chosen
    with _lock:
        if _chosen is None:
            _chosen = _find(os.environ.get(VARIABLE) or "auto")
            if _chosen.reason:
                logger.warning("asyncio's transports are used: %s", _chosen.reason)
            logger.info("the connections to the cluster use %s", _chosen.name)
        return _chosen


async def create_connection(
    factory: Callable[[], _ProtocolT], address: str, port: int, family: int
) -> tuple[asyncio.Transport, _ProtocolT]:
    """Connect to an IP address, like the event loop's method.

    Raises:
        OSError: no connection.
    """
    loop = asyncio.get_running_loop()
    engine = _chosen
    if engine is None:
        engine = await in_thread_or_here(choose)
    if engine.module is None:
        return await loop.create_connection(factory, address, port, family=family)
    try:
        transport, _ = await engine.module.create_connection(
            loop, asyncio.Protocol, address, port, family=family
        )
    except OSError:
        raise
    except Exception as exc:
        raise _give_up(exc) from exc
    protocol = factory()
    transport.set_protocol(protocol)
    try:
        protocol.connection_made(transport)
    except BaseException:
        transport.abort()
        raise
    return transport, protocol


async def start_tls(
    transport: asyncio.Transport,
    protocol: asyncio.BaseProtocol,
    context: ssl.SSLContext,
    server_hostname: str,
) -> asyncio.Transport | None:
    """Continue a connection made by `create_connection` in TLS, like the event loop's method.

    Raises:
        ssl.SSLError: the peer does not speak TLS, or its certificate is not trusted.
        OSError: the connection failed.
        ValueError: no certificate can have this name.
    """
    loop = asyncio.get_running_loop()
    engine = _chosen or Engine()
    if engine.module is None or context.keylog_filename is not None:
        tls_in_tls.mend()
        # asyncio asks this of a transport below its TLS; aiofastnet's may be one.
        transport._start_tls_compatible = True  # type: ignore[attr-defined]
        return await loop.start_tls(transport, protocol, context, server_hostname=server_hostname)
    name = server_hostname.encode("idna").decode() if server_hostname else server_hostname
    try:
        started = await engine.module.start_tls(
            _Loop(loop), transport, protocol, context, server_hostname=name
        )
    except ssl.SSLCertVerificationError as exc:
        if kind := _MISMATCHES.get(exc.verify_code):
            exc.verify_message = f"{kind}, certificate is not valid for '{name}'."
        raise
    except (ssl.SSLError, ValueError):
        raise
    except OSError as exc:
        if exc.errno in _FILE_ERRORS:
            _give_up(exc)
        raise
    except Exception as exc:
        raise _give_up(exc) from exc
    return cast(asyncio.Transport, started)


class _Loop:
    """The event loop as aiofastnet's TLS uses it.

    The end of a connection during the handshake reaches the exception handler as a class, which it
    cannot log; `start_tls` raises it anyway.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), type):
            self._loop.call_exception_handler(context)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


def _find(wanted: str) -> Engine:
    if wanted == "asyncio":
        return Engine()
    if wanted != "auto":
        logger.warning("%s cannot be %r; it is `auto` or `asyncio`", VARIABLE, wanted)
    try:
        import aiofastnet
    except ModuleNotFoundError as exc:
        if exc.name == "aiofastnet":
            return Engine()
        return Engine(reason=f"aiofastnet cannot be imported: {exc}")
    except Exception as exc:
        return Engine(reason=f"aiofastnet cannot be imported: {exc}")
    version = str(getattr(aiofastnet, "__version__", "?"))
    if not _MINIMUM <= _numbers(version) < _LIMIT:
        return Engine(reason=f"aiofastnet {version} does not fit; 1.2 or a later 1.x does")
    if aiofastnet.OPENSSL_DYN_LIBS is None:
        return Engine(reason="this Python has OpenSSL built in, which aiofastnet cannot call")
    try:
        tempfile.gettempdir()
    except OSError as exc:
        return Engine(reason=f"aiofastnet needs a directory for temporary files: {exc.strerror}")
    return Engine(name=f"aiofastnet {version}", module=aiofastnet)


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split(".")[:2]
    return tuple(int(part) for part in parts) if all(map(str.isdecimal, parts)) else ()


def _give_up(cause: Exception) -> OSError:
    """Use asyncio from now on, since `cause` is aiofastnet's failure, not the peer's."""
    global _chosen
    with _lock:
        if _chosen is not None and _chosen.module is not None:
            reason = f"aiofastnet failed: {cause or type(cause).__name__}"
            _chosen = Engine(reason=reason)
            logger.warning("asyncio's transports are used from now on: %s", reason)
    return OSError(f"aiofastnet failed: {cause or type(cause).__name__}")
