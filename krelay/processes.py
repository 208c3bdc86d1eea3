"""Processes: how a child of this process ends, with nothing of it left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

from krelay.tasks import shield_cleanup


async def end(child: asyncio.subprocess.Process, *, grace: float = 0.0) -> None:
    """End `child` if it still runs, and close its pipes; a cancellation waits for that.

    It has `grace` seconds for a SIGTERM before it is killed. Its own children may go on, and hold
    the other ends of its pipes.
    """
    # In a task that was not cancelled, as deadlines need on Python 3.11.2.
    await shield_cleanup(_end(child, grace))


async def _end(child: asyncio.subprocess.Process, grace: float) -> None:
    transport: asyncio.SubprocessTransport = child._transport  # type: ignore[attr-defined]
    try:
        if grace and child.returncode is None:
            send(child, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await child.wait()
        for number in (0, 1, 2):
            # First: on some versions of Python `wait` waits for these as well.
            if (pipe := transport.get_pipe_transport(number)) is not None:
                pipe.close()
        if child.returncode is None:
            send(child, signal.SIGKILL)
            await child.wait()
    finally:
        # Else it does so itself when it is collected, and its loop may be closed by then.
        transport.close()


def send(child: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """By the system's own call: asyncio's asks first whether the child has ended, and takes its
    exit code away from the thread that waits for it."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, number)
