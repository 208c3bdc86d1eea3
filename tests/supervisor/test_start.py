"""The start of a run whose context has no agent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from krelay.errors import AccessDeniedError, ClusterError, UnreachableError
from krelay.supervisor.target_watcher import Failures
from krelay.supervisor.transitions.start import Start

DENIED = AccessDeniedError("cannot create pods/portforward", hint="ask")


@pytest.mark.parametrize(
    ("failure", "logged"),
    [
        (None, True),
        (AccessDeniedError("cannot get pods/portforward", hint="that too"), False),
        (UnreachableError("no answer"), True),
    ],
    ids=["pods are reached", "a right is missing for them too", "another error"],
)
async def test_a_missing_agent_is_logged_unless_the_error_of_the_start_says_it(
    failure: ClusterError | None, logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def reached() -> None:
        if failure is not None:
            raise failure

    way = SimpleNamespace(reached=reached)
    active: Any = SimpleNamespace(fall_back=lambda warm: [way])
    warm: Any = SimpleNamespace(fallen={None: DENIED})
    start = Start(active, Failures(), strict=False, must_exist=False, pod_running_timeout=None)
    if failure is None:
        await start._fall_back(warm)
    else:
        with pytest.raises(ClusterError) as caught:
            await start._fall_back(warm)
        assert caught.value is (failure if logged else DENIED)
    line = "no agent: cannot create pods/portforward; hint: ask; TCP ports of pods are reached"
    assert [message.startswith(line) for message in caplog.messages] == [True] * logged
