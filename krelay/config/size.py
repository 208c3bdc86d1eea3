"""Sizes as people write them: `4Mi`, `512Ki`, or a bare number of bytes."""

from __future__ import annotations

import re

from krelay.config.parse_error import Flaw, quote

_UNITS = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20}
_SIZE = re.compile(r"([0-9]{1,12})(Ki|Mi)?")
SMALLEST, LARGEST = 128 << 10, 256 << 20


def parse_size(value: float | str) -> int:
    """Bytes, from 128 KiB to 256 MiB.

    Raises:
        Flaw: not a size, or out of range.
    """
    match = _SIZE.fullmatch(value if isinstance(value, str) else f"{value:.15g}")
    if match is None:
        raise Flaw(f"{quote(value)} is not a size", hint="for example `4Mi` or `512Ki`")
    size = int(match[1]) * _UNITS[match[2] or ""]
    if not SMALLEST <= size <= LARGEST:
        raise Flaw(f"{quote(value)} is out of range", hint="from `128Ki` to `256Mi`")
    return size
