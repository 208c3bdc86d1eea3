"""Readiness: which forwards count, and what they wait for."""

from __future__ import annotations

import dataclasses

import pytest

from krelay.state.states import ForwardState, State, readiness
from tests.status.reports import forward, report

READY, FAILED = forward("web"), forward("db", State.FAILED, reason="refused")
DRAINING = forward("old", State.DRAINING)


def waiting(*forwards: ForwardState, names: tuple[str, ...] = ()) -> list[str]:
    return [found.target for found in readiness(report(*forwards).forwards, names).waiting]


def test_all_forwards_are_ready_if_each_is() -> None:
    assert readiness(report(READY).forwards).ready
    assert not readiness(report(READY, FAILED).forwards).ready
    assert waiting(READY, FAILED) == ["db"]


@pytest.mark.parametrize("state", [State.PENDING, State.DEGRADED, State.FAILED, State.DRAINING])
def test_only_the_state_ready_counts_as_ready(state: State) -> None:
    assert waiting(forward("a", state)) == ["a"]


def test_named_targets_are_judged_alone() -> None:
    assert readiness(report(READY, FAILED).forwards, ["web"]).ready
    assert waiting(READY, FAILED, names=("db", "web")) == ["db"]


def test_every_port_of_a_target_counts() -> None:
    other = dataclasses.replace(FAILED, target="web", index=1, name="web[81]")
    assert [f.name for f in readiness(report(READY, other).forwards, ["web"]).waiting] == [
        "web[81]"
    ]


def test_a_name_without_a_target_is_unknown() -> None:
    found = readiness(report(READY).forwards, ["web", "x", "y", "x"])
    assert found.unknown == ("x", "y")
    assert not found.ready


def test_a_draining_forward_counts_only_alone_or_by_name() -> None:
    assert waiting(READY, DRAINING) == []
    assert waiting(READY, DRAINING, names=("old",)) == ["old"]
    second = dataclasses.replace(DRAINING, target="web", index=1)
    assert waiting(READY, second, names=("web",)) == []


def test_without_forwards_krelay_is_starting() -> None:
    nothing = dataclasses.replace(report(READY), forwards=())
    for names in ((), ("web",)):
        found = readiness(nothing.forwards, names)
        assert (found.ready, found.unknown) == (False, ())
        assert found.as_json()["reason"] == "nothing is relayed yet"
    assert not nothing.ready


def test_readiness_has_its_documented_json_form() -> None:
    assert readiness(report(READY).forwards).as_json() == {
        "ready": True,
        "reason": "",
        "notReady": [],
    }
    assert readiness(report(FAILED).forwards).as_json()["notReady"] == [
        {
            "target": "db",
            "forward": "db",
            "state": "failed",
            "reason": "refused",
            "since": FAILED.since.isoformat(),
        }
    ]
