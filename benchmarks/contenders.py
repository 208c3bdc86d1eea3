"""What is compared: each forwarder is started alike, with ports that the harness chooses."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks import place, processes
from benchmarks.results import DIRECT, FailedError

READY = 30.0
"""Seconds until a forwarder must relay its first byte."""
END = 10.0
"""Seconds between SIGINT and SIGKILL."""


@dataclass(frozen=True)
class Contender:
    """A forwarder's name, and how it is started."""

    name: str
    command: str
    """With the placeholders {ports} (`LOCAL:REMOTE ...`), {namespace}, {pod} and {file}."""
    environ: Mapping[str, str] = field(default_factory=dict)
    udp: bool = False


def krelay(name: str, program: Path, **environ: str) -> Contender:
    """Return krelay, with its ports in a file, as users have them."""
    return Contender(name, f"{shlex.quote(str(program))} up -f {{file}}", environ, udp=True)


def kubectl(name: str, **environ: str) -> Contender:
    """Return `kubectl port-forward`."""
    command = f"{shlex.quote(place.KUBECTL)} -n {{namespace}} port-forward pod/{{pod}} {{ports}}"
    return Contender(name, command, environ)


def peer(text: str) -> Contender:
    """Return the forwarder of `--peer 'NAME=COMMAND'`."""
    name, equals, command = text.partition("=")
    if not equals or not name or "{ports}" not in command:
        raise SystemExit(f"--peer wants 'NAME=COMMAND with {{ports}}', not {text!r}")
    return Contender(name.strip(), command.strip())


def krelay_file(namespace: str, ports: list[tuple[int, int]], udp: list[tuple[int, int]]) -> str:
    """Return a krelay.yaml with these pairs of a local and a remote port."""
    pairs = [f"{local}:{remote}" for local, remote in ports]
    pairs += [f"{local}:{remote}/udp" for local, remote in udp]
    targets = {"t": {"target": "pod/target", "ports": pairs}}
    return json.dumps({"apiVersion": "krelay/v1", "namespace": namespace, "targets": targets})


class Forwarder:
    """A contender that runs. `ports` and `udp` map the target's ports to local ones."""

    def __init__(
        self,
        contender: Contender,
        where: place.Namespace,
        copies: int = 1,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.contender = contender
        self.name = contender.name
        self._others: set[str] = set()
        self._own: set[str] = set()
        self.started = 0.0
        self._where = where
        self._environ = {**contender.environ, **(environ or {})}
        remotes = list(place.TCP_PORTS) if copies == 1 else [place.ECHO, *place.TCP_PORTS[1:]]
        remotes += [place.ECHO] * (copies - 1)
        udp = place.UDP_PORTS if contender.udp and copies == 1 else ()
        local = place.free_ports(len(remotes) + len(udp))
        self._pairs = list(zip(local, remotes, strict=False))
        self._udp_pairs = list(zip(local[len(remotes) :], udp, strict=True))
        self.ports = {remote: port for port, remote in reversed(self._pairs)}
        self.udp = {remote: port for port, remote in self._udp_pairs}
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the process, without waiting for anything."""
        self._others = self._where.uids()
        folder = Path(self._folder.name)
        file = folder / "krelay.yaml"
        file.write_text(krelay_file(self._where.name, self._pairs, self._udp_pairs))
        ports = " ".join(f"{local}:{remote}" for local, remote in self._pairs)
        values = {
            "{ports}": ports,
            "{namespace}": self._where.name,
            "{pod}": "target",
            "{file}": shlex.quote(str(file)),
        }
        command = self.contender.command
        for mark, value in values.items():
            command = command.replace(mark, value)
        # As installed: no developer's setting reaches a contender.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "KRELAY_"))}
        with open(folder / "log", "wb") as log:
            self.started = time.monotonic()
            try:
                self._process = subprocess.Popen(
                    shlex.split(command),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=folder,
                    env={**inherited, **self._environ},
                    start_new_session=True,
                )
            except OSError as exc:
                raise FailedError(f"does not start: {exc.strerror}") from exc

    def wait_ready(self, seconds: float = READY) -> None:
        """Wait until a byte crosses it and every port listens."""
        deadline = time.monotonic() + seconds
        self.wait_first_byte(seconds)
        wanted = {local for local, _ in self._pairs}
        while not wanted <= processes.listening_ports():
            self._check(deadline, "does not listen on every port")
        self._own = self._where.uids() - self._others

    def wait_first_byte(self, seconds: float = READY) -> None:
        """Wait until a byte came back."""
        deadline = time.monotonic() + seconds
        while not self._echoes():
            self._check(deadline, "relays nothing")

    def _check(self, deadline: float, what: str) -> None:
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            raise FailedError(f"ended with code {code}")
        if time.monotonic() > deadline:
            raise FailedError(f"{what} in time")
        time.sleep(0.005)

    def _echoes(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.ports[place.ECHO]), 2) as sock:
                sock.settimeout(10)
                sock.sendall(b"x")
                return sock.recv(1) == b"x"
        except OSError:
            return False

    def alive(self) -> bool:
        """Tell whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def told(self) -> str:
        """Return the end of what it has printed."""
        return (Path(self._folder.name) / "log").read_text(errors="replace")[-2000:]

    @property
    def agents(self) -> list[psutil.Process]:
        """Return the processes of the pods that it has made."""
        return self._where.processes(self._own) if self._own else []

    def groups(self) -> dict[str, list[psutil.Process]]:
        """Return the client's processes and its agents'."""
        return {"client": processes.tree(self.pid), "agent": self.agents}

    def stop(self) -> None:
        """End it as Ctrl-C does, then by force."""
        if self._process is not None and self.alive():
            self._process.send_signal(2)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END)
            for process in reversed(processes.tree(self.pid)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.wait()
        self._process = None

    def close(self) -> None:
        """End it, and delete its files."""
        self.stop()
        self._folder.cleanup()


@contextlib.contextmanager
def running(
    contender: Contender,
    where: place.Namespace,
    copies: int = 1,
) -> Iterator[Forwarder]:
    """Run a contender until the block ends; `copies`: so many forwards to the echo port."""
    forwarder = Forwarder(contender, where, copies)
    try:
        forwarder.start()
        forwarder.wait_ready()
        yield forwarder
    finally:
        forwarder.close()


class Direct:
    """The control: the target on this machine, with no forwarder in between."""

    name = DIRECT

    def __init__(self) -> None:
        first = place.free_ports(len(place.TCP_PORTS) + 1)[0]
        self.ports = {port: first + n for n, port in enumerate(place.TCP_PORTS)}
        self.udp = {place.ECHO: first, place.UDP: first + 4}
        self._process = subprocess.Popen(
            [sys.executable, place.ROOT / "benchmarks" / "target.py", str(first)],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + READY
        for port in self.ports.values():
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                if time.monotonic() > deadline:
                    self.close()
                    raise SystemExit("The control does not listen.")
                time.sleep(0.02)

    def alive(self) -> bool:
        """Tell whether the process runs."""
        return self._process.poll() is None

    def groups(self) -> dict[str, list[psutil.Process]]:
        """Return no processes: the control has no chain."""
        return {}

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()
