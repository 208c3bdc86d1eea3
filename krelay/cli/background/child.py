"""The process in the background: how it begins, and how it reports its start.

The command that starts it (`krelay.cli.background.start`) reads lines of JSON from a pipe: each
`step` of a slow start, each `problem` of a forward, then either `ready` or the `error` that ended
the start.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from krelay.errors import KrelayError
from krelay.state.error_codec import to_json
from krelay.status.log_file import LogFile

VARIABLE = "KRELAY_BACKGROUND"
"""The variable that makes a process the one in the background. Its own children do not see it."""


class Report:
    """Reports the start to the command that started this process. `log` is the log's path.

    That command may have gone, or be stopped: nothing here waits for it, or fails without it.
    """

    def __init__(self, pipe: int, log: Path) -> None:
        self.log = log
        self._pipe: int | None = pipe
        os.set_inheritable(pipe, False)
        os.set_blocking(pipe, False)

    def log_file(self) -> LogFile:
        """Return the handler of the log; stdout and stderr lead there too."""
        return LogFile(self.log)

    def step(self, text: str) -> None:
        """Report what the start waits for."""
        self._write(step=text)

    def problem(self, text: str) -> None:
        """Report why a forward does not work yet."""
        self._write(problem=text)

    def ready(self) -> None:
        """Report that every forward is ready."""
        self._write(ready=True)
        self.close()

    def close(self) -> None:
        """Report nothing more."""
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            os.close(pipe)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Report the error that ends the block."""
        try:
            yield
        except KrelayError as exc:
            self._write(error=to_json(exc))
            raise
        finally:
            self.close()

    def _write(self, **line: Any) -> None:
        if self._pipe is not None:
            try:
                os.write(self._pipe, json.dumps(line).encode() + b"\n")
            except BrokenPipeError:
                self.close()
            except OSError:
                pass  # it reads nothing


_report: Report | None = None


def report() -> Report | None:
    """Return the report of this process, if it is one in the background."""
    return _report


def begin() -> None:
    """Make this process the one in the background that `VARIABLE` describes."""
    global _report
    given = json.loads(os.environ.pop(VARIABLE))
    _report = Report(given["pipe"], Path(given["log"]))
