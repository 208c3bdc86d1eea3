"""The program: run a server with the settings of the command line."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from typing import NoReturn

from agent.dial import Lookups
from agent.server import Server
from agent.settings import Settings, parse
from krelay.mux.descriptors import raise_file_limit
from krelay.mux.trace import show_wire_trace


async def serve(settings: Settings, sock: socket.socket | None = None) -> None:
    """Run a server until it is idle or a signal ends it. `sock` is a listener to use.

    Raises:
        OSError: the port cannot be bound.
    """
    loop = asyncio.get_running_loop()
    server = Server(settings, Lookups())
    # The kernel ignores signals to PID 1 of a container that have no handler.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop, signal.Signals(number).name)
    await server.run(sock)


def main(descriptor: int | None = None) -> int:
    """Run the program; return its exit code. `descriptor` is that of a listener to use."""
    settings = parse(sys.argv[1:])
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    show_wire_trace()
    raise_file_limit()
    loop = asyncio.new_event_loop()
    try:
        sock = socket.socket(fileno=descriptor) if descriptor is not None else None
        loop.run_until_complete(serve(settings, sock))
    except OSError as exc:
        logging.getLogger("krelay.agent").error("cannot listen: %s", exc)
        return 1
    return 0


def run(descriptor: int | None) -> NoReturn:
    """Run the program and end the process. `descriptor` is that of a listener to use."""
    code = main(descriptor)
    logging.shutdown()
    # Not sys.exit: a resolver's thread may hang for half a minute more.
    os._exit(code)
