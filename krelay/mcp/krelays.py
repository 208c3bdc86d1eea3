"""Which krelay a tool asks, and its answers."""

from __future__ import annotations

import os
import sys
from typing import Any

from krelay.config import files
from krelay.errors import UsageError
from krelay.platforms import require_posix
from krelay.status.client import ask
from krelay.threads import in_thread

_ANSWER_DEADLINE = 10.0
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
    """The krelays that the tools may ask: that of `file`, if one is given."""

    def __init__(self, file: str | None) -> None:
        self._file = file

    async def choose(self, wanted: str | None) -> str:
        """Return the absolute path of the file of the krelay to ask.

        A model cannot make krelay read any other file.

        Raises:
            UsageError: it is unclear which krelay to ask, or this server does not ask that one.
        """
        return await in_thread(lambda: self._choose(wanted))

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

    def _choose(self, wanted: str | None) -> str:
        file = os.path.abspath(files.find(self._file))
        if wanted is not None and os.path.abspath(wanted) != file:
            raise UsageError(f"this server asks only the krelay of {file}", hint="leave out `file`")
        return file
