"""Start krelay in the background, and wait until it relays: `krelay up --detach`."""

from __future__ import annotations

import json
import os
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from krelay.cli.background.child import VARIABLE
from krelay.cli.client_commands import ask_snapshot, check_names, print_routes, wait_ready
from krelay.cli.output import note
from krelay.config import files
from krelay.config.grammar import quote
from krelay.config.sources import Selection
from krelay.errors import KrelayError, NotReadyError, UsageError
from krelay.state.error_codec import from_json
from krelay.status import log_file
from krelay.status.client import is_running

_READ = 1 << 16

_PROGRAM = (
    "import json, os, sys; "
    f"sys.path[:] = json.loads(os.environ[{VARIABLE!r}])['path']; "
    "from krelay.cli.background.child import begin; begin(); "
    "from krelay.cli.entry import krelay; sys.exit(krelay())"
)
"""It finds krelay where this process did: in an environment, a folder or a zip file."""


def start(selection: Selection, arguments: Sequence[str], *, timeout: float) -> int:
    """Relay `selection` in the background; wait until every forward is ready, and print them.

    `arguments` are the words of the command line, which the process in the background reads again.
    If krelay runs the file already, wait for that one.

    Raises:
        NotReadyError: forwards are not ready in time; krelay goes on.
        KrelayError: the start failed.
    """
    if not hasattr(os, "setsid"):
        hint = "run `krelay up` in another window, or as a service"
        raise UsageError("`--detach` needs a Unix system", hint=hint)
    file = selection.file
    if file is None:
        hint = "save it, and name it with `-f FILE`"
        raise UsageError("`--detach` needs a file that can be read again", hint=hint)
    until = time.monotonic() + timeout
    if is_running(file):
        _check_running(file, selection.names)
    else:
        try:
            _launch(file, arguments, until)
        except KrelayError:
            if not is_running(file):
                raise
            _check_running(file, selection.names)  # it was started at the same time
    left = max(0.0, until - time.monotonic())
    try:
        found = wait_ready(file, selection.names, timeout=left)
    except NotReadyError as exc:
        with suppress(KrelayError):
            print_routes(ask_snapshot(file), selection.names)
        message = f"not ready after {timeout:g} s; krelay goes on in the background"
        hint = f"`{_command('wait', file)}` waits on, `{_command('down', file)}` stops it"
        unready = exc.unready if is_running(file) else ["krelay is starting"]
        raise NotReadyError(message, unready, hint=hint) from exc
    print_routes(found, selection.names)
    note(f"krelay runs in the background (pid {found['pid']}); `{_command('down', file)}` stops it")
    return 0


def _check_running(file: str, names: Collection[str]) -> None:
    """Say that krelay runs `file` already, and check that it relays `names` if it has started."""
    found = ask_snapshot(file)
    relayed = {forward["target"] for forward in found["forwards"]}
    others = [name for name in names if name not in relayed]
    if relayed and others:
        check_names(file, others, relayed)
        without = ", ".join(map(quote, others))
        raise KrelayError(
            f"krelay already runs for {file} (pid {found['pid']}), without {without}",
            hint=f"`{_command('down', file)}`, then start it with all names",
        )
    note(f"krelay already runs for {file} (pid {found['pid']})")


def _launch(file: str, arguments: Sequence[str], until: float) -> None:
    """Start the process; return when it is ready, or when the time is over.

    Raises:
        KrelayError: the start failed.
    """
    log = log_file.create(file)
    reader, writer = os.pipe()
    given = {"pipe": writer, "log": str(log), "path": sys.path}
    with open(log, "ab") as output, open(reader, "rb", buffering=0) as pipe:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=(writer,),
                env={**os.environ, VARIABLE: json.dumps(given)},
            )
        finally:
            os.close(writer)
        try:
            _follow(pipe, process, log, until)
        except KeyboardInterrupt:
            note("interrupted: krelay ends")
            process.terminate()
            process.wait()
            raise
    process.returncode = 0  # it outlives this one, which waits for it no longer


def _follow(pipe: IO[bytes], process: subprocess.Popen[bytes], log: Path, until: float) -> None:
    """Print the steps of a slow start, and what fails, until all is ready or the time is over."""
    kept = b""
    while select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
        data = pipe.read(_READ)
        *lines, kept = (kept + data).split(b"\n")
        for line in map(json.loads, lines):
            if "ready" in line:
                return
            if "error" in line:
                process.wait()
                raise from_json(line["error"])
            note(line["problem"] if "problem" in line else f"agent: {line['step']}")
        if not data:
            code = process.wait()
            raise KrelayError(f"krelay ended at its start (exit code {code})", hint=f"see {log}")


def _command(name: str, file: str) -> str:
    """Return a command for the krelay that runs `file`."""
    return f"krelay {name}" + ("" if file in files.NAMES else f" -f {shlex.quote(file)}")
