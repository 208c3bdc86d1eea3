"""Children of a test that own a terminal."""

from __future__ import annotations

import atexit
import os
import pty
from collections.abc import Callable


def at_a_terminal(child: Callable[[], None], talk: Callable[[int], None]) -> int:
    """Run `child` in a process whose standard streams are a terminal, while `talk` has the other
    end; return the exit code. 99 is an exception's."""
    pid, master = pty.fork()
    if pid == 0:
        try:
            atexit._clear()  # what the tests' own process has registered
            child()
        except SystemExit:
            atexit._run_exitfuncs()
        except BaseException:
            os._exit(99)
        os._exit(0)
    try:
        talk(master)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(master)
