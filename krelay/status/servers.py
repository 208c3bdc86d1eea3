"""The listeners of the status API: the unix socket of each run, and TCP if the file asks for it.

The HTTP server is imported when a listener opens: most commands need none.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from krelay.errors import KrelayError, ListenError
from krelay.model import Endpoint, StatusConfig
from krelay.net.bind import BACKLOG, bind
from krelay.state.bus import EventBus
from krelay.state.snapshot import Snapshot
from krelay.status import Handler
from krelay.status.socket_path import make_directory
from krelay.tasks import TaskGroup, keep
from krelay.threads import in_thread, in_thread_or_here

if TYPE_CHECKING:
    from krelay.status.connections import Connections

logger = logging.getLogger("krelay.status")


class AlreadyRunningError(KrelayError):
    """Another krelay runs this file."""


# -- the unix socket -------------------------------------------------------------------------------


@asynccontextmanager
async def serve_unix(
    path: Path,
    handlers: Mapping[tuple[str, str], Handler],
    *,
    file: str = "",
    snapshot: Callable[[], Awaitable[Snapshot]] | None = None,
    bus: EventBus | None = None,
    begin: Callable[[], Awaitable[object]] | None = None,
) -> AsyncIterator[None]:
    """Serve on the socket at `path` until the block is left; a lock keeps it to one process.

    `handlers`, `snapshot` and `bus` are those of `application`. The HTTP server is imported beside
    the block, after `begin` if that is given; requests wait in the socket's backlog until then.
    The lock names `file` for `krelay ps`.

    Raises:
        AlreadyRunningError: another process holds the lock.
        KrelayError: the socket cannot be created.
    """
    sock, lock = await in_thread(lambda: _claim(path, file))

    async def serve() -> None:
        if begin is not None:
            await begin()
        await in_thread(_import)
        from krelay.status.app import application
        from krelay.status.connections import TRUSTED, Connections, connection_limit

        app = application(handlers, snapshot=snapshot, bus=bus)
        connections = Connections(app, trusted=connection_limit(TRUSTED))
        try:
            await connections.serve([sock])
            await asyncio.get_running_loop().create_future()
        finally:
            await connections.close()

    try:
        async with TaskGroup() as tasks:
            serving = tasks.create_task(keep(serve, "the control socket"), name="control socket")
            try:
                yield
            finally:
                serving.cancel()
    finally:
        sock.close()
        await in_thread_or_here(lambda: _release(path, lock))


def _import() -> None:
    from krelay.status import app  # noqa: F401


def _claim(path: Path, file: str) -> tuple[socket.socket, int]:
    """Return a socket that only its owner may connect to, and the descriptor of the lock."""
    make_directory(path)
    lock = _lock(path.with_suffix(".lock"), file)
    try:
        # Without its lock, a socket there is left over from a process that was killed.
        path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.bind(str(path))
            path.chmod(0o600)
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
    except OSError as exc:
        os.close(lock)
        raise KrelayError(f"cannot listen on {path}: {exc.strerror}") from exc
    return sock, lock


def _lock(path: Path, file: str) -> int:
    """Lock the file at `path`, write the owner and `file` into it, and return its descriptor."""
    import fcntl

    while True:
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise KrelayError(f"cannot open {path}: {exc.strerror}") from exc
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = path.exists() and os.path.samestat(path.stat(), os.fstat(lock))
        except OSError:
            owner = os.read(lock, 200).decode(errors="replace").partition("\n")[0]
            os.close(lock)
            raise AlreadyRunningError(
                f"krelay is already running for this file{owner and f' ({owner})'}",
                hint="`krelay status` shows it, `krelay down` ends it",
            ) from None
        if mine:
            break
        os.close(lock)  # its previous owner has just removed it
    os.ftruncate(lock, 0)
    owner = f"pid {os.getpid()}, since {datetime.now():%Y-%m-%d %H:%M:%S}\n"
    os.write(lock, owner.encode() + os.fsencode(os.path.abspath(file) if file else ""))
    return lock


def _release(path: Path, lock: int) -> None:
    path.unlink(missing_ok=True)
    path.with_suffix(".lock").unlink(missing_ok=True)
    os.close(lock)


# -- TCP -------------------------------------------------------------------------------------------


class TcpServer:
    """Serves on the address of the `status` section, and follows its edits.

    Relaying never depends on it: an address that cannot be bound is logged, and tried again after
    the next edit.
    """

    def __init__(
        self,
        handlers: Mapping[tuple[str, str], Handler],
        *,
        snapshot: Callable[[], Awaitable[Snapshot]],
        bus: EventBus,
    ) -> None:
        self._handlers = handlers
        self._snapshot = snapshot
        self._bus = bus
        self._config = StatusConfig()
        self._connections: Connections | None = None
        self.addresses: list[Endpoint] = []
        """The addresses that it listens on."""

    async def apply(self, config: StatusConfig) -> None:
        """Serve as `config` says; an unchanged one leaves open connections alone."""
        if config == self._config and (self.addresses or config.listen is None):
            return
        await self.aclose()
        self._config = config
        if config.listen is None:
            return
        try:
            await self._open(config, *config.listen)
        except ListenError as exc:
            where, cause = Endpoint(*config.listen), exc.__cause__
            logger.warning(
                "status is not served on %s until the next edit of the file: %s",
                where,
                cause.strerror if isinstance(cause, OSError) and cause.strerror else exc,
            )
            return
        logger.info("status: http://%s/", self.addresses[0])

    async def aclose(self) -> None:
        """Close the listener and its connections."""
        self.addresses = []
        connections, self._connections = self._connections, None
        if connections is not None:
            await connections.close()

    async def _open(self, config: StatusConfig, address: str, port: int) -> None:
        from krelay.status.app import application
        from krelay.status.auth import Authenticator
        from krelay.status.connections import STRANGERS, TRUSTED, Connections, connection_limit

        app = application(
            self._handlers,
            snapshot=self._snapshot,
            bus=self._bus,
            authenticator=Authenticator(config),
        )
        socks = bind(address, port, socket.SOCK_STREAM)
        self._connections = Connections(
            app, strangers=connection_limit(STRANGERS), trusted=connection_limit(TRUSTED)
        )
        await self._connections.serve(socks)
        self.addresses = [Endpoint(*sock.getsockname()[:2]) for sock in socks]
