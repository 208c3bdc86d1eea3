"""The client of the status API on a krelay's unix socket; it blocks, for commands."""

from __future__ import annotations

import http.client
import json
import os
import shlex
import socket
from typing import Any

from krelay.errors import KrelayError
from krelay.state.error_codec import from_json
from krelay.status.socket_path import check_directory, socket_path

_CONNECT_DEADLINE = 5.0
_MAX_ANSWER = 64 << 20


class NotRunningError(KrelayError):
    """No krelay runs this file."""


class _Connection(http.client.HTTPConnection):
    """An HTTP connection to the krelay that runs `file`."""

    def __init__(self, file: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = socket_path(file)

    def connect(self) -> None:
        check_directory(self._path)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_CONNECT_DEADLINE)
        self.sock.connect(str(self._path))
        self.sock.settimeout(self.timeout)


def ask(
    file: str, method: str, resource: str, body: dict[str, Any] | None = None, *, timeout: float
) -> Any:
    """Send a request to the krelay that runs `file`, and return its answer.

    Args:
        file: the path of the file.
        method: the HTTP method.
        resource: the path of the resource, like `/v1/status`.
        body: the JSON object to send.
        timeout: seconds without any part of the answer.

    Raises:
        NotRunningError: no krelay runs the file, or its socket may be another user's.
        KrelayError: krelay reports an error, or does not answer.
    """
    connection = _Connection(file, timeout)
    try:
        connection.request(method, resource, json.dumps(body or {}))
        response = connection.getresponse()
        answer = json.loads(response.read(_MAX_ANSWER))
    except KrelayError as exc:
        raise NotRunningError(f"krelay is not running for {file}: {exc}", hint=exc.hint) from exc
    except (FileNotFoundError, ConnectionRefusedError) as exc:
        hint = f"start it with `krelay up -f {shlex.quote(file)}`"
        raise NotRunningError(f"krelay is not running for {file}", hint=hint) from exc
    except TimeoutError as exc:
        raise KrelayError(f"krelay for {file} did not answer in time") from exc
    except (OSError, http.client.HTTPException, ValueError) as exc:
        raise KrelayError(f"krelay for {file} gave no answer: {exc}") from exc
    finally:
        connection.close()
    if response.status != 200:
        raise from_json(answer.get("error", {}) if isinstance(answer, dict) else {})
    return answer


def is_running(file: str) -> bool:
    """Return whether a krelay runs `file`, or has not quite ended: it holds the lock."""
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
