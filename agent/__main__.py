"""`python -m agent`: listen, then load the program and run it.

Loading takes most of an agent's start. A client that connects meanwhile waits for its answer, where
it would be refused and have to dial again.
"""

from __future__ import annotations

import _socket
import sys

from agent import HOST, PORT

_BACKLOG = 512


def listen(args: list[str]) -> int | None:
    """Listen where an agent does by default; return the socket's descriptor.

    None means that `args` may name another address, or that this one cannot be bound. Then the
    program tries, and reports why.
    """
    if any(arg.startswith(("--bind", "--port")) for arg in args):
        return None
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    try:
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        sock.bind((HOST, PORT))
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        return None
    return sock.detach()


if __name__ == "__main__":
    descriptor = listen(sys.argv[1:])

    from agent.program import run

    run(descriptor)
