"""The wording of a plan."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from krelay.config.changes import Change, changes
from krelay.config.diff import Spec, diff
from krelay.config.grammar import parse_line, split, target_of
from krelay.model import (
    AgentConfig,
    Check,
    CheckKind,
    Config,
    GroupSpec,
    SessionConfig,
    StatusConfig,
    Target,
    Transport,
    TunnelConfig,
    Via,
)


def target(line: str, **fields: Any) -> Target:
    found, _ = parse_line(split(line))
    assert found is not None
    return target_of(found, name="web", **fields)


def described(
    before: str | Config | None, after: str | Config | None, *, live: int = 0, drain: float = 30.0
) -> list[str]:
    """Return the plan's lines with their signs; each forward and each agent carries `live`."""
    old, new = (Config((target(c),)) if isinstance(c, str) else c for c in (before, after))
    lines = changes(diff(old, new), live=lambda _: live, carried=lambda _: live, drain=drain)
    return [f"{line.sign} {line}" for line in lines]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (
            "svc/a 80",
            "svc/a 8080",
            [
                "~ web: re-routed svc/a:80 -> svc/a:8080, 2 live connections stay",
                "~ web: rebound 127.0.0.1:80 -> 127.0.0.1:8080, 2 live connections stay",
            ],
        ),
        (
            "svc/a 1:80",
            "deploy/a 1:http",
            ["~ web: re-routed svc/a:80 -> deploy/a:http, 2 live connections stay"],
        ),
        (
            "svc/a 1:80 -n x",
            "svc/a 1:80 -n y",
            ["~ web: re-routed svc/a:80 (in x) -> svc/a:80 (in y), 2 live connections stay"],
        ),
        (
            "svc/a 1:80 -l ::1",
            "svc/a :80 -l localhost",
            ["~ web: rebound [::1]:1 -> localhost:<free>, 2 live connections stay"],
        ),
        (
            "svc/a 1:80 2:http/udp",
            "svc/a http/udp",
            [
                "~ web: rebound 127.0.0.1:2/udp -> 127.0.0.1:<http>/udp, 2 live connections stay",
                "- web: removed 127.0.0.1:1 -> svc/a:80, 2 live connections given 30 s to finish",
            ],
        ),
        ("svc/a 1:80", "svc/a 1:80 2:81/udp", ["+ web: added 127.0.0.1:2/udp -> svc/a:81"]),
        ("svc/a 1:80", "svc/a 1:80", []),
    ],
)
def test_a_changed_forward_is_described(before: str, after: str, expected: list[str]) -> None:
    assert described(before, after, live=2) == expected


def test_each_address_of_a_forward_is_described() -> None:
    several = dataclasses.replace(target("svc/a 1:80"), listen="127.0.0.2,::1")
    _, line = described(None, Config((several,)))
    assert line == "+ web: added 127.0.0.2,[::1]:1 -> svc/a:80"


def test_one_connection_is_written_in_the_singular() -> None:
    (line,) = described("svc/a 1:80", "svc/a 1:81", live=1)
    assert line.endswith(", 1 live connection stays")
    (line,) = described("svc/a 1:80 2:81", "svc/a 1:80", live=1, drain=0.0)
    assert line.endswith(", 1 live connection cut")


def test_the_context_tells_apart_what_nothing_else_does() -> None:
    old = Config((target("svc/a 80"),))
    new = Config((target("svc/a 80", context="prod"),))
    assert described(old, new) == [
        "- agent: removed python:3.11-slim",
        "+ agent (prod): added python:3.11-slim",
        "~ web: re-routed svc/a:80 (context current) -> svc/a:80 (context prod)",
    ]


def test_another_way_is_another_route() -> None:
    old = Config((target("svc/a 80"),))
    new = Config((dataclasses.replace(target("svc/a 80"), via=Via.DIRECT),))
    assert described(old, new) == [
        "- agent: removed python:3.11-slim",
        "~ web: re-routed svc/a:80 (via auto) -> svc/a:80 (via direct)",
    ]


def test_a_first_plan_adds_agent_and_forward() -> None:
    assert described(None, "svc/a 80") == [
        "+ agent: added python:3.11-slim",
        "+ web: added 127.0.0.1:80 -> svc/a:80",
    ]
    embedded = Config((target("host/a 80"),), agent=AgentConfig(embedded=True))
    assert described(None, embedded)[0] == "+ agent: added embedded"


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (
            {"agent": AgentConfig(image="b", idle_timeout=5.0, node_selector={"a": "b"})},
            "agent.image python:3.11-slim -> b, agent.nodeSelector, agent.idleTimeout 300 -> 5",
        ),
        ({"agent": AgentConfig(namespace="x")}, "agent.namespace"),
        ({"namespace": "x"}, "namespace None -> x"),
        (
            {"tunnel": TunnelConfig(sessions=3, transport=Transport.SPDY)},
            "tunnel.sessions 2 -> 3, tunnel.transport auto -> spdy",
        ),
        (
            {"tunnel": TunnelConfig(connect_timeout=1, session=SessionConfig(resume_timeout=60))},
            "tunnel.connectTimeout 10 -> 1, tunnel.resumeTimeout 120 -> 60",
        ),
    ],
)
def test_a_changed_agent_lists_its_changed_keys(changed: dict[str, object], text: str) -> None:
    old = Config((target("svc/a 80 -n n"),))
    (line,) = described(old, dataclasses.replace(old, **changed), live=3)  # type: ignore[arg-type]
    assert line == f"~ agent: replaced {text}, 3 live connections given 30 s to finish"


def test_an_agent_that_is_no_longer_needed() -> None:
    both = Config(
        (target("svc/a 80"), dataclasses.replace(target("svc/a 1:80", context="c"), name="b"))
    )
    one = dataclasses.replace(both, targets=both.targets[:1])
    assert described(both, one, live=1)[0] == (
        "- agent (c): removed python:3.11-slim, 1 live connection given 30 s to finish"
    )


def test_a_changed_setting_is_described() -> None:
    old = Config((target("svc/a 80"),))
    assert described(
        old, dataclasses.replace(old, tunnel=TunnelConfig(open_timeout=0.5, drain=0.0))
    ) == [
        "~ tunnel.openTimeout: set 30 s -> 0.5 s",
        "~ tunnel.drain: set 30 s -> 0 s",
    ]


def test_where_the_status_service_listens_is_told_and_its_token_is_not() -> None:
    old = Config((target("svc/a 80"),))
    new = dataclasses.replace(old, status=StatusConfig(("127.0.0.1", 9527), "secret" * 4))
    assert described(old, new) == [
        "~ status.listen: set nowhere -> 127.0.0.1:9527",
        "~ status.token: set another one",
    ]


def test_a_check_is_a_setting_of_its_target() -> None:
    one = target("svc/a 80")
    other = dataclasses.replace(one, check=Check(CheckKind.HTTP, path="/x", status=200))
    assert described(Config((one,)), Config((other,)), live=2) == [
        "~ web.check: set auto -> http GET /x -> 200"
    ]


def test_connections_are_not_counted_by_default() -> None:
    plan = diff(Config((target("svc/a 1:80"),)), Config((target("svc/a 2:80"),)))
    assert [str(line) for line in changes(plan)] == ["web: rebound 127.0.0.1:1 -> 127.0.0.1:2"]


def test_counts_are_of_the_forward_and_the_agent_as_they_are() -> None:
    asked: list[object] = []

    def live(spec: Spec) -> int:
        asked.append(spec.port.local)
        return 0

    def carried(group: GroupSpec) -> int:
        asked.append(group.agent.image)
        return 0

    old = Config((target("svc/a 1:80 2:81"),), agent=AgentConfig(image="old"))
    new = Config((target("svc/a 3:80"),), agent=AgentConfig(image="new"))
    list(changes(diff(old, new), live=live, carried=carried))
    assert asked == ["old", 1, 2]


def test_a_change_has_fields_for_programs() -> None:
    change = Change("rebound", "web", "a", "b", 1, "stays")
    assert change.as_json() == {
        "change": "rebound",
        "name": "web",
        "before": "a",
        "after": "b",
        "live": 1,
        "fate": "stays",
        "sign": "~",
        "text": "web: rebound a -> b, 1 live connection stays",
    }
