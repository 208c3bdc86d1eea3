"""ApiAccess: what `cluster` hands to `transport` for one connection to an API server."""

from __future__ import annotations

import ipaddress
import math
import ssl
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from krelay.errors import CredentialsError


@dataclass(frozen=True, slots=True)
class ApiAccess:
    """The address of an API server, and credentials that are valid now.

    `url` may have a path prefix. `headers` may repeat a name (impersonation). `proxy` is the URL of
    an `http`, `https`, `socks5` or `socks5h` proxy, or None for a direct connection. `expires` is
    the expiry of the credentials (Unix time; `inf` if unknown).
    """

    url: str
    ssl: ssl.SSLContext | None
    server_hostname: str | None
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    proxy: str | None = field(default=None, repr=False)
    expires: float = math.inf

    @property
    def private(self) -> bool:
        """Whether the connection cannot be read on its way.

        The server speaks TLS, or is on this machine with no proxy in between.
        """
        parts = urlsplit(self.url)
        if parts.scheme == "https":
            return True
        return self.proxy is None and is_loopback(parts.hostname or "")

    def require_private(self) -> None:
        """Refuse a connection on which the run's key and the relayed bytes could be read.

        Raises:
            CredentialsError: the connection is not private.
        """
        if self.private:
            return
        through = " through a proxy" if self.proxy else ""
        raise CredentialsError(
            f"the connection to the API server {self.url}{through} is not encrypted: "
            "others could read the agent's key and all relayed data",
            hint="use the server's https:// address, or `kubectl proxy` on this machine",
        )


def is_loopback(host: str) -> bool:
    """Return whether `host` is this machine: `localhost`, or a loopback address as text."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback
