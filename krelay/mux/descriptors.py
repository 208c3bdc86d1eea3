"""Files: a socket for each stream needs more of them than a process gets by default."""

from __future__ import annotations

import contextlib
import os
import time

_WANTED = 65_536
_LISTS = ("/proc/self/fd", "/dev/fd")
RESERVE = 256
"""Descriptors that accepted connections leave to everything else: dials, watches, files, status."""
_COUNT_EVERY = 0.1
"""Seconds between two counts, where they take a look at each file."""
_RESERVED_SHARE = 4
"""Where the limit is low, the reserve is one in so many."""


def raise_file_limit() -> None:
    """Use as many open files as the system lets this process have (the soft limit is often 1,024,
    or 256 on macOS); where it lets us have no more, what we have must do."""
    try:
        import resource
    except ImportError:
        # Windows: sockets are no files there.
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _WANTED:
        return
    wanted = _WANTED if hard == resource.RLIM_INFINITY else min(hard, _WANTED)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def file_limit() -> int | None:
    """How many files this process may have open; None where the system sets no limit."""
    try:
        import resource
    except ImportError:
        return None
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def open_files() -> int | None:
    """How many files this process has open; None where the system does not say."""
    for place in _LISTS:
        try:
            # Linux has said it in the size since 6.2; before, and elsewhere, they are counted.
            return os.stat(place).st_size if place == _LISTS[0] and _sized else _count(place)
        except FileNotFoundError:
            continue
        except OSError:  # not even one more
            return file_limit()
    return None


def reserve() -> int:
    """How many descriptors accepted connections must leave free."""
    limit = file_limit()
    return RESERVE if limit is None else min(RESERVE, limit // _RESERVED_SHARE)


def files_to_spare() -> bool:
    """Whether one more socket leaves the reserve alone."""
    global _spared, _counted_at
    now = time.monotonic()
    if _sized or now >= _counted_at + _COUNT_EVERY:
        limit, used = file_limit(), open_files()
        _spared = limit is None or used is None or limit - used > reserve()
        _counted_at = now
    return _spared


_spared = True
_counted_at = 0.0


def _count(place: str) -> int:
    return len(os.listdir(place)) - 1  # without the one that lists them


def _has_size() -> bool:
    try:
        return os.stat(_LISTS[0]).st_size > 0
    except OSError:
        return False


_sized = _has_size()
