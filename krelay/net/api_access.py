"""Access: what `cluster` knows and `transport` needs, to open one connection to an API server."""

from __future__ import annotations

import ipaddress
import math
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from krelay.errors import CredentialsError


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

    @property
    def private(self) -> bool:
        """Whether no one on the way can read what is sent: the server speaks TLS, or it is on this
        machine and reached without a proxy."""
        parts = urlsplit(self.url)
        if parts.scheme == "https":
            return True
        return self.proxy is None and is_loopback(parts.hostname or "")

    def require_private(self) -> None:
        """Refuse a way on which the run's key, and all that is relayed, could be read.

        Raises:
            CredentialsError: it is one.
        """
        if self.private:
            return
        through = " through a proxy" if self.proxy else ""
        raise CredentialsError(
            f"the way to the API server {self.url}{through} is not encrypted: "
            "the agent's key and all that is relayed could be read on it",
            hint="use the server's https:// address, or `kubectl proxy` on this machine",
        )


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine: `localhost`, or a loopback address as text."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback
