"""krelay as a user runs it: `python -m krelay`, a file, two output streams and signals."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import rig

ROOT = Path(__file__).parents[2]
_LINE = re.compile(r"(\S+): (?:\[(\S+)\]|([\d.]+)):(\d+) -> (\S+) \((tcp|udp)\)\n")
_AGENT = re.compile(r"embedded, process (\d+), port (\d+)")


@dataclass
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str


@dataclass
class Up:
    """A `krelay up` that relays."""

    process: asyncio.subprocess.Process
    out: str = ""
    err: str = ""
    ports: dict[str, int] = field(default_factory=dict)
    hosts: dict[str, list[str]] = field(default_factory=dict)

    @property
    def agent(self) -> int:
        """The process id of the embedded agent that runs now."""
        return int(_AGENT.findall(self.err)[-1][0])

    async def agents(self, count: int) -> None:
        """Wait until `count` agents were started in all."""
        await rig.until(lambda: len(_AGENT.findall(self.err)) >= count)

    async def said(self, text: str) -> None:
        """Wait for a text on standard error."""
        await rig.until(lambda: text in self.err)

    async def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        return await self.process.wait()


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without what would change krelay's ways."""
    others = ("KUBECONFIG", "NO_COLOR", "COLUMNS", "LINES")
    mine = {k: v for k, v in os.environ.items() if k not in others}
    return {**mine, "KUBECONFIG": os.devnull, "PYTHONWARNINGS": "error", **changes}


def command(*args: str) -> list[str]:
    """`python -m krelay` and its arguments."""
    return [sys.executable, "-m", "krelay", *args]


async def run(*args: str, cwd: Path = ROOT, stdin: bytes | None = None, **environ: Any) -> Done:
    """Run a command to its end."""
    process = await asyncio.create_subprocess_exec(
        *command(*args),
        cwd=cwd,
        env=environment(PYTHONPATH=str(ROOT), **environ),
        stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await process.communicate(stdin)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


# Each command is a process, forked from one that has imported krelay.
_EACH = """
import json, os, sys
from krelay.cli import client_commands, file_commands, main, up
for number, args in enumerate(json.loads(sys.argv[2])):
    child = os.fork()
    if not child:
        for descriptor, name in (1, "out"), (2, "err"):
            os.dup2(os.open(f"{sys.argv[1]}/{number}.{name}", os.O_CREAT | os.O_WRONLY), descriptor)
        sys.argv = ["krelay", *args]
        sys.exit(main.main())
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


async def run_each(commands: Sequence[Sequence[str]], **environ: str) -> list[Done]:
    """Run commands one after the other, each to its end; quicker than `run` for each."""
    with tempfile.TemporaryDirectory() as folder:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _EACH, folder, json.dumps(commands)),
            cwd=ROOT,
            env=environment(PYTHONPATH=str(ROOT), **environ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
        )
        told, _ = await process.communicate()
        codes = [int(code) for code in told.split()]
        assert len(codes) == len(commands)
        ends = [Path(folder) / str(number) for number in range(len(codes))]
        return [
            Done(code, end.with_suffix(".out").read_text(), end.with_suffix(".err").read_text())
            for code, end in zip(codes, ends, strict=True)
        ]


def document(targets: dict[str, str], *more: str) -> str:
    """A file with an embedded agent and these targets."""
    lines = ["apiVersion: krelay/v1", "agent: {embedded: true}", *more, "targets:"]
    return "\n".join([*lines, *(f"  {name}: {line}" for name, line in targets.items())]) + "\n"


@asynccontextmanager
async def up(
    file: Path,
    targets: dict[str, str],
    *more: str,
    args: tuple[str, ...] = (),
    lines: int = -1,
    files: int = 0,
    piped: bool = False,
) -> AsyncIterator[Up]:
    """`krelay up -f FILE`, once it has announced `lines` forwards (one for each target); it is
    interrupted at the end where it still runs. `files`: how many it may open at first. `piped`: its
    file comes on standard input."""
    await asyncio.to_thread(file.write_text, document(targets, *more))
    limited = ["sh", "-c", f'ulimit -Sn {files} && exec "$@"', "sh"] if files else []
    process = await asyncio.create_subprocess_exec(
        *limited,
        *command("up", "-f", "-" if piped else str(file), *args),
        env=environment(),
        stdin=os.open(file, os.O_RDONLY) if piped else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    running = Up(process)

    async def read_out() -> None:
        assert process.stdout is not None
        while line := (await process.stdout.readline()).decode():
            running.out += line
            said = json.loads(line)["message"] + "\n" if line.startswith("{") else line
            match = _LINE.fullmatch(said)
            if match:
                name, six, four, port, _, _ = match.groups()
                running.ports[name] = int(port)
                running.hosts.setdefault(name, []).append(six or four)

    async def read_err() -> None:
        assert process.stderr is not None
        while line := (await process.stderr.readline()).decode():
            running.err += line

    expected = len(targets) if lines < 0 else lines
    async with asyncio.TaskGroup() as tasks:
        readers = [tasks.create_task(read_out()), tasks.create_task(read_err())]
        try:
            await rig.until(lambda: running.out.count("\n") >= expected or readers[0].done())
            assert running.out.count("\n") >= expected, running.err
            yield running
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGINT)
                process.send_signal(signal.SIGINT)
            await process.wait()
    assert "Traceback" not in running.err, running.err


async def relays_to_echo(process: asyncio.subprocess.Process, end: signal.Signals) -> None:
    """Check that a krelay whose only target is an echo relays, and that `end` ends it well."""
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    try:
        port = int(line.split(" -> ")[0].rpartition(":")[2])
        assert await rig.exchange(port, b"hello") == b"hello"
    finally:
        process.send_signal(end)
        _, log = await process.communicate()
    assert process.returncode == 0, log.decode()


def alive(pid: int) -> bool:
    """Return whether another's process still runs; a zombie does not."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def listens(port: int) -> bool:
    """Whether something accepts connections there."""
    with socket.socket() as sock:
        return sock.connect_ex((rig.HOST, port)) == 0
