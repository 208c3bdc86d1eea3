"""The text and the JSON form of each public event, as `/v1/events` documents them."""

from __future__ import annotations

from typing import Any

import pytest

from krelay.errors import ConfigError, KrelayError, Problem
from krelay.state.events import (
    AgentLost,
    AgentStarted,
    ConfigApplied,
    ConfigNotApplied,
    ConfigRefused,
    ForwardChanged,
    PublicEvent,
    TunnelChanged,
)
from krelay.state.states import State

WRONG = ConfigError("k.yaml", [Problem(3, 1, "no such key", "did you mean `port`?")])


@pytest.mark.parametrize(
    ("event", "kind", "text", "details"),
    [
        (
            ForwardChanged("web", "web[81]", 1, State.READY, State.DEGRADED, "refused"),
            "state",
            "web[81]: degraded: refused",
            {"from": "ready", "to": "degraded", "reason": "refused", "index": 1},
        ),
        (
            ForwardChanged("web", "web", 0, State.PENDING, State.READY),
            "state",
            "web: ready",
            {"from": "pending", "to": "ready", "reason": "", "index": 0},
        ),
        (
            AgentStarted("dev", "default/a"),
            "agent",
            "agent runs: default/a",
            {"context": "dev", "where": "default/a"},
        ),
        (
            AgentLost(None, "default/a", "it was evicted"),
            "agent",
            "agent lost: it was evicted",
            {"context": None, "where": "default/a"},
        ),
        (
            TunnelChanged("dev", "p1t1", True),
            "tunnel",
            "p1t1: up",
            {"context": "dev", "tunnel": "p1t1", "up": True},
        ),
        (
            TunnelChanged("dev", "p1t1", False, "no answer"),
            "tunnel",
            "p1t1: lost: no answer",
            {"context": "dev", "tunnel": "p1t1", "up": False},
        ),
        (
            TunnelChanged(None, "p1t1", False),
            "tunnel",
            "p1t1: lost",
            {"context": None, "tunnel": "p1t1", "up": False},
        ),
        (
            ConfigApplied("an edit", 2, ("web: added", "db: removed")),
            "reload",
            "applied (an edit): web: added, +1",
            {"generation": 2, "changes": ["web: added", "db: removed"]},
        ),
        (
            ConfigRefused(WRONG),
            "reload",
            "refused: k.yaml: 1 problem",
            {
                "error": {
                    "message": "k.yaml: 1 problem",
                    "hint": None,
                    "exitCode": 2,
                    "path": "k.yaml",
                    "problems": [
                        {
                            "line": 3,
                            "column": 1,
                            "message": "no such key",
                            "hint": "did you mean `port`?",
                            "path": None,
                        }
                    ],
                }
            },
        ),
        (
            ConfigNotApplied(KrelayError("no image")),
            "reload",
            "not applied: no image",
            {"error": {"message": "no image", "hint": None, "exitCode": 1}},
        ),
    ],
)
def test_an_event_has_its_documented_json_form(
    event: PublicEvent, kind: str, text: str, details: dict[str, Any]
) -> None:
    found = event.as_json()
    assert (found["kind"], found["text"], found["details"]) == (kind, text, details)
    assert found["target"] == ("web" if kind == "state" else None)
