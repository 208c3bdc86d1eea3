"""The client of the status API on a krelay's unix socket; it blocks, for commands."""

from __future__ import annotations

import http.client
import json
import select
import shlex
import socket
import time
from pathlib import Path
from typing import Any

from krelay.errors import KrelayError
from krelay.state.error_codec import from_json
from krelay.status.instances import Instance, running
from krelay.status.socket_path import check_directory, socket_path

_CONNECT_DEADLINE = 5.0
_MAX_ANSWER = 64 << 20
_MAX_EVENTS = 1 << 20


class NotRunningError(KrelayError):
    """No krelay runs this file."""


class _Socket(socket.socket):
    """A socket that takes `timeout` seconds in all, however many calls an answer needs."""

    def __init__(self, timeout: float) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._deadline = time.monotonic() + timeout

    def connect(self, address: Any, /) -> None:
        self.settimeout(min(_CONNECT_DEADLINE, self._left()))
        super().connect(address)

    def sendall(self, *args: Any) -> None:
        self.settimeout(self._left())
        super().sendall(*args)

    def recv_into(self, *args: Any) -> int:
        self.settimeout(self._left())
        return super().recv_into(*args)

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0.0:
            raise TimeoutError
        return left


class _Connection(http.client.HTTPConnection):
    """An HTTP connection to the krelay that serves the socket at `path`, for one request that is
    answered within `seconds`."""

    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__("localhost")
        self._path = path
        self._seconds = seconds

    def connect(self) -> None:
        check_directory(self._path)
        self.sock = _Socket(self._seconds)
        self.sock.connect(str(self._path))


def ask(
    file: str | Instance,
    method: str,
    resource: str,
    body: dict[str, Any] | None = None,
    *,
    timeout: float,
) -> Any:
    """Send a request to an instance or to the krelay that runs `file`, and return its answer.

    `resource` is a path like `/v1/status`, `body` the JSON object to send, and `timeout` the
    seconds for the whole answer.

    Raises:
        NotRunningError: no krelay runs the file, or its socket may be another user's.
        KrelayError: krelay reports an error, or does not answer.
    """
    path = file.socket if isinstance(file, Instance) else socket_path(file)
    file = file.file if isinstance(file, Instance) else file
    connection = _Connection(path, timeout)
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


class Changes:
    """A subscription to the events of a running krelay, each a sign that its state has changed.

    A client that subscribes, asks for the state, and asks again after each `wait` misses nothing.
    """

    def __init__(self, connection: _Connection, sock: socket.socket) -> None:
        self._connection = connection
        self._sock = sock

    @classmethod
    def subscribe(cls, file: str) -> Changes | None:
        """Subscribe to the krelay that runs `file`; return None if that is not possible.

        No krelay may run, or one that has no room for another subscriber.
        """
        connection = _Connection(socket_path(file), _CONNECT_DEADLINE)
        try:
            connection.request("GET", "/v1/events")
            sock = connection.sock  # a response that ends with the connection takes it away
            if connection.getresponse().status == 200:
                return cls(connection, sock)
        except (OSError, http.client.HTTPException, KrelayError):
            pass
        connection.close()
        return None

    def wait(self, timeout: float) -> bool:
        """Wait for an event, at most `timeout` seconds; return False if krelay has ended.

        The beginning of the stream and its heartbeats count as events.
        """
        readable, _, _ = select.select([self._sock], [], [], max(0.0, timeout))
        try:
            return not readable or bool(self._sock.recv(_MAX_EVENTS))
        except OSError:
            return False

    def close(self) -> None:
        """End the subscription."""
        self._connection.close()
        self._sock.close()


def is_running(file: str) -> bool:
    """Return whether a krelay runs `file`, or has not quite ended."""
    return running(socket_path(file))
