"""TLS: the context of every connection to an API server. All of it blocks: call it in a thread."""

from __future__ import annotations

import os
import ssl
import tempfile

from krelay.errors import CredentialsError


def context(ca: bytes | None, certificate: bytes | None, *, verify: bool) -> ssl.SSLContext:
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
