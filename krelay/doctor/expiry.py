"""Expiry: when certificates and tokens end. Pure.

The validity of a certificate (RFC 5280, section 4.1) has a fixed place in its DER, and the `exp` of
a token (RFC 7519) is in its second part, so neither needs a library.
"""

from __future__ import annotations

import base64
import json
import math
import re
import ssl
from datetime import UTC, datetime, timedelta

SOON = timedelta(days=1)

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_INTEGER, _SEQUENCE, _UTC_TIME, _VERSION = 0x02, 0x30, 0x17, 0xA0
_LONGEST_TOKEN = 64 << 10


def certificate_end(pem: bytes) -> datetime | None:
    """Return the end of the first certificate of a PEM text; None if it cannot be read."""
    found = _PEM.search(pem.decode("ascii", "replace"))
    if found is None:
        return None
    try:
        return _not_after(ssl.PEM_cert_to_DER_cert(found[0]))
    except (ValueError, IndexError):
        return None


def token_end(token: str) -> datetime | None:
    """Return the end of a JSON Web Token; None if it is another token, or has no end."""
    parts = token.split(".")
    if len(parts) != 3 or len(token) > _LONGEST_TOKEN:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        end = float(claims["exp"])
        return datetime.fromtimestamp(end, UTC) if math.isfinite(end) else None
    except (ValueError, TypeError, KeyError, OverflowError, OSError, RecursionError):
        return None


def in_words(left: timedelta) -> str:
    """Return a time to come, or one that has passed, in its largest unit: `in 3 days`."""
    seconds = abs(left.total_seconds())
    count, unit = next(
        (round(seconds // size), name)
        for size, name in ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))
        if seconds >= size or size == 1
    )
    words = f"{count} {unit}{'' if count == 1 else 's'}"
    return f"in {words}" if left > timedelta() else f"{words} ago"


def _not_after(der: bytes) -> datetime:
    """Raises ValueError or IndexError for what is no certificate."""
    _, certificate = _element(der, _SEQUENCE)
    _, signed = _element(certificate, _SEQUENCE)
    if signed[0] == _VERSION:
        signed, _ = _element(signed, _VERSION)
    for tag in (_INTEGER, _SEQUENCE, _SEQUENCE):  # the serial number, the algorithm, the issuer
        signed, _ = _element(signed, tag)
    _, validity = _element(signed, _SEQUENCE)
    end, _ = _element(validity, validity[0])
    _, text = _element(end, end[0])
    digits = text.decode("ascii")
    if end[0] == _UTC_TIME:
        digits = ("19" if digits >= "50" else "20") + digits
    return datetime.strptime(digits, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _element(der: bytes, tag: int) -> tuple[bytes, bytes]:
    """Return what follows the first element of `der`, and its content."""
    if der[0] != tag:
        raise ValueError("not a certificate")
    size, start = der[1], 2
    if size & 0x80:
        start += size & 0x7F
        size = int.from_bytes(der[2:start])
    return der[start + size :], der[start : start + size]
