"""A snapshot: whether it is ready, and its JSON form."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.state.snapshot import Snapshot
from krelay.state.states import (
    AgentState,
    ContextState,
    FileState,
    ForwardState,
    State,
    Traffic,
    TunnelState,
)

SCHEMA = json.loads((Path(__file__).parents[2] / "schema" / "status.schema.json").read_text())
WHEN = datetime(2024, 2, 29, 12, 30, tzinfo=UTC)

COUNTS = st.integers(0, 1 << 60)
TEXTS = st.text(max_size=10)
TIMES = st.datetimes(timezones=st.just(UTC))
TRAFFIC = st.builds(
    Traffic,
    opened=COUNTS,
    results=st.dictionaries(st.sampled_from(["ok", "reset", "no_such_host"]), COUNTS),
    to_remote_bytes=COUNTS,
    to_local_bytes=COUNTS,
    dials=st.dictionaries(st.sampled_from([0.001, 1.0, 10.0]), COUNTS),
    dial_count=COUNTS,
    dial_sum=st.floats(0, 1e6),
    drops=st.dictionaries(st.sampled_from(["backlog", "kernel"]), COUNTS),
)
FORWARDS = st.builds(
    ForwardState,
    target=TEXTS,
    index=st.integers(0, 9),
    name=TEXTS,
    to=TEXTS,
    state=st.sampled_from(State),
    reason=TEXTS,
    since=TIMES,
    protocol=st.sampled_from(["tcp", "udp", None]),
    listen=st.lists(TEXTS, max_size=2).map(tuple),
    endpoint=st.none() | TEXTS,
    live=COUNTS,
    traffic=TRAFFIC,
)
TUNNELS = st.builds(
    TunnelState,
    name=TEXTS,
    up=st.booleans(),
    streams=COUNTS,
    rtt=st.none() | st.floats(0, 10),
    failure=st.none() | TEXTS,
)
AGENTS = st.builds(
    AgentState,
    context=st.none() | TEXTS,
    where=st.lists(TEXTS, max_size=2).map(tuple),
    tunnels=st.lists(TUNNELS, max_size=2).map(tuple),
)
CONTEXTS = st.builds(
    ContextState, st.none() | TEXTS, TEXTS, TEXTS, st.lists(TEXTS, max_size=2).map(tuple)
)
FILES = st.builds(
    FileState,
    path=st.none() | TEXTS,
    files=st.lists(TEXTS, max_size=2).map(tuple),
    in_step=st.booleans(),
    since=st.none() | TIMES,
    error=st.none() | st.just({"message": "x", "hint": None, "exitCode": 2}),
)
SNAPSHOTS = st.builds(
    Snapshot,
    version=TEXTS,
    pid=st.integers(1, 1 << 22),
    started=TIMES,
    file=FILES,
    forwards=st.lists(FORWARDS, max_size=3).map(tuple),
    draining=COUNTS,
    agents=st.lists(AGENTS, max_size=2).map(tuple),
    contexts=st.lists(CONTEXTS, max_size=2).map(tuple),
)


def snapshot(*states: State) -> Snapshot:
    forwards = tuple(
        ForwardState("web", index, "web", "svc/web:80", state, "", WHEN)
        for index, state in enumerate(states)
    )
    return Snapshot("1", 1, WHEN, FileState(None, (), True), forwards, 0, ())


@pytest.mark.parametrize(
    ("states", "ready"),
    [
        ((), False),  # it starts, or has ended
        ((State.READY, State.READY), True),
        ((State.READY, State.PENDING), False),
        ((State.DEGRADED,), False),
        ((State.FAILED, State.READY), False),
        # A forward that an edit removed does not count, but without any other nothing is ready.
        ((State.READY, State.DRAINING), True),
        ((State.DRAINING,), False),
    ],
)
def test_a_snapshot_is_ready_if_every_active_forward_is(
    states: tuple[State, ...], ready: bool
) -> None:
    assert snapshot(*states).ready is ready
    assert snapshot(*states).as_json()["ready"] is ready


def test_a_snapshot_has_its_documented_json_form() -> None:
    found = snapshot(State.READY).as_json()
    assert found["memoryBytes"] == 0
    assert found["started"] == "2024-02-29T12:30:00+00:00"
    (forward,) = found["forwards"]
    assert (forward["state"], forward["listen"]) == ("ready", [])
    traffic = Traffic(dials={0.25: 3}, to_remote_bytes=7)
    assert Snapshot.as_json(snapshot()) is not None
    made = ForwardState("a", 0, "a", "b", State.READY, "", WHEN, traffic=traffic)
    whole = Snapshot("1", 1, WHEN, FileState(None, (), True), (made,), 0, ()).as_json()
    assert whole["forwards"][0]["traffic"]["dials"] == {"0.25": 3}
    assert whole["forwards"][0]["traffic"]["toRemoteBytes"] == 7


def test_the_status_schema_is_valid_and_describes_every_field() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)

    def walk(rules: dict[str, object]) -> None:
        assert rules.get("description"), rules
        for child in rules.get("properties", {}).values():  # type: ignore[attr-defined]
            walk(child)
        if rules.get("type") == "array" and "properties" in rules["items"]:  # type: ignore[operator]
            walk(rules["items"])  # type: ignore[arg-type]

    walk(SCHEMA)


@given(SNAPSHOTS)
def test_every_snapshot_validates_against_the_schema(made: Snapshot) -> None:
    jsonschema.validate(json.loads(json.dumps(made.as_json())), SCHEMA)
