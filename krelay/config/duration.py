"""Durations as people write them: `30s`, `5m`, `1h30m`, `500ms`, or a bare number of seconds."""

from __future__ import annotations

import re

from krelay.config.parse_error import Flaw, quote

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_NUMBER = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")
_PART = re.compile(rf"({_NUMBER.pattern})(ms|[hms])")
LONGEST = 86_400.0
_MAX_LENGTH = 100  # that of four parts is below


def parse_duration(value: float | str, *, positive: bool = False) -> float:
    """Seconds, from 0 (or above it, if `positive`) to one day.

    Raises:
        Flaw: not a duration, or out of range.
    """
    seconds = _seconds(value) if isinstance(value, str) else float(value)
    if not 0 <= seconds <= LONGEST:
        raise Flaw(f"{quote(value)} is out of range", hint="at most one day, `24h`")
    if positive and not seconds:
        raise Flaw(f"{quote(value)} is no time at all", hint="write more than 0")
    return seconds


def _seconds(text: str) -> float:
    if _NUMBER.fullmatch(text):
        return float(text)
    parts = _PART.findall(text[:_MAX_LENGTH])
    # each unit once at most, from the largest down
    ranks = [list(_UNITS).index(unit) for _, unit in parts]
    whole = "".join(number + unit for number, unit in parts) == text
    if not parts or not whole or ranks != sorted(set(ranks)):
        raise Flaw(f"{quote(text)} is not a duration", hint="for example `30s`, `1h30m` or `500ms`")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
