"""Identity: what proves who we are, and the sources of it that need no one's help.

`execplugin` and `oidc` are the sources that ask another program or an issuer.
"""

from __future__ import annotations

import math
import os
import ssl
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from krelay.cluster.auth.kubeconfig import material, read_file
from krelay.cluster.http import basic_auth
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
        return basic_auth(str(user.get("username") or ""), str(user.get("password") or ""))
    return None


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


def tls_context(ca: bytes | None, certificate: bytes | None, *, verify: bool) -> ssl.SSLContext:
    """A client context that trusts `ca` (PEM; None: what the machine trusts).

    `certificate` is a PEM chain and its key. Takes about 20 ms.

    Raises:
        CredentialsError: PEM that OpenSSL does not take, or a key that is encrypted.
    """
    try:
        made = ssl.create_default_context(cadata=ca.decode("ascii", "ignore") if ca else None)
    except (ssl.SSLError, ValueError) as exc:
        raise CredentialsError(f"kubeconfig: bad certificate-authority: {exc}") from exc
    # As Go's crypto/tls: a private authority may break the letter of RFC 5280, which Python
    # enforces since 3.13, and an intermediate may be the anchor.
    made.verify_flags &= ~ssl.VERIFY_X509_STRICT
    made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if not verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    made.set_alpn_protocols(["http/1.1"])
    if certificate is not None:
        _load(made, certificate)
    return made


def _load(made: ssl.SSLContext, certificate: bytes) -> None:
    def encrypted() -> str:
        raise CredentialsError(
            "kubeconfig: the client key is encrypted",
            hint="write it without a passphrase (`openssl pkey -in KEY -out NEW`)",
        )

    # OpenSSL loads a key from a file only: it lies on the disk for a millisecond.
    with tempfile.TemporaryDirectory(prefix="krelay-") as folder:
        path = os.path.join(folder, "client.pem")
        with open(path, "wb", opener=lambda p, flags: os.open(p, flags, 0o600)) as file:
            file.write(certificate)
        try:
            made.load_cert_chain(path, password=encrypted)
        except ssl.SSLError as exc:
            raise CredentialsError(f"kubeconfig: bad client certificate or key: {exc}") from exc
