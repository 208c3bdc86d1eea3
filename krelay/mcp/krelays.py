"""Which krelay a tool asks, and its answers."""

from __future__ import annotations

import os
import sys
from typing import Any

from krelay.config import files
from krelay.errors import UsageError
from krelay.platforms import require_posix
from krelay.status.client import NotRunningError, ask
from krelay.status.instances import instances
from krelay.threads import in_thread

_ANSWER_DEADLINE = 10.0
_NAMED = 20
"""Krelays that an error names."""
_RUNTIME = "/run/user"
_DARWIN_USER_TEMP_DIR = 65537


def restore_variables() -> None:
    """Set the variables that lead to the sockets of krelays which a login shell has started.

    Clients start a server with few variables: without XDG_RUNTIME_DIR, and TMPDIR on macOS.
    """
    require_posix()
    directory = f"{_RUNTIME}/{os.getuid()}"
    if "XDG_RUNTIME_DIR" not in os.environ and os.path.isdir(f"{directory}/krelay"):
        os.environ["XDG_RUNTIME_DIR"] = directory
    if sys.platform == "darwin" and "TMPDIR" not in os.environ:
        os.environ["TMPDIR"] = os.confstr(_DARWIN_USER_TEMP_DIR) or ""


class Krelays:
    """The krelays that the tools may ask: that of `file`; if it is None, that of the file in this
    directory, and those that run."""

    def __init__(self, file: str | None) -> None:
        self._file = file

    async def choose(self, wanted: str | None) -> str:
        """Return the absolute path of the file of the krelay to ask.

        Raises:
            UsageError: there is none, or as `find`.
            NotRunningError: no krelay runs `wanted`.
        """
        found = await self.find(wanted)
        if found is None:
            hint = "start `krelay up`, or this server with `krelay mcp -f FILE`"
            raise UsageError("no krelay runs, and this directory has no krelay.yaml", hint=hint)
        return found

    async def find(self, wanted: str | None) -> str | None:
        """Return the absolute path of the file of the krelay to ask; None if there is none.

        A model cannot make krelay read any other file.

        Raises:
            UsageError: it is unclear which krelay to ask, or this server does not ask that one.
            NotRunningError: no krelay runs `wanted`.
        """
        return await in_thread(lambda: self._find(wanted))

    async def ask(
        self,
        file: str,
        method: str,
        resource: str,
        body: dict[str, Any] | None = None,
        *,
        timeout: float = _ANSWER_DEADLINE,
    ) -> Any:
        """Send a request to the krelay that runs `file`, and return its answer.

        Raises:
            NotRunningError: no krelay runs the file.
            KrelayError: krelay reports an error, or does not answer.
        """
        return await in_thread(lambda: ask(file, method, resource, body, timeout=timeout))

    def _find(self, wanted: str | None) -> str | None:
        file = self._file or (files.find(None) if files.is_found() else None)
        if file is not None:
            file = os.path.abspath(file)
            if wanted is None or os.path.abspath(wanted) == file:
                return file
            if self._file is not None:
                hint = "leave out `file`"
                raise UsageError(f"this server asks only the krelay of {file}", hint=hint)
        running = [instance.file for instance in instances() if instance.file]
        if wanted is not None:
            if wanted in running:
                return wanted
            raise NotRunningError(f"krelay is not running for {wanted}", hint=_those(running))
        if len(running) > 1:
            raise UsageError("several krelays run: name one as `file`", hint=_those(running))
        return running[0] if running else None


def _those(running: list[str]) -> str:
    return f"running: {', '.join(running[:_NAMED])}" if running else "none is running"
