"""Proxies: choose the proxy of an API server as kubectl does.

The rules are those of Go's golang.org/x/net/http/httpproxy.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from krelay.errors import CredentialsError

_HINT = "http://, https:// or socks5://HOST:PORT"


def from_kubeconfig(url: str | None) -> str | None:
    """Return kubeconfig's `proxy-url`, checked; None if it is empty.

    Raises:
        CredentialsError: not the URL of an http, https or socks5 proxy.
    """
    if url and url.partition("://")[0].lower() not in ("http", "https", "socks5"):
        # The environment may leave out the scheme or say socks5h, kubeconfig may not.
        raise CredentialsError("kubeconfig: proxy-url: not a proxy URL", hint=_HINT)
    return _check(url, "kubeconfig: proxy-url") if url else None


def from_environment(server: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the environment's proxy for `server` (a URL), None for a direct connection.

    Raises:
        CredentialsError: a variable is not the URL of an http, https or socks5 proxy.
    """
    parts = urlsplit(server)
    name = f"{parts.scheme}_proxy"
    found = environ.get(name.upper()) or environ.get(name)
    if not found or not parts.hostname:
        return None
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if _bypassed(parts.hostname, port, environ.get("NO_PROXY") or environ.get("no_proxy") or ""):
        return None
    return _check(found, name.upper())


def _check(url: str, where: str) -> str:
    url = url.strip()
    if "://" not in url:
        url = f"http://{url}"
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:
        # The exception may repeat a password.
        raise CredentialsError(f"{where}: not a proxy URL", hint=_HINT) from None
    if scheme not in ("http", "https", "socks5", "socks5h") or not host or port == 0:
        raise CredentialsError(f"{where}: not a proxy URL", hint=_HINT)
    # In Go, socks5 means the same as socks5h: the proxy resolves names.
    return f"{'socks5' if scheme == 'socks5h' else scheme}://{url.partition('://')[2]}"


def _bypassed(host: str, port: int, no_proxy: str) -> bool:
    host = host.lower().rstrip(".")
    address = _address(host)
    if host == "localhost" or (address and address.is_loopback):
        return True
    return any(
        _matches(entry, host, address, port)
        for entry in (entry.strip().lower() for entry in no_proxy.split(","))
        if entry
    )


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _matches(entry: str, host: str, address: _Address | None, port: int) -> bool:
    if entry == "*":
        return True
    if "/" in entry:
        try:
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    name, wanted = _split(entry)
    if wanted not in (None, str(port)):
        return False
    if address is not None or _address(name) is not None:
        return address is not None and address == _address(name)
    name = name.removeprefix("*")
    if name.startswith("."):
        return host.endswith(name)
    return host == name or host.endswith(f".{name}")


def _split(entry: str) -> tuple[str, str | None]:
    """`host:port`, `[v6]:port`, `host` or a bare v6 address."""
    if entry.startswith("["):
        name, _, rest = entry[1:].partition("]")
        return name, rest.removeprefix(":") or None
    if entry.count(":") == 1:
        name, _, wanted = entry.partition(":")
        return name, wanted or None
    return entry, None


def _address(text: str) -> _Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
