"""`python -m agent`: arguments in, a running server, and an end that waits for nothing stuck."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

from agent.dns import Lookups
from agent.server import Server
from agent.settings import Settings, parse
from krelay.mux.descriptors import raise_file_limit

# Each name that a slow resolver holds up takes a thread until it answers.
_RESOLVER_THREADS = 256


async def serve(settings: Settings) -> None:
    """Run a server until it is idle or a signal ends it."""
    loop = asyncio.get_running_loop()
    server = Server(settings, Lookups(_RESOLVER_THREADS))
    # As PID 1 of a container, signals without a handler are ignored.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop, signal.Signals(number).name)
    await server.run()


def main() -> int:
    """The exit code of the program."""
    settings = parse(sys.argv[1:])
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
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
    # A resolver's thread may hang for half a minute more; nobody waits for it.
    os._exit(code)
