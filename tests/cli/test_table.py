"""The table: what it has at which width."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from krelay.cli.table import age, table
from krelay.state.snapshot import State
from krelay.text import one_line
from tests.cli.reports import NOW, START, carried, forward, report, shown

TWO = report(
    forward(live=2, traffic=carried(1_500_000, 42)),
    forward("db", "failed", listen=(), endpoint=None, reason="no such host\nat all\x1b[31m"),
)


def test_all_of_it_where_there_is_no_end_of_the_line() -> None:
    title, web, db = shown(table(TWO, now=NOW))
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


def test_wide_has_more() -> None:
    title, web, _ = shown(table(TWO, now=NOW, wide=True, width=80), 300)
    for word in ("CONTEXT", "NAMESPACE", "VIA", "CHECK", "OPENED", "SENT", "RECEIVED", "REASON"):
        assert word in title
    assert "1.5 MB" in web
    assert "42 B" in web


def test_on_a_terminal_the_reasons_come_below() -> None:
    lines = shown(table(TWO, now=NOW, width=120))
    assert "REASON" not in lines[0]
    assert lines[-1] == "✗ db (5m): no such host at all"
    assert len(shown(table(TWO, now=NOW, width=120, explained=False))) == 3


def test_rates_are_said_where_they_are_known() -> None:
    lines = shown(table(TWO, now=NOW, rates={("web", 0): (1_234_567, 0.1)}, width=120))
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
def test_what_there_is_no_room_for_is_left_out(width: int, titles: list[str]) -> None:
    assert shown(table(TWO, now=NOW, rates={}, width=width), width)[0].split() == titles


def test_udp_says_so() -> None:
    assert "svc/web:80/udp" in shown(table(report(forward(protocol="udp")), now=NOW))[1]


words = st.text(st.characters(codec="utf-8", exclude_characters="\x1b"), min_size=1, max_size=40)


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(words, st.sampled_from(State), words, words), max_size=6),
    width=st.integers(20, 160),
    rated=st.booleans(),
)
def test_no_line_is_longer_than_there_is_room_and_each_forward_has_one(
    rows: list[tuple[str, State, str, str]], width: int, rated: bool
) -> None:
    forwards = [
        forward(name, state.value, to=to, reason=reason) for name, state, to, reason in rows
    ]
    options: dict[str, Any] = {"rates": {}} if rated else {}
    lines = shown(table(report(*forwards), now=NOW, width=width, **options), width)
    unready = [row for row in rows if row[1] is not State.READY and one_line(row[3])]
    assert len(lines) == 1 + len(rows) + len(unready)
    assert all(cell_len(line) <= width for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0s"), (0, "0s"), (59.9, "59s"), (60, "1m"), (3599, "59m"), (7200, "2h"), (1e6, "11d")],
)
def test_ages(seconds: float, text: str) -> None:
    assert age(START.isoformat(), START + timedelta(seconds=seconds)) == text
