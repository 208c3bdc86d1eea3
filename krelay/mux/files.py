"""Files: a socket for each stream needs more of them than a process gets by default."""

from __future__ import annotations

import contextlib

_WANTED = 65_536


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
