"""The status API of a running krelay: HTTP on a unix socket and, if the file says so, over TCP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

Handler = Callable[[Mapping[str, Any]], Awaitable[Any]]
"""Takes the JSON object of a request and returns the JSON of its answer; a KrelayError becomes the
error that the client gets."""
