"""What a snapshot says of the direct way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from krelay.agents.direct import DirectGroup
from krelay.model import DirectSpec
from krelay.state.states import ContextState, PodConnectionState
from krelay.supervisor.snapshot import direct_state
from krelay.tasks import TaskGroup
from tests import rig
from tests.datapath.test_direct import World


def group(made: World) -> DirectGroup:
    found: Any = SimpleNamespace(spec=DirectSpec("staging"), pool=made.pool)
    return cast(DirectGroup, found)


async def test_a_direct_way_that_nothing_uses_is_not_shown() -> None:
    assert direct_state(group(World())) is None


async def test_a_direct_way_shows_its_connections_and_what_it_does_not_reach() -> None:
    made = World()
    made.cluster.failures["b"] = OSError("no such pod")
    one, two = made.route("a"), made.route("b")
    async with TaskGroup() as tasks:
        running = tasks.create_task(made.pool.run())
        await made.reached(one)
        await rig.until(lambda: made.pool.failure)
        found = direct_state(group(made), lambda key: ContextState("the " + str(key), "", ""))
        assert found is not None
        assert found.context == "the staging"
        assert found.connections == (PodConnectionState("a", "spdy", 0),)
        assert found.failure == "no such pod"
        assert two.endpoint is not None
        running.cancel()
