"""File descriptors: each stream has a socket, which takes more than a process gets by default."""

from __future__ import annotations

import contextlib
import os
import time

_WANTED = 65_536
_LISTS = ("/proc/self/fd", "/dev/fd")
RESERVE = 256
"""Descriptors that accepted connections leave free for dials, watches, files and the status API."""
_COUNT_EVERY = 0.1
"""Seconds between two counts, on systems where a count reads a whole directory."""
_RESERVED_SHARE = 4
"""With a low limit, the reserve is one descriptor in this many."""


def raise_file_limit() -> None:
    """Raise the soft limit of open files as far as the system allows, to 65,536 at most.

    It is often 1,024, and 256 on macOS. A limit that cannot be raised stays.
    """
    try:
        import resource
    except ImportError:
        # Windows has no such limit on sockets.
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _WANTED:
        return
    wanted = _WANTED if hard == resource.RLIM_INFINITY else min(hard, _WANTED)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def file_limit() -> int | None:
    """Return how many files this process may have open, None for any number."""
    try:
        import resource
    except ImportError:
        return None
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def open_files() -> int | None:
    """Return how many files this process has open, None if the system cannot tell."""
    for place in _LISTS:
        try:
            # Linux has the number as the directory's size since 6.2; others need a count.
            return os.stat(place).st_size if place == _LISTS[0] and _sized else _count(place)
        except FileNotFoundError:
            continue
        except OSError:  # no descriptor is left to open the directory
            return file_limit()
    return None


def reserve() -> int:
    """Return how many descriptors accepted connections must leave free."""
    limit = file_limit()
    return RESERVE if limit is None else min(RESERVE, limit // _RESERVED_SHARE)


def files_to_spare() -> bool:
    """Return whether one more socket leaves the reserve free."""
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
    return len(os.listdir(place)) - 1  # without the descriptor of the listing


def _has_size() -> bool:
    try:
        return os.stat(_LISTS[0]).st_size > 0
    except OSError:
        return False


_sized = _has_size()
