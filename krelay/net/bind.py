"""Bind: open local sockets for forwards and for the status service, or say who holds their port.

`localhost` means both address families, or the one of them that can be bound.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Iterable, Sequence

from krelay.errors import ListenError
from krelay.model import Endpoint, Protocol

BACKLOG = 512
LOCALHOST = "localhost"
LOOPBACKS = ("127.0.0.1", "::1")
"""What `localhost` stands for."""
_RANDOM_PORT_TRIES = 20
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""This machine has no socket left, which says nothing about the address."""
_KRELAYS = frozenset({"krelay", "kubectl-relay"})
_WILDCARDS = ("0.0.0.0", "::")


def bind(listen: str, port: int, kind: socket.SocketKind) -> list[socket.socket]:
    """Return bound sockets, which listen if `kind` is SOCK_STREAM.

    `listen` is an address, or several with commas. Each has a socket, `localhost` one for each
    family in which the port is free; as in kubectl, one family is enough. Port 0 takes a port that
    is free at all of them.

    Raises:
        ListenError: an address cannot be bound; the message says why, the hint what to do.
    """
    for attempt in range(_RANDOM_PORT_TRIES, 0, -1):
        sockets: list[socket.socket] = []
        failures: list[OSError] = []
        fatal: list[tuple[str, OSError]] = []
        for address in listen.split(","):
            hosts = LOOPBACKS if address == LOCALHOST else (address,)
            failed: list[OSError] = []
            for host in hosts:
                taken = sockets[0].getsockname()[1] if sockets else port
                try:
                    sockets.append(_bind_one(host, taken, kind))
                except OSError as exc:
                    failed.append(exc)
            exhausted = [exc for exc in failed if exc.errno in _EXHAUSTED]
            if exhausted or len(failed) == len(hosts):
                fatal.append((address, (exhausted or failed)[0]))
            failures += failed
        in_use = {exc for exc in failures if exc.errno == errno.EADDRINUSE}
        elsewhere = port == 0 and sockets and in_use and in_use.issuperset(e for _, e in fatal)
        if elsewhere and attempt > 1:
            _close(sockets)
            continue
        if fatal:
            _close(sockets)
            address, cause = fatal[0]
            raise _listen_error(address, port, cause) from cause
        return sockets
    raise AssertionError("the last attempt returns or raises")


def unbound_loopback(listen: str, bound: Iterable[str]) -> str | None:
    """Return the address of `localhost` that this machine has but `bound` lacks; None if none."""
    wanted = LOOPBACKS if LOCALHOST in listen.split(",") else ()
    held = set(bound)
    return next((host for host in wanted if host not in held and _is_bindable(host)), None)


def is_free(listen: str, port: int) -> bool:
    """Return whether both TCP and UDP can be bound now."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        try:
            sockets = bind(listen, port, kind)
        except ListenError:
            return False
        _close(sockets)
    return True


def _close(sockets: Iterable[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def _bind_one(host: str, port: int, kind: socket.SocketKind) -> socket.socket:
    family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    sock = socket.socket(family, kind)
    try:
        if kind == socket.SOCK_STREAM and os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind((host, port))
        if kind == socket.SOCK_STREAM:
            # Two sockets may bind one address, but only one of them may listen on it.
            sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _is_bindable(host: str) -> bool:
    """Return whether this machine has the address."""
    try:
        _bind_one(host, 0, socket.SOCK_DGRAM).close()
    except OSError as exc:
        return exc.errno in _EXHAUSTED
    return True


def _listen_error(address: str, port: int, exc: OSError) -> ListenError:
    hint = None
    if exc.errno == errno.EADDRINUSE:
        hint = (
            "stop the program that uses it, or choose another local port; "
            "`:REMOTE` takes a free one"
        )
    elif exc.errno in (errno.EACCES, errno.EPERM):
        hint = "ports below 1024 need more privileges; choose a higher local port"
    elif exc.errno == errno.EADDRNOTAVAIL:
        hint = "this machine has no such address"
    where = Endpoint(address, port)
    return ListenError(f"cannot listen on {where}: {os.strerror(exc.errno or 0)}", hint=hint)


def port_owner(protocol: Protocol, listen: str, port: int) -> str | None:
    """Return the owner as `nginx (pid 812)` or `another krelay (pid 812)`, None if the system hides
    it from this user.

    It blocks while it reads the system's tables.
    """
    import psutil

    try:
        connections = psutil.net_connections(protocol.value)
    except (psutil.Error, OSError):  # macOS shows them to root only
        return None
    for connection in connections:
        if connection.pid is None or connection.status not in (
            psutil.CONN_LISTEN,
            psutil.CONN_NONE,
        ):
            continue
        local = connection.laddr
        if local and local.port == port and _overlaps(local.ip, listen):
            if connection.pid == os.getpid():
                return "this krelay"
            try:
                owner = psutil.Process(connection.pid)
                name = "another krelay" if _is_krelay(owner.cmdline()) else owner.name()
            except psutil.Error:
                return f"pid {connection.pid}"
            return f"{name} (pid {connection.pid})"
    return None


def _is_krelay(command: Sequence[str]) -> bool:
    """Return whether a command line is that of krelay, as a script or as a module of Python."""
    names = [os.path.basename(part) for part in command[:3]]
    return not _KRELAYS.isdisjoint(names[:2]) or names[1:] == ["-m", "krelay"]


def _overlaps(held: str, listen: str) -> bool:
    wanted = set(listen.split(","))
    if LOCALHOST in wanted:
        wanted.update(LOOPBACKS)
    return held in wanted or held in _WILDCARDS or not wanted.isdisjoint(_WILDCARDS)
