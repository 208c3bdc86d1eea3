"""The bottom of the terminal: what it shows when, and that it fits."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from krelay.cli.table import table
from krelay.cli.view import Moment, chosen, frame
from krelay.state.snapshot import AgentState, FileState, State, TunnelState
from tests.cli.reports import NOW, START, forward, report, shown


def lines(moment: Moment, width: int = 120, height: int = 24) -> list[str]:
    return shown(frame(moment, width, height), width)


def moment(found: dict[str, Any], **fields: Any) -> Moment:
    return Moment(found, {}, NOW, **fields)


def test_a_head_a_table_and_the_keys() -> None:
    head, title, web, keys = lines(moment(report(forward())))
    assert head.rstrip("─ ") == (
        "krelay.yaml · 1 of 1 ready · up 5m · agent default/krelay-server-x: 2 tunnels, 3 ms"
    )
    assert title.startswith("TARGET")
    assert web.startswith("web ")
    assert keys == "r reload   q quit   ? help"
    assert len(lines(moment(report(forward()), keys=False))) == 3


def test_help() -> None:
    found = "\n".join(lines(moment(report(forward()), help=True)))
    assert "● ready   ◐ degraded   ○ pending   ✗ failed   ◌ draining" in found
    assert "Ctrl-Z" in found


def test_a_wait_for_the_agent_is_said_once() -> None:
    waiting = ("agent: pulling the image", 12.3)
    agent = AgentState(None, (), (TunnelState("p1t1", False, 0),))
    pending = forward("a", "pending"), forward("b", "pending"), forward("c", "failed")
    found = lines(moment(report(*pending, agents=(agent,)), waiting=waiting))
    assert "agent: no tunnel" in found[0]
    assert [line for line in found if "refused" in line] == ["✗ c (5m): connection refused"]
    assert found[-2][1:] == " agent: pulling the image  12s"
    assert found[-2][0] in "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


def test_a_file_out_of_step() -> None:
    file = FileState(
        "/x/k.yaml", (), False, since=START, error={"message": "k.yaml: 1 problem\x1b"}
    )
    found = lines(moment(report(forward(), file=file)))
    assert found[1] == "! not what the file says for 5m: k.yaml: 1 problem"


def test_the_end_and_a_run_without_a_file() -> None:
    found = lines(
        moment(report(forward(state="draining"), draining=3, file=FileState(None, (), True)))
    )
    assert found[0].startswith("krelay · ending · 3 draining · up 5m")
    found = lines(moment(report(ending=True)))
    assert found[0].startswith("krelay.yaml · ending · ")
    found = lines(moment(report(forward(), forward("old", state="draining"))))
    assert found[0].startswith("krelay.yaml · 1 of 1 ready · ")
    found = lines(moment(report(file=FileState(None, (), False))))
    assert found[1] == "! not yet what the file says"


def test_some_tunnels_are_down_or_not_measured() -> None:
    tunnels = TunnelState("a", True, 0, 0.0002), TunnelState("b", False, 0)
    fast = report(forward(), agents=(AgentState(None, (), tunnels),))
    assert "agent: 1 of 2 tunnels, <1 ms" in lines(moment(fast))[0]
    one = report(forward(), agents=(AgentState(None, (), (TunnelState("a", True, 0),)),))
    assert lines(moment(one))[0].rstrip("─ ").endswith("agent: 1 tunnel")


def test_a_table_that_is_too_long_says_so() -> None:
    forwards = [forward(f"t{number}") for number in range(30)]
    forwards[25] = forward("t25", "failed")
    found = lines(moment(report(*forwards)), height=10)
    assert len(found) == 10
    assert found[-2] == "✗ t25 (5m): connection refused"
    assert found[-3] == "… and 25 more: `krelay status` has them all"
    assert found[-4].startswith("t25 ")


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(State), max_size=40),
    st.integers(30, 150),
    st.integers(6, 40),
    st.booleans(),
    st.booleans(),
)
def test_it_fits(states: list[State], width: int, height: int, waits: bool, helps: bool) -> None:
    forwards = [forward(f"t{n}", state.value) for n, state in enumerate(states)]
    shown_now = moment(report(*forwards), waiting=("agent: x", 1.0) if waits else None, help=helps)
    found = lines(shown_now, width, height)
    assert len(found) <= height
    assert all(cell_len(line) <= width for line in found)


@settings(deadline=None)
@given(st.lists(st.sampled_from(State), max_size=20), st.integers(-1, 25))
def test_trouble_comes_first_and_the_order_stays(states: list[State], count: int) -> None:
    forwards = report(*(forward(f"t{n}", s.value) for n, s in enumerate(states)))["forwards"]
    found = chosen(forwards, count)
    assert len(found) == max(0, min(count, len(forwards)))
    assert found == [f for f in forwards if f in found]
    left = [f for f in forwards if f not in found]
    if any(f["state"] != "ready" for f in left):
        assert all(f["state"] != "ready" for f in found)


def test_what_a_report_says_moves_no_cursor_and_is_no_markup() -> None:
    """Whoever sent it: it may be of a krelay that cleans nothing."""
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
    for line in lines(moment(found, waiting=(evil, 3.0), help=True), 400):
        assert line.isprintable(), line
        assert not line.startswith("00:00:00"), line
    found["forwards"][0]["state"] = evil
    for line in shown(table(found, wide=True, now=NOW), 2000):
        assert line.isprintable(), line
