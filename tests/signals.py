"""What this process was started with and must not hand on to the programs that it starts."""

from __future__ import annotations

import signal


def unignore() -> None:
    """Programs that are started inherit what is ignored, and would rightly go on ignoring it: a
    shell's background job ignores SIGINT, what `nohup` starts SIGHUP."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            default = number is signal.SIGINT
            signal.signal(number, signal.default_int_handler if default else signal.SIG_DFL)
