"""Run krelay as on another system: `python -m tests.platforms SYSTEM [ARG...]`.

The names that Python lacks on that system are hidden before krelay is imported, and `sys.platform`
says its name. The libraries are imported before, because they have native modules of this system.
Paths, processes and sockets behave as here.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import os
import pkgutil
import re
import select
import selectors
import signal
import socket
import sys
import traceback
from types import ModuleType

import krelay

_NO_MODULES = {
    "win32": ("fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"),
    "darwin": (),
}
_HIDDEN: dict[str, dict[ModuleType, str]] = {
    "win32": {
        asyncio: r"open_unix_connection|start_unix_server",
        os: r"chown|fchmod|fork\w*|get(e|p)?[ug]id|getgroups|getpgrp|getpgid|getloadavg|killpg|"
        r"lchown|mkfifo|nice|openpty|O_(CLOEXEC|DIRECTORY|NOCTTY|NOFOLLOW|NONBLOCK)|pidfd_open|"
        r"pread\w*|pwrite\w*|sendfile|setsid|set[ug]id|statvfs|sysconf|tc[gs]etpgrp|"
        r"ttyname|uname|wait[34id]*|WNOHANG|eventfd\w*|memfd_create|getrandom|register_at_fork",
        select: r"e?poll|kqueue",
        signal: r"SIG(?!ABRT|FPE|ILL|INT|SEGV|TERM|_DFL|_IGN)\w+|alarm|[gs]etitimer|ITIMER_\w+|"
        r"pause|pthread_\w+|sig(interrupt|pending|wait\w*|timedwait)",
        socket: r"AF_(UNIX|NETLINK|PACKET)|CMSG_\w+|SCM_\w+|MSG_(DONTWAIT|NOSIGNAL)|SO_REUSEPORT|"
        r"SO_(BINDTODEVICE|PEERCRED|PRIORITY)|TCP_(CORK|DEFER_ACCEPT|INFO|QUICKACK|USER_TIMEOUT)|"
        r"SOCK_(CLOEXEC|NONBLOCK)",
    },
    "darwin": {
        os: r"pidfd_open|eventfd\w*|memfd_create|getrandom|O_TMPFILE|"
        r"O_(DIRECT|PATH|NOATIME)|fallocate|posix_f\w+|splice|copy_file_range|setns|unshare",
        select: r"epoll\w*|EPOLL\w+",
        signal: r"SIG(PWR|STKFLT|POLL|RTM\w+|CLD)|sig(timedwait|waitinfo)",
        socket: r"AF_(NETLINK|PACKET)|MSG_NOSIGNAL|MSG_CMSG_CLOEXEC|SO_(BINDTODEVICE|PEERCRED)|"
        r"SO_(DOMAIN|MARK|PASSCRED|PRIORITY|PROTOCOL)|TCP_(CORK|DEFER_ACCEPT|QUICKACK|INFO)|"
        r"TCP_(USER_TIMEOUT|LINGER2|SYNCNT)|SOCK_(CLOEXEC|NONBLOCK)|UDPLITE\w*|IP_RECVERR",
    },
}


def modules() -> list[str]:
    """Return the names of krelay's modules."""
    found = pkgutil.walk_packages(krelay.__path__, "krelay.")
    return sorted(module.name for module in found if not module.name.endswith("__main__"))


def disguise(system: str) -> None:
    """Hide what Python lacks on `system`, and forget krelay's modules."""
    for name in modules():
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "krelay"]:
        del sys.modules[name]
    for name in _NO_MODULES[system]:
        sys.modules[name] = None  # type: ignore[assignment]
    # asyncio's own pair of sockets is of TCP on Windows, which this system has no call for.
    pair = functools.partial(socket.socketpair, socket.AF_UNIX)
    socket.socketpair = lambda *_: pair()
    for module, names in _HIDDEN[system].items():
        for name in [name for name in dir(module) if re.fullmatch(names, name)]:
            delattr(module, name)
    selectors.DefaultSelector = selectors.SelectSelector  # type: ignore[misc,assignment]
    sys.platform = system


def imports() -> int:
    """Import each module of krelay; print those that cannot be."""
    failed = 0
    for name in modules():
        try:
            importlib.import_module(name)
        except Exception:
            failed += 1
            sys.stdout.write(f"{name}: {traceback.format_exc(limit=-2)}\n")
    return failed


def main() -> None:
    """Import everything, or run a command line, or several with `--each JSON`."""
    system, *args = sys.argv[1:]
    fork, wait = os.fork, os.wait
    disguise(system)
    if not args:
        sys.exit(imports())
    lines = json.loads(args[1]) if args[0] == "--each" else [args]
    for number, line in enumerate(lines):
        if number < len(lines) - 1 and fork():
            wait()
            continue
        sys.argv = ["krelay", *line]
        code = importlib.import_module("krelay.cli.entry").krelay()
        sys.stdout.write(f"exit code {code}\n" if len(lines) > 1 else "")
        sys.exit(0 if len(lines) > 1 else code)


if __name__ == "__main__":
    main()
