"""Entry: what the installed programs call; a Ctrl-C while they still import ends them quietly."""

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
