"""Asking the krelay that runs a file, over its socket; blocks, for commands."""

from __future__ import annotations

import http.client
import json
import os
import shlex
import socket
from pathlib import Path
from typing import Any

from krelay.errors import KrelayError
from krelay.state.error_codec import from_json
from krelay.status.socket_path import check_directory, socket_path

_CONNECT_DEADLINE = 5.0
_MAX_ANSWER = 64 << 20


class NotRunningError(KrelayError):
    """No krelay runs this file."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_CONNECT_DEADLINE)
        self.sock.connect(str(self._path))
        self.sock.settimeout(self.timeout)


def ask(
    file: str, method: str, resource: str, body: dict[str, Any] | None = None, *, timeout: float
) -> Any:
    """What the krelay that runs `file` answers; `timeout` is in seconds.

    Raises:
        NotRunningError: there is none, or none that may be trusted to be this user's.
        KrelayError: it says no, or does not answer.
    """
    path = socket_path(file)
    connection = _Connection(path, timeout)
    try:
        check_directory(path)
        connection.request(method, resource, json.dumps(body or {}))
        response = connection.getresponse()
        answer = json.loads(response.read(_MAX_ANSWER))
    except KrelayError as exc:
        raise NotRunningError(f"no krelay runs for {file}: {exc}", hint=exc.hint) from exc
    except (FileNotFoundError, ConnectionRefusedError) as exc:
        raise NotRunningError(
            f"no krelay runs for {file}", hint=f"start one: `krelay up -f {shlex.quote(file)}`"
        ) from exc
    except TimeoutError as exc:
        raise KrelayError(f"the krelay that runs for {file} did not answer in time") from exc
    except (OSError, http.client.HTTPException, ValueError) as exc:
        raise KrelayError(f"the krelay that runs for {file} gave no answer: {exc}") from exc
    finally:
        connection.close()
    if response.status != 200:
        raise from_json(answer.get("error", {}) if isinstance(answer, dict) else {})
    return answer


def runs(file: str) -> bool:
    """Whether a krelay runs `file`, or has not quite ended: somebody holds the lock."""
    import fcntl

    path = socket_path(file)
    try:
        check_directory(path)
        lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CLOEXEC)
    except (OSError, KrelayError):
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False
