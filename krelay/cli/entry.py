"""The entry points of the installed programs; Ctrl-C during their imports exits quietly."""

from __future__ import annotations

_INTERRUPTED = 130


def krelay() -> int:
    """Run `krelay`; return its exit code."""
    try:
        from krelay.cli.main import main
    except KeyboardInterrupt:
        return _INTERRUPTED
    return main()


def kubectl_relay() -> int:
    """Run `kubectl relay`; return its exit code."""
    try:
        from krelay.cli.kubectl import main
    except KeyboardInterrupt:
        return _INTERRUPTED
    return main()
