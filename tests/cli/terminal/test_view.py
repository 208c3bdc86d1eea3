"""The live table and the table of `krelay status`."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from krelay.cli.terminal.view import (
    RateMeter,
    ViewModel,
    age,
    contexts,
    frame,
    most_urgent,
    size,
    table,
    tunnels,
)
from krelay.state.states import (
    AgentState,
    ContextState,
    FileState,
    ShortcutState,
    State,
    TunnelState,
)
from krelay.text import one_line
from tests.cli.reports import NOW, START, carried, forward, report, shown


def lines(model: ViewModel, width: int = 120, height: int = 24) -> list[str]:
    return shown(frame(model, width, height), width)


def model(found: dict[str, Any], **fields: Any) -> ViewModel:
    return ViewModel(found, {}, NOW, **fields)


def test_the_frame_has_a_headline_a_table_and_the_keys() -> None:
    head, title, web, keys = lines(model(report(forward())))
    assert head.rstrip("─ ") == (
        "krelay.yaml · 1 of 1 ready · up 5m · agent default/krelay-server-x: 2 tunnels, 3 ms"
    )
    assert title.startswith("TARGET")
    assert web.startswith("web ")
    assert keys == "r reload   q quit   ? help"
    assert len(lines(model(report(forward()), keys=False))) == 3


def test_help_explains_symbols_and_keys() -> None:
    found = "\n".join(lines(model(report(forward()), help=True)))
    assert "● ready   ◐ degraded   ○ pending   ✗ failed   ◌ draining" in found
    assert "Ctrl-Z" in found


def test_a_wait_for_the_agent_is_shown_once() -> None:
    waiting = ("agent: pulling the image", 12.3)
    agent = AgentState(None, (), (TunnelState("p1t1", False, 0),))
    pending = forward("a", "pending"), forward("b", "pending"), forward("c", "failed")
    found = lines(model(report(*pending, agents=(agent,)), waiting=waiting))
    assert "agent: no tunnel" in found[0]
    assert [line for line in found if "refused" in line] == ["✗ c (5m): connection refused"]
    assert found[-2][1:] == " agent: pulling the image  12s"
    assert found[-2][0] in "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


def test_a_file_out_of_sync_is_shown_with_its_error() -> None:
    file = FileState(
        "/x/k.yaml", (), False, since=START, error={"message": "k.yaml: 1 problem\x1b"}
    )
    found = lines(model(report(forward(), file=file)))
    assert found[1] == "! out of sync with the file for 5m: k.yaml: 1 problem"


def test_the_headline_of_an_ending_run_and_of_one_without_a_file() -> None:
    found = lines(
        model(report(forward(state="draining"), draining=3, file=FileState(None, (), True)))
    )
    assert found[0].startswith("krelay · ending · 3 draining · up 5m")
    found = lines(model(report(ending=True)))
    assert found[0].startswith("krelay.yaml · ending · ")
    found = lines(model(report(forward(), forward("old", state="draining"))))
    assert found[0].startswith("krelay.yaml · 1 of 1 ready · ")
    found = lines(model(report(file=FileState(None, (), False))))
    assert found[1] == "! not in sync with the file yet"


def test_the_headline_counts_tunnels_that_are_up() -> None:
    two = TunnelState("a", True, 0, 0.0002), TunnelState("b", False, 0)
    fast = report(forward(), agents=(AgentState(None, (), two),))
    assert "agent: 1 of 2 tunnels, <1 ms" in lines(model(fast))[0]
    one = report(forward(), agents=(AgentState(None, (), (TunnelState("a", True, 0),)),))
    assert lines(model(one))[0].rstrip("─ ").endswith("agent: 1 tunnel")


def test_the_headline_shows_what_compression_saves() -> None:
    tunnels = [
        TunnelState(name, True, 0, compression_input=30_000_000, compression_output=10_000_000)
        for name in "ab"
    ]
    found = report(forward(), agents=(AgentState(None, (), tuple(tunnels)),))
    assert "agent: 2 tunnels, 60 MB compressed to 20 MB" in lines(model(found))[0]


def test_a_table_too_long_for_the_screen_says_what_is_left_out() -> None:
    forwards = [forward(f"t{number}") for number in range(30)]
    forwards[25] = forward("t25", "failed")
    found = lines(model(report(*forwards)), height=10)
    assert len(found) == 10
    assert found[-2] == "✗ t25 (5m): connection refused"
    assert found[-3] == "… and 25 more: `krelay status` shows them all"
    assert found[-4].startswith("t25 ")


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(State), max_size=40),
    st.integers(30, 150),
    st.integers(6, 40),
    st.booleans(),
    st.booleans(),
)
def test_the_frame_fits_every_screen(
    states: list[State], width: int, height: int, waits: bool, helps: bool
) -> None:
    forwards = [forward(f"t{n}", state.value) for n, state in enumerate(states)]
    shown_now = model(report(*forwards), waiting=("agent: x", 1.0) if waits else None, help=helps)
    found = lines(shown_now, width, height)
    assert len(found) <= height
    assert all(cell_len(line) <= width for line in found)


@settings(deadline=None)
@given(st.lists(st.sampled_from(State), max_size=20), st.integers(-1, 25))
def test_the_most_urgent_forwards_keep_their_order(states: list[State], count: int) -> None:
    forwards = report(*(forward(f"t{n}", s.value) for n, s in enumerate(states)))["forwards"]
    found = most_urgent(forwards, count)
    assert len(found) == max(0, min(count, len(forwards)))
    assert found == [f for f in forwards if f in found]
    left = [f for f in forwards if f not in found]
    if any(f["state"] != "ready" for f in left):
        assert all(f["state"] != "ready" for f in found)


def test_text_of_a_snapshot_cannot_move_the_cursor_or_be_markup() -> None:
    """The snapshot may come from a krelay that cleans nothing."""
    evil = "\x1b]0;owned\x07\x1b[2J\x1b[31mforged\r\n00:00:00 well\u2028\u202e\x9b1m\x7f[/x][bold]"
    plain = ("since", "started", "applied", "protocol")

    def spoilt(value: Any, key: str = "") -> Any:
        if isinstance(value, str) and key not in plain:
            return evil
        if isinstance(value, dict):
            return {name: spoilt(item, name) for name, item in value.items()}
        return [spoilt(item, key) for item in value] if isinstance(value, list) else value

    error = {"message": "x", "path": "x", "problems": []}
    file = FileState("/x/k.yaml", ("/x/k.yaml",), False, since=START, error=error)
    found = spoilt(report(forward(), forward("b", "failed"), file=file))
    for one, state in zip(found["forwards"], ("ready", "failed"), strict=True):
        one["state"] = state
    for line in lines(model(found, waiting=(evil, 3.0), help=True), 400):
        assert line.isprintable(), line
        assert not line.startswith("00:00:00"), line
    found["forwards"][0]["state"] = evil
    for line in shown(table(found["forwards"], wide=True, now=NOW), 2000):
        assert line.isprintable(), line


TWO = report(
    forward(live=2, traffic=carried(1_500_000, 42)),
    forward("db", "failed", listen=(), endpoint=None, reason="no such host\nat all\x1b[31m"),
)


def test_a_table_without_a_width_has_every_column_and_reason() -> None:
    title, web, db = shown(table(TWO["forwards"], now=NOW))
    assert title.split() == [
        "TARGET",
        "STATE",
        "LOCAL",
        "TO",
        "ENDPOINT",
        "LIVE",
        "SINCE",
        "REASON",
    ]
    assert web.split() == [
        "web",
        "●",
        "ready",
        "127.0.0.1:8080",
        "svc/web:80",
        "10.96.0.7:80",
        "2",
        "5m",
    ]
    assert db.split()[:7] == ["db", "✗", "failed", "–", "svc/db:80", "–", "–"]
    assert db.endswith("5m  no such host at all")


def test_a_wide_table_has_more_columns() -> None:
    title, web, _ = shown(table(TWO["forwards"], now=NOW, wide=True, width=80), 300)
    for word in (
        "CONTEXT",
        "NAMESPACE",
        "WAY",
        "VIA",
        "CHECK",
        "OPENED",
        "SENT",
        "RECEIVED",
        "REASON",
    ):
        assert word in title
    assert "1.5 MB" in web
    assert "42 B" in web
    assert web.endswith("  its port accepted at 12:03")


def test_reasons_follow_below_a_table_with_a_width() -> None:
    lines = shown(table(TWO["forwards"], now=NOW, width=120))
    assert "REASON" not in lines[0]
    assert lines[-1] == "✗ db (5m): no such host at all"
    assert len(shown(table(TWO["forwards"], now=NOW, width=120, explained=False))) == 3


def test_where_each_context_leads_is_a_line() -> None:
    found = report(
        forward(),
        contexts=(
            ContextState("dev\x1b[2J", "https://h:6443", "team"),
            ContextState(None, "https://10.0.0.1", "default"),
        ),
    )
    assert [str(line) for line in contexts(found)] == [
        "context dev: https://h:6443, namespace team",
        "in the cluster: https://10.0.0.1, namespace default",
    ]
    del found["contexts"]  # of a krelay that ran before an update
    assert contexts(found) == []


def test_known_rates_have_columns() -> None:
    lines = shown(table(TWO["forwards"], now=NOW, rates={("web", 0): (1_234_567, 0.1)}, width=120))
    assert "UP      DOWN" in lines[0]
    assert "1.2 MB/s         –" in lines[1]


@pytest.mark.parametrize(
    ("width", "titles"),
    [
        (100, ["TARGET", "STATE", "LOCAL", "TO", "ENDPOINT", "LIVE", "UP", "DOWN", "SINCE"]),
        (79, ["TARGET", "STATE", "LOCAL", "TO", "LIVE", "UP", "DOWN"]),
        (62, ["TARGET", "STATE", "LOCAL", "LIVE", "UP", "DOWN"]),
        (40, ["TARGET", "STATE", "LOCAL", "LIVE"]),
        (34, ["TARGET", "STATE", "LOCAL"]),
    ],
)
def test_a_narrow_table_drops_columns(width: int, titles: list[str]) -> None:
    assert shown(table(TWO["forwards"], now=NOW, rates={}, width=width), width)[0].split() == titles


def test_a_udp_forward_is_marked() -> None:
    assert "svc/web:80/udp" in shown(table(report(forward(protocol="udp"))["forwards"], now=NOW))[1]


words = st.text(st.characters(codec="utf-8", exclude_characters="\x1b"), min_size=1, max_size=40)


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(words, st.sampled_from(State), words, words), max_size=6),
    width=st.integers(20, 160),
    rated=st.booleans(),
)
def test_every_forward_has_a_line_within_the_width(
    rows: list[tuple[str, State, str, str]], width: int, rated: bool
) -> None:
    forwards = [
        forward(name, state.value, to=to, reason=reason) for name, state, to, reason in rows
    ]
    options: dict[str, Any] = {"rates": {}} if rated else {}
    lines = shown(table(report(*forwards)["forwards"], now=NOW, width=width, **options), width)
    unready = [row for row in rows if row[1] is not State.READY and one_line(row[3])]
    assert len(lines) == 1 + len(rows) + len(unready)
    assert all(cell_len(line) <= width for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0s"), (0, "0s"), (59.9, "59s"), (60, "1m"), (3599, "59m"), (7200, "2h"), (1e6, "11d")],
)
def test_an_age_has_one_unit(seconds: float, text: str) -> None:
    assert age(START.isoformat(), START + timedelta(seconds=seconds)) == text


def test_a_rate_is_the_difference_of_two_snapshots() -> None:
    rates = RateMeter()
    before = report(forward(traffic=carried(1000, 50)), forward("db", traffic=carried(0, 0)))
    after = report(forward(traffic=carried(3000, 50)), forward("new", traffic=carried(9, 9)))
    assert rates.update(before, 10.0) == {}
    assert rates.update(after, 10.5) == {("web", 0): (4000.0, 0.0), ("new", 0): (0.0, 0.0)}


def test_another_run_has_no_rates_at_first() -> None:
    rates = RateMeter()
    busy = report(forward(traffic=carried(1000, 1000)))
    rates.update(busy, 10.0)
    assert rates.update({**busy, "pid": 1}, 11.0) == {}
    assert rates.update({**busy, "pid": 1}, 12.0) == {("web", 0): (0.0, 0.0)}


def test_no_elapsed_time_and_fewer_bytes_give_no_rate() -> None:
    rates = RateMeter()
    rates.update(report(forward(traffic=carried(1000, 0))), 10.0)
    assert rates.update(report(forward(traffic=carried(2000, 0))), 10.0) == {}
    assert rates.update(report(forward(traffic=carried(0, 0))), 11.0) == {("web", 0): (0.0, 0.0)}


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1.0 kB"),
        (1234, "1.2 kB"),
        (9949, "9.9 kB"),
        (9951, "10 kB"),
        (999_499, "999 kB"),
        (1_500_000, "1.5 MB"),
        (2e15, "2000 TB"),
    ],
)
def test_a_size_has_a_unit(count: float, text: str) -> None:
    assert size(count) == text


@settings(deadline=None)
@given(st.floats(0, 9e14))
def test_a_size_has_three_digits_at_most(count: float) -> None:
    assert re.fullmatch(r"(\d{1,3}|\d\.\d) [kMGT]?B", size(count))


def test_the_table_of_tunnels_says_what_carries_each_and_why_not_by_proxy() -> None:
    aside = ShortcutState("cannot get pods/proxy\x1b", NOW + timedelta(minutes=9, seconds=5))
    found = report(
        agents=(
            AgentState(
                None,
                ("ns/pod",),
                (
                    TunnelState("p1t1", True, 3, 0.0032, carrier="proxy"),
                    TunnelState("p1t2", True, 0, carrier="spdy", shortcut=aside),
                    TunnelState("p1t3", False, 0, failure="no network", shortcut=aside),
                ),
            ),
        )
    )
    _, moved, aside_line, down = shown(tunnels(found, NOW))
    assert moved.split() == ["p1t1", "proxy", "3", "3.2", "ms"]
    reason = "not by proxy: cannot get pods/proxy (next attempt in 9m)"
    assert aside_line.split() == ["p1t2", "spdy", "0", "–", *reason.split()]
    assert down.split() == ["p1t3", "–", "0", "–", "no", "network"]


def test_a_line_says_why_forwards_go_directly() -> None:
    forwards = [
        {"name": name, "wayReason": "cannot create jobs.batch" if name != "z" else ""}
        for name in "abcdez"
    ]
    (line,) = contexts({"forwards": forwards})
    assert str(line) == (
        "direct, TCP only and without resumption: a, b, c and 2 more: cannot create jobs.batch"
    )
