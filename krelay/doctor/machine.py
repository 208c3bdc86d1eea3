"""This machine: the engine, descriptors, local ports, and the krelay that runs the file."""

from __future__ import annotations

import platform
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from krelay import __version__
from krelay.doctor.finding import Finding, failure, ok, warning
from krelay.doctor.runner import Check
from krelay.errors import KrelayError, ListenError
from krelay.model import Config, Endpoint, Protocol, Target
from krelay.mux.descriptors import RESERVE
from krelay.net.bind import bind, port_owner
from krelay.threads import in_thread

FEW = 192
"""Connections at once that should be possible: a browser with a page of many parts takes dozens."""
_WANTED = 65_536
_ANSWER_DEADLINE = 3.0
_OWN_FILES = 64
"""Descriptors that krelay itself has open: tunnels, watches, its log and its event loop."""
_UNSHOWN = 8
"""Ports of one finding that are named."""


def machine_checks(config: Config | None, file: str | None) -> list[Check]:
    """Return the checks that need no cluster. `file` is the path that another krelay may run."""
    checks = [
        Check("engine", lambda: in_thread(engine)),
        Check("descriptors", lambda: in_thread(partial(descriptors, config))),
    ]
    if file is not None:
        checks.append(Check("running", lambda: in_thread(partial(running, file))))
    if config is not None:
        checks.append(Check("ports", lambda: in_thread(partial(ports, config, file))))
    return checks


def engine() -> Finding:
    """Say which transports the connections to the cluster use. Blocks for moments."""
    from krelay.net.engine import choose

    found = choose()
    versions = f"krelay {__version__}, Python {platform.python_version()}"
    details = {"krelay": __version__, "python": platform.python_version(), "engine": found.name}
    if found.reason:
        hint = "TLS costs more CPU without it; KRELAY_ENGINE=asyncio chooses this"
        return warning("engine", f"{versions}, asyncio: {found.reason}", hint, **details)
    return ok("engine", f"{versions}, {found.name}", **details)


def descriptors(config: Config | None = None) -> Finding:
    """Say how many connections the limit of open files allows."""
    limit = _limit()
    if limit is None:
        return ok("descriptors", "no limit")
    listeners = sum(len(target.ports) for target in config.targets) if config else 0
    reserve = min(RESERVE, limit // 4)
    room = max(0, limit - reserve - listeners - _OWN_FILES)
    text = f"{limit} open files: room for {room} connections at once"
    if room >= FEW:
        return ok("descriptors", text, limit=limit, connections=room)
    return warning(
        "descriptors",
        text,
        "further connections wait; raise the hard limit of open files (`ulimit -Hn`)",
        limit=limit,
        connections=room,
    )


def _limit() -> int | None:
    """Return how many files `krelay up` may open, which raises its soft limit."""
    try:
        import resource
    except ImportError:  # Windows has no such limit on sockets
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    most = _WANTED if hard == resource.RLIM_INFINITY else min(hard, _WANTED)
    return max(soft, most)


# -- the krelay that runs the file -----------------------------------------------------------------


def running(file: str) -> Finding:
    """Say whether another krelay runs the file. Blocks."""
    try:
        found = snapshot_of(file)
    except KrelayError as exc:
        return warning("running", f"a krelay runs {file}: {exc}", "`krelay ps` shows it")
    if found is None:
        return ok("running", "no krelay runs this file", running=False)
    pid, version = found.get("pid"), found.get("version")
    forwards = found.get("forwards") or []
    ready = sum(forward.get("state") == "ready" for forward in forwards)
    text = f"krelay {version} runs this file (pid {pid}): {ready} of {len(forwards)} ready"
    details: dict[str, Any] = {"running": True, "pid": pid, "version": version}
    if version != __version__:
        hint = "restart it to run the version that is installed now"
        return warning("running", f"{text}; installed is {__version__}", hint, **details)
    if ready < len(forwards):
        return warning("running", text, "`krelay status` says why", **details)
    return ok("running", text, **details)


def snapshot_of(file: str) -> dict[str, Any] | None:
    """Return the state of the krelay that runs the file; None if none does. Blocks.

    Raises:
        KrelayError: it does not answer.
    """
    from krelay.status.client import NotRunningError, ask

    try:
        found: dict[str, Any] = ask(file, "GET", "/v1/status", timeout=_ANSWER_DEADLINE)
    except NotRunningError:
        return None
    return found


# -- local ports -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Listener:
    what: str
    address: str
    port: int
    protocol: Protocol


def _listeners(config: Config) -> Iterator[_Listener]:
    """Yield what the file listens on, as far as the file alone says it."""
    for target in config.targets:
        for number in _numbers(target):
            yield _Listener(target.name, target.listen, *number)
    if config.status.listen is not None and config.status.listen[1]:
        yield _Listener("status.listen", *config.status.listen, Protocol.TCP)


def _numbers(target: Target) -> Iterator[tuple[int, Protocol]]:
    for port in target.ports:
        local = port.remote if port.local is None else port.local
        if isinstance(local, int) and local:
            # A Service decides about the protocol of a port that names none: mostly TCP.
            yield local, port.protocol or Protocol.TCP


def ports(config: Config, file: str | None) -> list[Finding]:
    """Try to listen where the file wants to. Blocks."""
    pid = _running_pid(file)
    free: list[_Listener] = []
    ours = 0
    found: list[Finding] = []
    for wanted in _listeners(config):
        kind = socket.SOCK_DGRAM if wanted.protocol is Protocol.UDP else socket.SOCK_STREAM
        try:
            for sock in bind(wanted.address, wanted.port, kind):
                sock.close()
        except ListenError as exc:
            owner = port_owner(wanted.protocol, wanted.address, wanted.port)
            if pid is not None and owner is not None and f"pid {pid}" in owner:
                ours += 1
                continue
            found.append(_taken(wanted, exc, owner))
        else:
            free.append(wanted)
    if found:
        return found
    if not free and not ours:
        return [ok("ports", "the system chooses them at the start", free=0, ours=0)]
    names = ", ".join(str(Endpoint(one.address, one.port)) for one in free[:_UNSHOWN])
    names += ", …" if len(free) > _UNSHOWN else ""
    text = f"free: {names}" if free else "taken by the krelay that runs this file"
    return [ok("ports", text, free=len(free), ours=ours)]


def _taken(wanted: _Listener, exc: ListenError, owner: str | None) -> Finding:
    by = f" by {owner}" if owner else ""
    text = f"{wanted.what}: {exc.message}{by}"
    details = {"address": str(Endpoint(wanted.address, wanted.port)), "owner": owner}
    return failure("ports", KrelayError(text, hint=exc.hint), **details)


def _running_pid(file: str | None) -> int | None:
    try:
        found = snapshot_of(file) if file is not None else None
    except KrelayError:
        return None
    pid = (found or {}).get("pid")
    return pid if isinstance(pid, int) else None
