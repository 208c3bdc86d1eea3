"""Expiry: from when and until when certificates and tokens are valid. Pure.

The validity of a certificate (RFC 5280, section 4.1) has a fixed place in its DER, and the `exp` of
a token (RFC 7519) is in its second part, so neither needs a library.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

SOON = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Validity:
    """A time in which a credential is valid; `begin` is None if the credential has none."""

    begin: datetime | None
    end: datetime

    def ends_soon(self, now: datetime) -> bool:
        """Return whether it ends within a day, and most of its time has passed: what is issued
        for hours would always end soon."""
        left = self.end - now
        whole = self.end - self.begin if self.begin else None
        return left < SOON and (whole is None or left < whole / 4)


_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_INTEGER, _SEQUENCE, _UTC_TIME, _VERSION = 0x02, 0x30, 0x17, 0xA0
_LONGEST_TOKEN = 64 << 10
_MALFORMED = (LookupError, OSError, OverflowError, TypeError, ValueError)


def of_certificate(pem: bytes) -> Validity | None:
    """Return that of the first certificate of a PEM text; None if it cannot be read."""
    found = _PEM.search(pem.decode("ascii", "replace"))
    if found is None:
        return None
    try:
        return _validity(ssl.PEM_cert_to_DER_cert(found[0]))
    except (ValueError, IndexError):
        return None


def of_token(token: str) -> Validity | None:
    """Return that of a JSON Web Token; None if it is another token, or has no end."""
    parts = token.split(".")
    if len(parts) != 3 or len(token) > _LONGEST_TOKEN:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        begin = claims.get("iat")
        return Validity(None if begin is None else _time(begin), _time(claims["exp"]))
    except (*_MALFORMED, AttributeError, RecursionError):
        return None


def _time(seconds: object) -> datetime:
    if not isinstance(seconds, int | float):
        raise TypeError(seconds)
    return datetime.fromtimestamp(seconds, UTC)


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


def _validity(der: bytes) -> Validity:
    """Return that of a certificate in DER. Raises ValueError or IndexError if it is not one."""
    _, certificate = _element(der, _SEQUENCE)
    _, signed = _element(certificate, _SEQUENCE)
    if signed[0] == _VERSION:
        signed, _ = _element(signed, _VERSION)
    for tag in (_INTEGER, _SEQUENCE, _SEQUENCE):  # the serial number, the algorithm, the issuer
        signed, _ = _element(signed, tag)
    _, validity = _element(signed, _SEQUENCE)
    end, begin = _element(validity, validity[0])
    _, until = _element(end, end[0])
    return Validity(_certificate_time(validity[0], begin), _certificate_time(end[0], until))


def _certificate_time(tag: int, content: bytes) -> datetime:
    digits = content.decode("ascii")
    if tag == _UTC_TIME:
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
