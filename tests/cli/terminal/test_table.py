"""The table of forwards, and that of tunnels."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.text import Text

from krelay.cli.terminal.figures import Rates
from krelay.cli.terminal.table import by_urgency, cut, table, tunnels, wrapped
from krelay.state.states import AgentState, ForwardState, ShortcutState, State, TunnelState
from krelay.text import one_line
from tests.cli.reports import NOW, carried, forward, report

LOCAL = "127.0.0.1:8080"


def plain(lines: Iterable[Text]) -> list[str]:
    return [line.plain for line in lines]


def rows(*forwards: ForwardState, **options: Any) -> list[str]:
    return plain(table(report(*forwards)["forwards"], NOW, **options).lines)


WEB = forward(live=2, traffic=carried(1_500_000, 42))
DB = forward("db", "failed", listen=(), endpoint=None, reason="no such host\nat all\x1b[31m")


def test_a_table_without_a_width_has_every_column_and_reason() -> None:
    title, web, db = rows(WEB, DB, reasons=True)
    assert " ".join(title.split()) == "TARGET STATE LOCAL TO ENDPOINT LIVE SINCE REASON"
    assert web.split() == f"web ● ready {LOCAL} svc/web:80 10.96.0.7:80 2 5m".split()
    assert db.split()[:7] == ["db", "✗", "failed", "–", "svc/db:80", "–", "–"]
    assert db.endswith("5m  no such host at all")


def test_a_wide_table_has_more_columns() -> None:
    title, web, _ = rows(WEB, DB, wide=True, reasons=True)
    assert title.split()[7:] == (
        ["CONTEXT", "NAMESPACE", "WAY", "VIA", "CHECK", "OPENED", "SENT", "RECEIVED", "REASON"]
    )
    assert "1.5 MB" in web
    assert "42 B" in web
    assert web.endswith("  its port accepted at 12:03")


def test_a_wide_table_in_a_narrow_terminal_has_the_rest_below_each_forward() -> None:
    both = forward(listen=(LOCAL, "[::1]:8080"), namespace="shop", traffic=carried(1_500_000, 0))
    _, web, *below = rows(both, wide=True, width=60)
    assert web.startswith(f"web     ● ready  {LOCAL} +1  svc/web:80")
    assert all(line.startswith("  ") and len(line) <= 60 for line in below)
    assert " ".join(" ".join(below).split()) == (
        f"local {LOCAL}, [::1]:8080 · since 5m · namespace shop · way agent · check auto · "
        "sent 1.5 MB"
    )
    assert len(rows(forward(way="", check=""), wide=True, width=60)) == 3
    assert len(rows(forward(way="", check=""), wide=True, width=70)) == 2


def test_known_rates_have_columns() -> None:
    lines = rows(WEB, DB, rates={("web", 0): (1_234_567, 0.1)}, width=120)
    assert "UP      DOWN" in lines[0]
    assert "1.2 MB/s         –" in lines[1]


RATES: Rates = {("web", 0): (1.0, 1.0)}


@pytest.mark.parametrize(
    ("width", "rates", "titles"),
    [
        (100, RATES, "TARGET STATE LOCAL TO ENDPOINT LIVE UP DOWN SINCE"),
        (99, RATES, "TARGET STATE LOCAL TO ENDPOINT LIVE UP DOWN SINCE"),
        (79, RATES, "TARGET STATE LOCAL TO LIVE UP DOWN SINCE"),
        (70, RATES, "TARGET STATE LOCAL TO LIVE UP DOWN"),
        (62, RATES, "TARGET STATE LOCAL LIVE UP DOWN"),
        (40, RATES, "TARGET STATE LOCAL LIVE"),
        (34, RATES, "TARGET STATE LOCAL"),
        (28, RATES, "TARGET LOCAL"),
        (79, {}, "TARGET STATE LOCAL TO ENDPOINT LIVE SINCE"),
    ],
)
def test_a_narrow_table_drops_columns(width: int, rates: Rates, titles: str) -> None:
    assert rows(WEB, DB, rates=rates, width=width)[0].split() == titles.split()


def test_columns_that_carry_nothing_go_before_names_are_cut() -> None:
    """While nothing moves, LIVE, UP and DOWN would hold nothing but dashes."""
    name = "checkout-frontend"
    title, line = rows(forward(name), rates={}, width=79)
    assert title.split() == ["TARGET", "STATE", "LOCAL", "TO", "SINCE"]
    assert line == f"{name}  ● ready  {LOCAL}  svc/{name}:80     5m"
    title, line = rows(forward(name), rates=RATES, width=79)
    assert title.split() == ["TARGET", "STATE", "LOCAL", "LIVE", "UP", "DOWN", "SINCE"]
    assert line.startswith(f"{name}  ● ready  {LOCAL} ")
    _, line = rows(forward(name), rates={}, width=70)
    assert line == f"{name}  ● ready  {LOCAL}  svc/{name}:80"
    assert rows(forward(name), rates={}, width=60)[1].endswith("  svc/checkout-fr…")


def test_a_local_address_is_never_cut() -> None:
    two = forward("a-long-name", listen=(LOCAL, "[::1]:8080"), endpoint=None, to="host/x:1")
    wanted = {
        70: f"a-long-name  ● ready  {LOCAL}, [::1]:8080  host/x:1     5m",
        60: f"a-long-name  ● ready  {LOCAL} +1  host/x:1     5m",
        41: f"a-long-name  ● ready  {LOCAL} +1",
        37: f"a-long-n…  ● ready  {LOCAL} +1",
        30: f"a-long-…  ●  {LOCAL} +1",
        22: "a-long-name  ●  :8080",
        10: "…  ●  :8080",
    }
    for width, line in wanted.items():
        assert rows(two, width=width)[1] == line
    assert rows(forward(listen=()), width=12)[1] == "web     ●  –"


def test_an_endpoint_is_shown_whole_or_not_at_all() -> None:
    for width in range(20, 100):
        line = rows(forward(endpoint="10.96.184.38:6379"), width=width)[1]
        assert "10.96" not in line or "10.96.184.38:6379" in line


def test_an_unknown_state_is_shown() -> None:
    found = report(WEB)["forwards"]
    found[0]["state"] = "asleep"
    assert "  ? asleep  " in table(found, NOW).lines[1].plain
    assert "  ?  " in table(found, NOW, width=25).lines[1].plain
    assert by_urgency([*report(DB)["forwards"], *found])[0]["state"] == "asleep"


def test_urgent_forwards_come_first_in_their_order() -> None:
    states = ["ready", "failed", "draining", "pending", "ready", "degraded", "failed"]
    found = by_urgency(
        report(*(forward(f"t{n}", state) for n, state in enumerate(states)))["forwards"]
    )
    assert [f["name"] for f in found] == ["t1", "t6", "t5", "t3", "t0", "t4", "t2"]


def test_a_udp_forward_is_marked() -> None:
    assert "svc/web:80/udp" in rows(forward(protocol="udp"))[1]


words = st.text(st.characters(codec="utf-8", exclude_characters="\x1b"), min_size=1, max_size=40)


@settings(deadline=None)
@given(
    found=st.lists(st.tuples(words, st.sampled_from(State), words), max_size=6),
    width=st.integers(20, 160),
    rates=st.sampled_from([None, {}, RATES]),
    wide=st.booleans(),
)
def test_every_forward_has_a_line_with_its_address_within_the_width(
    found: list[tuple[str, State, str]], width: int, rates: Rates | None, wide: bool
) -> None:
    forwards = report(*(forward(name, state.value, to=to) for name, state, to in found))["forwards"]
    made = table(forwards, NOW, width=width, rates=rates, wide=wide)
    assert len(made.rows) == len(found)
    assert all(line.cell_len <= width for line in made.lines)
    for row in made.rows:
        assert LOCAL in row[0].plain or ":8080" in row[0].plain.split()
        assert wide or len(row) == 1


@settings(deadline=None)
@given(words.map(one_line), st.integers(1, 60), st.integers(0, 4))
def test_wrapped_and_cut_lines_keep_within_the_width(text: str, width: int, indent: int) -> None:
    lines = wrapped(Text(text), width, indent)
    room = max(2, width, indent + 2)  # a letter may take two columns
    assert all(line.cell_len <= room for line in lines)
    assert "".join(plain(lines)).replace(" ", "") == text.replace(" ", "")
    assert cut(Text(text), width).cell_len <= width


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
    title, moved, aside_line, down = plain(tunnels(found, NOW))
    assert title == "TUNNEL  CARRIER  STREAMS     RTT  REASON"
    assert moved.split() == ["p1t1", "proxy", "3", "3.2", "ms"]
    reason = "not by proxy: cannot get pods/proxy (next attempt in 9m)"
    assert aside_line.split() == ["p1t2", "spdy", "0", "–", *reason.split()]
    assert down.split() == ["p1t3", "–", "0", "–", "no", "network"]
