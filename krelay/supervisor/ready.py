"""Ready: waiting, for a while, until every forward of a first config works."""

from __future__ import annotations

import asyncio

from krelay.errors import NotReadyError
from krelay.model import Config
from krelay.state.snapshot import ForwardState, State, told
from krelay.supervisor.snapshot import forwards
from krelay.supervisor.supervisor import Supervisor

_LOOK_EVERY = 0.05


async def wait_ready(
    supervisor: Supervisor,
    config: Config,
    timeout: float,
    *,
    then: str = "",
    hint: str | None = None,
) -> tuple[ForwardState, ...]:
    """All forwards of `config`, once each is ready. `supervisor` carries it out, in another task.

    Raises:
        NotReadyError: that takes more than `timeout` seconds; `then` says what comes of it.
    """
    expected = sum(len(target.ports) for target in config.targets)
    found: tuple[ForwardState, ...] = ()
    try:
        async with asyncio.timeout(timeout):
            while True:
                await asyncio.sleep(0)  # the supervisor goes first
                found = forwards(supervisor)
                if len(found) == expected and not _unready(found):
                    return found
                await asyncio.sleep(_LOOK_EVERY)
    except TimeoutError:
        late = _unready(found) if found else ["krelay is starting"]
        message = f"not ready after {timeout:g} s{f'; {then}' if then else ''}"
        raise NotReadyError(message, late, hint=hint) from None


def _unready(found: tuple[ForwardState, ...]) -> list[str]:
    return [told(f.name, f.state, f.reason) for f in found if f.state is not State.READY]
