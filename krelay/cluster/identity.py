"""Identity: what proves who we are, and the sources of it that need no one's help.

`execplugin` and `oidc` are the sources that ask another program or an issuer.
"""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from krelay.cluster.kubeconfig import material, read_file
from krelay.errors import CredentialsError


@dataclass(frozen=True, slots=True)
class Identity:
    """One generation of credentials.

    `authorization` is the value of that header, `certificate` a PEM chain with its key,
    `expires` seconds since the epoch: infinite if nobody said.
    """

    authorization: str | None = field(default=None, repr=False)
    certificate: bytes | None = field(default=None, repr=False)
    expires: float = math.inf


class Source(Protocol):
    """Where identities come from. May keep what it learned, but not an identity."""

    async def fetch(self, *, rejected: bool) -> Identity:
        """A fresh identity; `rejected` tells that the server refused the last one.

        Raises:
            CredentialsError: with the reason, and a hint where there is one.
        """
        ...


def from_entry(user: Mapping[str, Any]) -> Identity:
    """The token (file first), password and certificate of a user of kubeconfig. Blocks."""
    certificate = material(user, "client-certificate")
    key = material(user, "client-key")
    if (certificate is None) != (key is None):
        missing = "client-key" if key is None else "client-certificate"
        raise CredentialsError(f"kubeconfig: the user has no {missing}")
    return Identity(
        _authorization(user),
        certificate + b"\n" + key if certificate is not None and key is not None else None,
    )


def _authorization(user: Mapping[str, Any]) -> str | None:
    token = user.get("token")
    if path := user.get("tokenFile"):
        try:
            token = read_file(path).decode().strip() or token
        except (OSError, UnicodeError) as exc:
            if not token:
                raise CredentialsError(f"cannot read the token file {path}: {exc}") from exc
    if token:
        return bearer(str(token))
    if user.get("username") or user.get("password"):
        return basic(str(user.get("username") or ""), str(user.get("password") or ""))
    return None


def basic(name: str, password: str) -> str:
    """The header's value for a name and a password (RFC 7617)."""
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def bearer(token: str) -> str:
    """The header's value for a token.

    Raises:
        CredentialsError: what it holds is no token (RFC 6750 section 2.1), but say a whole file.
    """
    token = token.strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise CredentialsError("the token holds characters that no token has")
    return f"Bearer {token}"


def ahead(expires: float) -> float:
    """When to fetch anew what ends at `expires` (seconds since the epoch).

    A little before, since a clock may be off and a request takes time; but never so early that
    what lives for seconds is stale at once.
    """
    return expires - min(60.0, max(0.0, expires - time.time()) / 5)
