"""Plans from one config to another, by tables and for any two configs."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.config.diff import (
    Pair,
    Setting,
    Spec,
    diff,
    directs,
    group_of,
    groups,
    needs_no_agent,
    specs,
)
from krelay.config.grammar import Word, parse_line, target_of
from krelay.model import (
    Affinity,
    AgentConfig,
    Check,
    CheckKind,
    Config,
    DirectSpec,
    GroupSpec,
    Kind,
    Port,
    Protocol,
    StatusConfig,
    Target,
    Transport,
    TunnelConfig,
    Via,
)


def target(name: str, line: str, **fields: Any) -> Target:
    found, errors = parse_line([Word(word) for word in line.split()])
    assert found is not None, errors
    return target_of(found, name=name, **fields)


def config(**lines: str) -> Config:
    return Config(tuple(target(name, line) for name, line in lines.items()))


def described(old: Config | None, new: Config | None) -> list[str]:
    """Return each change of a forward in a word, with the ports before and after."""
    found = []
    for pair in diff(old, new).changed:
        words = [word for word in ("rebound", "rerouted") if getattr(pair, word)]
        word = "+".join(words) or ("added" if pair.old is None else "removed")
        ports = [str(spec.port) for spec in (pair.old, pair.new) if spec is not None]
        spec = pair.new or pair.old
        assert spec is not None
        found.append(f"{word} {spec.target.name} {' > '.join(ports)}")
    return found


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("svc/a 8080:80", "svc/a 8080:80", []),
        ("svc/a 8080:80", "svc/a 8080:81", ["rerouted t 8080:80 > 8080:81"]),
        ("svc/a 8080:80", "svc/b 8080:80", ["rerouted t 8080:80 > 8080:80"]),
        ("svc/a 8080:80", "deploy/a 8080:80", ["rerouted t 8080:80 > 8080:80"]),
        ("svc/a 8080:80", "svc/a 8080:80 -n x", ["rerouted t 8080:80 > 8080:80"]),
        ("svc/a 8080:80", "svc/a 9090:80", ["rebound t 8080:80 > 9090:80"]),
        ("svc/a 8080:80", "svc/a 8080:80 -l ::1", ["rebound t 8080:80 > 8080:80"]),
        ("svc/a 8080:80", "svc/a :80", ["rebound t 8080:80 > :80"]),
        ("svc/a 8080:80", "svc/a 9090:81", ["rebound+rerouted t 8080:80 > 9090:81"]),
        ("svc/a :80", "svc/a :81", ["rerouted t :80 > :81"]),
        # The local port is what the name resolves to, which may be another one now.
        ("svc/a http", "svc/a https", ["rebound+rerouted t http > https"]),
        ("svc/a http", "svc/b http", ["rebound+rerouted t http > http"]),
        # The namespace of a host has no meaning.
        ("host/a 80", "host/a 80 -n x", []),
        # A host is TCP by default; the protocol of a Service or a pod may be UDP.
        ("host/a 80", "host/a 80/tcp", []),
        ("host/a 80", "host/a 80/udp", ["rebound t 80 > 80/udp"]),
        ("pod/a 80", "pod/a 80/tcp", ["rebound t 80 > 80/tcp"]),
        ("svc/a 80", "svc/a 80/tcp", ["rebound t 80 > 80/tcp"]),
        ("pod/a 80", "pod/a 80/udp", ["rebound t 80 > 80/udp"]),
        # One port of several.
        ("svc/a 1:80 2:81", "svc/a 2:81 1:80", []),
        ("svc/a 1:80 2:81", "svc/a 2:81", ["removed t 1:80"]),
        ("svc/a 2:81", "svc/a 1:80 2:81", ["added t 1:80"]),
        ("svc/a 1:80 2:81", "svc/a 1:80 3:81", ["rebound t 2:81 > 3:81"]),
        ("svc/a 1:80 2:81", "svc/a 1:80 3:82", ["added t 3:82", "removed t 2:81"]),
        (
            "svc/a 1:80 2:81",
            "svc/a 1:81 2:80",
            ["rerouted t 1:80 > 1:81", "rerouted t 2:81 > 2:80"],
        ),
        ("svc/a :80 :80", "svc/a :80", ["removed t :80"]),
        ("svc/a 53/tcp 53/udp", "svc/a 53/udp 53/tcp", []),
        ("svc/a 53/tcp 53/udp", "svc/a 53/udp", ["removed t 53/tcp"]),
    ],
)
def test_a_config_of_one_target_is_one_line(before: str, after: str, expected: list[str]) -> None:
    assert described(config(t=before), config(t=after)) == expected


def test_a_target_is_known_by_its_name_alone() -> None:
    assert described(config(a="svc/x 80"), config(b="svc/x 80")) == ["added b 80", "removed a 80"]
    assert described(config(a="svc/x 80", b="svc/y 81"), config(b="svc/y 81", a="svc/x 80")) == []


def test_a_port_that_moves_to_another_target_is_removed_and_added() -> None:
    before, after = config(a="svc/a 80", b="svc/b 81"), config(a="svc/a 81:80", b="svc/b 80:81")
    assert described(before, after) == ["rebound a 80 > 81:80", "rebound b 81 > 80:81"]


def test_a_plan_from_or_to_nothing_adds_or_removes_everything() -> None:
    one = config(a="svc/a 80")
    assert described(None, one) == ["added a 80"]
    assert described(one, None) == ["removed a 80"]
    assert not diff(None, None)
    assert [(g.old is None, g.new is None) for g in diff(None, one).groups] == [(True, False)]
    assert [(g.old is None, g.new is None) for g in diff(one, None).groups] == [(False, True)]


def test_where_a_target_stands_is_no_content() -> None:
    one = config(a="svc/a 80")
    moved = dataclasses.replace(
        one, targets=(dataclasses.replace(one.targets[0], line=9),), path="elsewhere"
    )
    assert not diff(one, moved)


# -- agents ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        {"agent": AgentConfig(image="python:3.13-slim")},
        {"agent": AgentConfig(namespace="relays")},
        {"agent": AgentConfig(labels={"a": "b"})},
        {"agent": AgentConfig(embedded=True)},
        {"namespace": "elsewhere"},
        {"tunnel": TunnelConfig(sessions=3)},
        {"tunnel": TunnelConfig(transport=Transport.SPDY)},
        {"tunnel": TunnelConfig(connect_timeout=3.0)},
    ],
)
def test_a_changed_agent_setting_replaces_the_agent(changed: dict[str, object]) -> None:
    old = config(a="host/a 80")
    new = dataclasses.replace(old, **changed)  # type: ignore[arg-type]
    plan = diff(old, new)
    (group,) = plan.groups
    assert group.old
    assert group.new
    assert group.old != group.new
    assert not plan.changed


def test_the_agent_s_namespace_hides_the_file_s() -> None:
    old = dataclasses.replace(config(a="svc/a 80 -n x"), agent=AgentConfig(namespace="relays"))
    assert not diff(old, dataclasses.replace(old, namespace="elsewhere"))


def test_changed_timeouts_are_settings() -> None:
    old = config(a="svc/a 80")
    plan = diff(old, dataclasses.replace(old, tunnel=TunnelConfig(open_timeout=1.0, drain=0.0)))
    assert plan
    assert not plan.groups
    assert [(s.name, s.before, s.after) for s in plan.settings] == [
        ("tunnel.openTimeout", 30.0, 1.0),
        ("tunnel.drain", 30.0, 0.0),
    ]


def test_the_status_service_needs_no_agent_either() -> None:
    old = config(a="svc/a 80")
    new = dataclasses.replace(old, status=StatusConfig(("::1", 9527), "a token that is long"))
    plan = diff(old, new)
    assert (plan.groups, plan.changed) == ((), [])
    assert [(s.name, s.before, s.after) for s in plan.settings] == [
        ("status.listen", "nowhere", "[::1]:9527"),
        ("status.token", "", "another one"),
    ]
    assert [s.after for s in diff(new, old).settings] == ["nowhere", "none"]


def test_a_changed_check_is_a_setting_and_no_change_of_the_forward() -> None:
    one, two = target("a", "svc/a 80"), target("b", "svc/b 81")
    none = dataclasses.replace(one, check=Check(CheckKind.NONE))
    plan = diff(Config((one, two)), Config((two, none)))
    assert [(s.name, s.before, s.after) for s in plan.settings] == [("a.check", "auto", "none")]
    assert not plan.changed
    assert not diff(Config((two,)), Config((two, none))).settings


def test_a_changed_choice_of_pods_is_a_setting() -> None:
    one = target("a", "svc/a 80")
    other = dataclasses.replace(one, ready=False, affinity=Affinity.CLIENT)
    plan = diff(Config((one,)), Config((other,)))
    assert [(s.name, s.before, s.after) for s in plan.settings] == [
        ("a.ready", "true", "false"),
        ("a.affinity", "none", "client"),
    ]
    assert not plan.changed


def test_an_agent_for_each_context_in_use() -> None:
    one, two = target("a", "svc/a 80"), target("b", "svc/b 81", context="other")
    old = Config((one, two), context="main")
    assert list(groups(old)) == ["main", "other"]
    assert [group_of(old, t) for t in old.targets] == ["main", "other"]
    plan = diff(old, dataclasses.replace(old, targets=(one,)))
    assert [(g.key, g.new) for g in plan.groups] == [("other", None)]
    moved = dataclasses.replace(one, context="third")
    plan = diff(old, dataclasses.replace(old, targets=(moved, two)))
    assert {(g.key, g.new is None) for g in plan.groups} == {("main", True), ("third", False)}
    assert [pair.rerouted for pair in plan.changed] == [True]


def test_an_agent_may_fall_back_to_the_namespaces_of_its_context_s_targets() -> None:
    targets = (
        target("a", "svc/a 80", namespace="shop"),
        target("b", "svc/b 81"),
        target("c", "svc/c 82", namespace="data"),
        target("d", "svc/d 83", namespace="shop"),
        target("e", "svc/e 84", namespace="far", context="other"),
    )
    config = Config(targets)
    found = {context: spec.fallbacks for context, spec in groups(config).items()}
    assert found == {None: ("shop", "data"), "other": ("far",)}
    (spec, _) = groups(dataclasses.replace(config, namespace="shop")).values()
    assert (spec.namespace, spec.fallbacks) == ("shop", ("data",))
    chosen = dataclasses.replace(config, agent=AgentConfig(namespace="relays"))
    assert [(s.namespace, s.fallbacks) for s in groups(chosen).values()] == [("relays", ())] * 2
    # An edit of targets never replaces an agent that runs.
    fewer = dataclasses.replace(config, targets=(targets[1], targets[4]))
    assert not diff(config, fewer).groups
    many = Config(tuple(target(f"t{n}", "svc/a :80", namespace=f"n{n}") for n in range(20)))
    assert len(groups(many)[None].fallbacks) == 8


def test_one_embedded_agent_whatever_the_contexts() -> None:
    targets = (target("a", "host/a 80"), target("b", "host/b 81", context="other"))
    embedded = Config(targets, agent=AgentConfig(embedded=True))
    assert groups(embedded) == {None: GroupSpec(None, None, AgentConfig(embedded=True))}
    assert {group_of(embedded, t) for t in targets} == {None}
    assert groups(None) == {}


# -- any two configs ---------------------------------------------------------------------------

PORTS = st.builds(
    Port,
    remote=st.sampled_from([80, 81, "http"]),
    local=st.sampled_from([None, 0, 1, 2]),
    protocol=st.sampled_from([None, Protocol.TCP, Protocol.UDP]),
)
TARGETS = st.builds(
    Target,
    name=st.sampled_from("abc"),
    kind=st.sampled_from([Kind.SERVICE, Kind.POD]),
    resource=st.sampled_from("xy"),
    ports=st.lists(PORTS, min_size=1, max_size=3).map(tuple),
    namespace=st.sampled_from([None, "n"]),
    context=st.sampled_from([None, "c"]),
    listen=st.sampled_from(["127.0.0.1", "::1"]),
    check=st.sampled_from([Check(), Check(CheckKind.NONE)]),
)
CONFIGS = st.builds(
    Config,
    targets=st.lists(TARGETS, max_size=3, unique_by=lambda t: t.name).map(tuple),
    context=st.sampled_from([None, "c"]),
    namespace=st.sampled_from([None, "n"]),
    agent=st.sampled_from([AgentConfig(), AgentConfig(embedded=True), AgentConfig(image="i")]),
    tunnel=st.sampled_from(
        [TunnelConfig(), TunnelConfig(open_timeout=1.0), TunnelConfig(sessions=1)]
    ),
)


def content(spec: Spec) -> tuple[object, ...]:
    return spec.target.name, spec.listens, spec.leads, spec.protocol


@given(CONFIGS)
def test_equal_configs_have_an_empty_plan(one: Config) -> None:
    assert not diff(one, one)
    assert not diff(one, dataclasses.replace(one, targets=tuple(reversed(one.targets))))


@given(CONFIGS, CONFIGS)
def test_every_forward_is_in_a_plan_once(old: Config, new: Config) -> None:
    pairs = diff(old, new).pairs
    assert [pair.new for pair in pairs if pair.new] == specs(new)
    assert sorted(spec.key for spec in (p.old for p in pairs) if spec) == sorted(
        spec.key for spec in specs(old)
    )
    assert len(set(specs(new))) == len(specs(new))
    assert all(p.old.target.name == p.new.target.name for p in pairs if p.old and p.new)


@given(CONFIGS, CONFIGS)
def test_a_pair_that_is_not_changed_is_the_same(old: Config, new: Config) -> None:
    for pair in diff(old, new).pairs:
        if not pair.changed:
            assert pair.old
            assert pair.new
            assert content(pair.old) == content(pair.new)


@given(CONFIGS, CONFIGS)
def test_a_forward_in_both_configs_is_unchanged(old: Config, new: Config) -> None:
    kept = {content(pair.old) for pair in diff(old, new).pairs if pair.old and not pair.changed}
    assert kept == {content(spec) for spec in specs(old)} & {content(spec) for spec in specs(new)}


@given(CONFIGS, CONFIGS)
def test_a_plan_contains_the_agents_that_differ(old: Config, new: Config) -> None:
    left = groups(old)
    for change in diff(old, new).groups:
        assert left.pop(change.key, None) == change.old
        if change.new:
            left[change.key] = change.new
    assert left == groups(new)


def test_a_pair_with_one_side_is_neither_rebound_nor_rerouted() -> None:
    spec = Spec(target("a", "svc/a 80"), 0)
    for pair in (Pair(spec, None), Pair(None, spec)):
        assert pair.changed
        assert not pair.rebound
        assert not pair.rerouted


def test_a_context_whose_targets_are_all_direct_has_no_agent() -> None:
    direct = dataclasses.replace(target("a", "svc/a 80"), via=Via.DIRECT)
    other = target("b", "svc/b 81", context="other")
    config = Config((direct, other), context="main")
    assert list(groups(config)) == ["other"]
    assert directs(config) == {"main": DirectSpec("main"), "other": DirectSpec("other")}
    insists = dataclasses.replace(other, via=Via.AGENT)
    assert directs(None) == directs(Config((insists, target("c", "host/c 82")))) == {}
    spdy = dataclasses.replace(config, tunnel=TunnelConfig(transport=Transport.SPDY))
    assert Setting("tunnel.transport", "auto", "spdy") in diff(config, spdy).settings


def test_another_way_leads_new_connections_elsewhere_on_the_same_address() -> None:
    before = target("a", "svc/a http")
    after = dataclasses.replace(before, via=Via.DIRECT)
    plan = diff(Config((before,)), Config((after,)))
    (pair,) = plan.changed
    assert (pair.rerouted, pair.rebound) == (True, False)
    assert [(change.old is None, change.new is None) for change in plan.groups] == [(False, True)]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["svc/a 80"], True),
        (["pod/a 80", "host/b 81"], True),
        (["host/b 81"], False),
        (["svc/a 53/udp"], False),
        (["svc/a 53/udp 80"], True),
        (["svc/a 80", "via agent"], False),
    ],
)
def test_a_context_does_without_an_agent_if_a_target_does_and_none_insists(
    lines: list[str], expected: bool
) -> None:
    targets = tuple(
        dataclasses.replace(target(f"t{n}", "svc/x 82"), via=Via.AGENT)
        if line == "via agent"
        else target(f"t{n}", line)
        for n, line in enumerate(lines)
    )
    assert needs_no_agent(Config(targets), None) is expected
