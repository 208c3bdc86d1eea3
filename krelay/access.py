"""Access: what `cluster` knows and `transport` needs, to open one connection to an API server."""

from __future__ import annotations

import math
import ssl
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ApiAccess:
    """How to open one connection to an API server, with credentials that are fresh now.

    `url` may have a path prefix. `headers` may repeat a name (impersonation). `proxy` is the
    URL of an `http`, `https` or `socks5` proxy, or None for a direct connection. `expires` is when
    to ask for another, in seconds since the epoch; infinite if nobody said.
    """

    url: str
    ssl: ssl.SSLContext | None
    server_hostname: str | None
    headers: tuple[tuple[str, str], ...]
    proxy: str | None = None
    expires: float = math.inf
