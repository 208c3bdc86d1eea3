"""Identity: the token, password and certificate of a user, and the TLS context made of them.

`exec_plugin` and `oidc` are the sources that ask another program or an issuer.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import ssl
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from krelay.cluster.auth.files import read_file, read_pem
from krelay.cluster.http import basic_auth
from krelay.errors import CredentialsError, UnreachableError


@dataclass(frozen=True, slots=True)
class Identity:
    """One generation of credentials.

    `authorization` is the value of that header, `certificate` a PEM chain with its key, `expires`
    a Unix time (`inf` if unknown).
    """

    authorization: str | None = field(default=None, repr=False)
    certificate: bytes | None = field(default=None, repr=False)
    expires: float = math.inf


def from_entry(user: Mapping[str, Any]) -> Identity:
    """Return the token (file first), password and certificate of a kubeconfig user. Blocks.

    Raises:
        CredentialsError: a file cannot be read, or holds no such thing.
    """
    certificate = read_pem(user, "client-certificate")
    if certificate is None:
        return Identity(_authorization(user))
    key = read_pem(user, "client-key")
    if key is None:
        raise CredentialsError("kubeconfig: the user has no client-key")
    return Identity(_authorization(user), join_pair(certificate, key))


_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]*)-----.*?-----END \1-----", re.DOTALL)


def join_pair(certificate: bytes, key: bytes) -> bytes:
    """Return the certificates of the one text and the first key of the other, both in PEM.

    Each may hold more, as the files of a kubelet do, which hold both.
    """
    chain = [found[0] for found in _BLOCK.finditer(certificate) if found[1] == b"CERTIFICATE"]
    keys = (found[0] for found in _BLOCK.finditer(key) if found[1].endswith(b"PRIVATE KEY"))
    return b"\n".join((*(chain or [certificate]), next(keys, key), b""))


def _authorization(user: Mapping[str, Any]) -> str | None:
    token = user.get("token")
    if path := user.get("tokenFile"):
        try:
            token = read_file(path).decode().strip() or token
        except (OSError, UnicodeError) as exc:
            if not token:
                raise CredentialsError(f"cannot read the token file {path}: {exc}") from exc
        if not token:
            raise CredentialsError(f"the token file {path} is empty")
    if token:
        return bearer(token)
    if user.get("username"):
        return basic_auth(user.get("username", ""), user.get("password", ""))
    return None


def bearer(token: str) -> str:
    """Return the Authorization header for a token.

    Raises:
        CredentialsError: not a token (RFC 6750, section 2.1), but for example a whole file.
    """
    if not token.isascii() or not token.isprintable() or " " in token:
        raise CredentialsError("the token has invalid characters")
    return f"Bearer {token}"


def ahead(expires: float) -> float:
    """Return when to renew credentials that expire at `expires` (both Unix times).

    The margin allows for wrong clocks and slow requests. It is at most a fifth of the remaining
    time, so that credentials that live for seconds are not stale at once.
    """
    return expires - min(60.0, max(0.0, expires - time.time()) / 5)


def tls_context(
    ca: bytes | None, certificate: bytes | None, *, verify: bool, turn: int = 0
) -> ssl.SSLContext:
    """Return a client context that trusts `ca` (PEM; None: the machine's authorities). Blocks.

    `certificate` is a PEM chain with its key. `turn` moves so many authorities of the bundle from
    its begin to its end. Takes about 20 ms.

    Raises:
        CredentialsError: OpenSSL cannot read the PEM, or the key is encrypted.
        UnreachableError: the key cannot be written for OpenSSL.
    """
    context = _trusting(_turned(ca, turn) if ca and turn else ca)
    # As in Go's crypto/tls, a private authority may break rules of RFC 5280, which Python enforces
    # since 3.13, and an intermediate may be the anchor.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    if certificate is not None:
        _load_certificate(context, certificate)
    return context


def _turned(ca: bytes, turn: int) -> bytes:
    blocks = [found[0] for found in _BLOCK.finditer(ca) if found[1] == b"CERTIFICATE"]
    return b"\n".join(blocks[turn:] + blocks[:turn])


def _trusting(ca: bytes | None) -> ssl.SSLContext:
    """Return a context that trusts the certificates of a bundle, as Go without the broken ones."""
    if not ca:
        return ssl.create_default_context()
    try:
        return ssl.create_default_context(cadata=ca.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError) as exc:
        context, problem = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), exc
    blocks = (found[0] for found in _BLOCK.finditer(ca) if found[1] == b"CERTIFICATE")
    for block in blocks:
        with contextlib.suppress(ssl.SSLError, ValueError):
            context.load_verify_locations(cadata=ssl.PEM_cert_to_DER_cert(block.decode("ascii")))
    if not context.cert_store_stats()["x509"]:
        raise CredentialsError(f"kubeconfig: bad certificate-authority: {problem}")
    return context


def _load_certificate(context: ssl.SSLContext, certificate: bytes) -> None:
    def encrypted() -> str:
        raise CredentialsError(
            "kubeconfig: the client key is encrypted",
            hint="write it without a passphrase (`openssl pkey -in KEY -out NEW`)",
        )

    # OpenSSL loads keys from files only, so the key is on disk for a millisecond.
    try:
        with tempfile.TemporaryDirectory(prefix="krelay-") as folder:
            path = os.path.join(folder, "client.pem")
            with open(path, "wb", opener=lambda p, flags: os.open(p, flags, 0o600)) as file:
                file.write(certificate)
            context.load_cert_chain(path, password=encrypted)
    except ssl.SSLError as exc:  # an OSError too
        raise CredentialsError(f"kubeconfig: bad client certificate or key: {exc}") from exc
    except OSError as exc:
        raise UnreachableError(
            f"cannot pass the client key to OpenSSL by a temporary file: {exc.strerror}",
            hint="is the disk full? TMPDIR names another folder",
        ) from exc
