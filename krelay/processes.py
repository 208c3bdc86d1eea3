"""Processes: end a child process and leave nothing of it behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

from krelay.tasks import shield_cleanup


async def end(child: asyncio.subprocess.Process, *, grace: float = 0.0) -> None:
    """End `child` if it still runs, and close its pipes; a cancellation is raised afterwards.

    With `grace`, it gets a SIGTERM and so many seconds before it is killed. Its own children may go
    on, and may hold the other ends of its pipes.
    """
    # On Python 3.11.2 deadlines need a task that was not cancelled.
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
            # Before `wait`, which on some versions of Python waits for the pipes as well.
            if (pipe := transport.get_pipe_transport(number)) is not None:
                pipe.close()
        if child.returncode is None:
            send(child, signal.SIGKILL)
            await child.wait()
    finally:
        # Otherwise the transport closes itself when it is collected, perhaps after its loop.
        transport.close()


def send(child: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Send a signal to `child`, if it still runs, by the system's own call.

    asyncio's method polls the child first, and so takes its exit code away from the thread that
    waits for it.
    """
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, number)
