"""`python -m agent`: run a server with the settings of the command line."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

from agent.dial import Lookups
from agent.server import Server
from agent.settings import Settings, parse
from krelay.mux.descriptors import raise_file_limit
from krelay.mux.trace import show_wire_trace


async def serve(settings: Settings) -> None:
    """Run a server until it is idle or a signal ends it.

    Raises:
        OSError: the port cannot be bound.
    """
    loop = asyncio.get_running_loop()
    server = Server(settings, Lookups())
    # The kernel ignores signals to PID 1 of a container that have no handler.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop, signal.Signals(number).name)
    await server.run()


def main() -> int:
    """Run the program; return its exit code."""
    settings = parse(sys.argv[1:])
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    show_wire_trace()
    raise_file_limit()
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(serve(settings))
    except OSError as exc:
        logging.getLogger("krelay.agent").error("cannot listen: %s", exc)
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    # Not sys.exit: a resolver's thread may hang for half a minute more.
    os._exit(code)
