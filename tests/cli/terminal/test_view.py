"""What a terminal shows of a krelay, and a pipe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.text import Text

from krelay.cli.terminal.view import (
    Selection,
    ViewModel,
    contexts,
    frame,
    headline,
    lines,
    matching,
    reasons,
    summary,
)
from krelay.state.states import (
    AgentState,
    ContextState,
    FileState,
    State,
    TunnelState,
)
from tests.cli.reports import NOW, START, forward, report

KEYS = (("r", "reload"), ("q", "quit"))


def plain(found: Iterable[Text]) -> list[str]:
    return [line.plain for line in found]


def painted(model: ViewModel, width: int = 120, height: int = 24) -> list[str]:
    return plain(frame(model, width, height).lines)


def model(found: dict[str, Any], **fields: Any) -> ViewModel:
    return ViewModel(found, {}, NOW, **fields)


def test_the_frame_has_a_headline_a_table_and_the_keys() -> None:
    head, title, web, keys = painted(model(report(forward()), keys=KEYS))
    assert len(head) == 120
    assert head.rstrip("─ ") == (
        "krelay.yaml · 1 of 1 ready · up 5m · agent default/krelay-server-x: 2 tunnels, 3 ms"
    )
    assert title.startswith("TARGET")
    assert web.startswith("web ")
    assert keys == "r reload   q quit"
    assert len(painted(model(report(forward())))) == 3


def test_help_explains_symbols_and_keys() -> None:
    found = painted(model(report(forward()), keys=KEYS, help="r applies the file."), 60)
    assert found[3] == "✗ failed   ◐ degraded   ○ pending   ● ready   ◌ draining"
    assert found[4].startswith("r applies the file. j, k, the arrows")
    assert found[-2].endswith("Ctrl-Z suspends.")


def test_a_wait_for_the_agent_is_shown_once() -> None:
    waiting = ("agent: pulling the image", 12.3)
    agent = AgentState(None, (), (TunnelState("p1t1", False, 0),))
    pending = forward("a", "pending"), forward("b", "pending"), forward("c", "failed")
    found = painted(model(report(*pending, agents=(agent,)), waiting=waiting, keys=KEYS))
    assert "agent: no tunnel" in found[0]
    assert [line for line in found if "refused" in line] == ["✗ c (5m): connection refused"]
    assert found[-2][1:] == " agent: pulling the image  12s"
    assert found[-2][0] in "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
    found = painted(model(report(), waiting=("agent: " + "x" * 90, 12.3)), 40)
    assert found[-1].endswith("x…  12s")


def test_a_file_out_of_sync_is_shown_with_its_first_problem() -> None:
    error: dict[str, Any] = {"message": "k.yaml: 2 problems\x1b"}
    file = FileState("/x/k.yaml", (), False, since=START, error=error)
    found = painted(model(report(forward(), file=file)))
    assert found[1] == "! out of sync with the file for 5m: k.yaml: 2 problems"
    assert found[2].startswith("TARGET")
    error["problems"] = [{"line": 3, "column": 5, "message": "unknown key"}, {"message": "x"}]
    error["hint"] = "it is `ports`"
    assert painted(model(report(forward(), file=file)))[1:4] == [
        "! out of sync with the file for 5m: k.yaml: 2 problems",
        "  3:5: unknown key (and 1 more)",
        "  hint: it is `ports`",
    ]
    error["path"] = "k.yaml"
    first, *_ = error["problems"]
    assert painted(model(report(forward(), file=file)))[2] == (
        "  k.yaml:3:5: unknown key (and 1 more)"
    )
    first["path"] = "team.yaml"  # an included file
    assert painted(model(report(forward(), file=file)))[2] == (
        "  team.yaml:3:5: unknown key (and 1 more)"
    )
    del error["path"]
    error["problems"] = error["problems"][1:]
    found = painted(model(report(forward(), file=file)), 40)
    lines = ["! out of sync with the file for 5m:", "  k.yaml: 2 problems", "  x"]
    assert found[1:5] == [*lines, "  hint: it is `ports`"]
    found = painted(model(report(forward(), file=file)), 40, 12)
    assert found[1:5] == [*lines[:2], "  x …", "TARGET  STATE    LOCAL           SINCE"]


def test_an_error_takes_the_place_of_the_table() -> None:
    found = {"error": {"message": "krelay is not running", "hint": "start it"}}
    assert painted(model(found, keys=KEYS)) == [
        "krelay is not running",
        "  hint: start it",
        "r reload   q quit",
    ]
    assert plain(summary(found, NOW, 80)) == ["krelay is not running", "  hint: start it"]


def test_the_headline_of_an_ending_run_and_of_one_without_a_file() -> None:
    found = painted(
        model(report(forward(state="draining"), draining=3, file=FileState(None, (), True)))
    )
    assert found[0].startswith("krelay · ending · 3 draining · up 5m")
    found = painted(model(report(ending=True)))
    assert found[0].startswith("krelay.yaml · ending · ")
    found = painted(model(report(forward(), forward("old", state="draining"))))
    assert found[0].startswith("krelay.yaml · 1 of 1 ready · ")
    found = painted(model(report(file=FileState(None, (), False))))
    assert found[0].startswith("krelay · starting · ")
    assert found[1] == "! not in sync with the file yet"


def test_the_headline_counts_tunnels_that_are_up() -> None:
    two = TunnelState("a", True, 0, 0.0002), TunnelState("b", False, 0)
    fast = report(forward(), agents=(AgentState(None, (), two),))
    assert "agent: 1 of 2 tunnels, <1 ms" in painted(model(fast))[0]
    one = report(forward(), agents=(AgentState(None, (), (TunnelState("a", True, 0),)),))
    assert painted(model(one))[0].rstrip("─ ").endswith("agent: 1 tunnel")


def test_the_headline_shows_what_compression_saves() -> None:
    tunnels = [
        TunnelState(name, True, 0, compression_input=30_000_000, compression_output=10_000_000)
        for name in "ab"
    ]
    found = report(forward(), agents=(AgentState(None, (), tuple(tunnels)),))
    assert "agent: 2 tunnels, 60 MB compressed to 20 MB" in painted(model(found))[0]


def test_a_headline_that_does_not_fit_loses_whole_parts() -> None:
    found = report(forward())
    assert [headline(found, NOW, width).plain for width in (60, 40, 30, 24)] == [
        "krelay.yaml · 1 of 1 ready · up 5m · 2 tunnels, 3 ms",
        "krelay.yaml · 1 of 1 ready · up 5m",
        "krelay.yaml · 1 of 1 ready",
        "krelay.y… · 1 of 1 ready",
    ]
    lost = AgentState(None, ("ns/pod",), (TunnelState("a", False, 0),))
    found = report(forward(), agents=(*report(forward())["agents"][:0], lost))
    assert headline(found, NOW, 50).plain == "krelay.yaml · 1 of 1 ready · agent: no tunnel"


def test_a_table_too_long_for_the_screen_says_what_is_left_out() -> None:
    forwards = [forward(f"t{number}") for number in range(30)]
    forwards[25] = forward("t25", "failed")
    found = painted(model(report(*forwards), keys=KEYS), height=10)
    assert len(found) == 10
    assert found[2].startswith("t25 ")
    assert found[3].startswith("t0 ")
    assert found[-3:] == [
        "… 25 more ready  j k scroll",
        "✗ t25 (5m): connection refused",
        "r reload   q quit",
    ]
    forwards[7] = forward("t7", "draining", reason="")
    found = painted(model(report(*forwards)), height=10)
    assert found[-2] == "… 24 more: 23 ready, 1 draining"


def test_a_long_table_scrolls_to_its_end_and_no_further() -> None:
    found = report(*(forward(f"t{number}") for number in range(30)))
    shown = frame(model(found, selection=Selection(5)), 120, 10)
    assert shown.lines[2].plain.startswith("t5 ")
    assert shown.lines[-1].plain == "… 5 above · 18 more ready"
    assert (shown.first, shown.page) == (5, 7)
    shown = frame(model(found, selection=Selection(99)), 120, 10)
    assert shown.lines[-2].plain.startswith("t29 ")
    assert shown.lines[-1].plain == "… 23 above"
    assert shown.first == 23
    whole = frame(model(found, selection=Selection(9)), 120, 40)
    assert (whole.first, whole.page) == (0, 30)


def test_a_wide_frame_has_the_tunnels_and_scrolls_by_lines() -> None:
    found = report(forward("a", "failed"), forward("b"))
    shown = painted(model(found, wide=True), 300, 24)
    assert "NAMESPACE" in shown[1]
    assert [line.split()[0] for line in shown[5:8]] == ["TUNNEL", "p1t1", "p1t2"]
    shown = painted(model(found, wide=True), 60, 6)
    assert shown[-1] == "… 7 more lines"
    shown = painted(model(found, wide=True, selection=Selection(99)), 60, 6)
    assert shown[-2] == "connections to the cluster: asyncio"
    assert shown[-1] == "… 7 above"


def test_a_filter_keeps_what_contains_its_text() -> None:
    found = report(
        forward("web"),
        forward("db", "failed", to="sts/postgres:5432", listen=("127.0.0.1:5432",)),
        forward("dns", namespace="kube-system"),
    )

    def named(pattern: str) -> list[str]:
        return [forward["name"] for forward in matching(found["forwards"], pattern)]

    assert named("") == ["db", "web", "dns"]
    assert named("POSTGRES") == named("5432") == named("failed") == named("refused") == ["db"]
    assert named("kube-") == ["dns"]
    assert named("accepted") == []  # why a forward is ready is not shown
    chosen = Selection(0, "post")
    shown = painted(model(found, keys=KEYS, selection=chosen))
    assert [line.split()[0] for line in shown[1:3]] == ["TARGET", "db"]
    assert shown[-1] == "/post   r reload   q quit"
    shown = painted(model(found, keys=KEYS, selection=Selection(0, "nothing", typing=True)))
    assert shown[1:] == [
        "no forward contains this text",
        "/nothing▏   Enter keeps it, Esc drops it",
    ]


def test_reasons_are_shared_and_broken_between_words() -> None:
    why = "refused: the agent reached the host, but nothing listens there"
    found = report(
        *(forward(name, "failed", reason=why) for name in "abcde"),
        forward("slow", "pending", reason="no ready pod"),
        forward("gone", "draining", reason=""),
        forward("web"),
    )
    found["forwards"][5]["lastError"] = {"message": "x", "hint": "see its events"}
    assert [plain(lines) for lines in reasons(found["forwards"], NOW, 40)] == [
        [
            "✗ a, b, c and 2 more (5m): refused:",
            "  the agent reached the host, but",
            "  nothing listens there",
        ],
        ["○ slow (5m): no ready pod", "  hint: see its events"],
    ]
    found["forwards"][0]["state"] = "asleep"
    assert plain(reasons(found["forwards"], NOW, 200)[0])[0].startswith("? a (5m): ")


def test_a_command_in_a_hint_stays_on_a_line_to_be_copied() -> None:
    found = report(forward("web", "failed"))
    trouble = found["forwards"][0]["lastError"] = {"message": "x"}
    trouble["hint"] = "check the name, and the port: kubectl get svc -n shop"
    assert plain(reasons(found["forwards"], NOW, 44)[0])[1:] == [
        "  hint: check the name, and the port:",
        "    kubectl get svc -n shop",
    ]
    trouble["hint"] = "see why with `kubectl describe pod`, and then"
    assert plain(reasons(found["forwards"], NOW, 40)[0])[1:] == [
        "  hint: see why with",
        "    `kubectl describe pod`, and then",
    ]
    assert all(line.cell_len <= 20 for line in reasons(found["forwards"], NOW, 20)[0])


def test_a_live_table_shows_the_beginning_of_long_reasons() -> None:
    found = report(*(forward(f"t{n}", "failed", reason=f"{n} " + "word " * 40) for n in range(4)))
    shown = painted(model(found), 60, 20)
    assert [line[:4] for line in shown if line.startswith("✗")] == ["✗ t0", "✗ t1", "✗ t2", "✗ t3"]
    assert sum(line.endswith("word …") for line in shown) == 4
    assert len(painted(model(found), 60, 9)) == 9


def test_status_at_a_terminal_keeps_within_its_columns() -> None:
    where = ContextState("dev", f"https://{'x' * 50}:6443", "team")
    found = report(forward("web"), forward("db", "failed"), contexts=(where,))
    for width in (40, 79, 120):
        for wide in (False, True):
            lines_ = summary(found, NOW, width, wide=wide)
            assert all(line.cell_len <= width for line in lines_)
    first, context, empty, title, db, web, why = plain(summary(found, NOW, 120))
    assert first.startswith("krelay.yaml · 1 of 2 ready")
    assert context.startswith("context dev: ")
    assert empty == ""
    assert title.startswith("TARGET")
    assert (db.split()[0], web.split()[0]) == ("db", "web")
    assert why == "✗ db (5m): connection refused"


def test_status_in_a_pipe_has_a_line_for_each_forward() -> None:
    found = report(forward("web"), forward("db", "failed"))
    _, db, web = plain(lines(found, NOW, None, wide=False))
    assert db.endswith("  connection refused")
    assert web.startswith("web ")
    assert "connections to the cluster: asyncio" in plain(lines(found, NOW, None, wide=True))


@settings(deadline=None)
@given(
    states=st.lists(st.sampled_from(State), max_size=40),
    width=st.integers(30, 150),
    height=st.integers(6, 40),
    waits=st.booleans(),
    help_=st.sampled_from(["", "q quits."]),
    selection=st.builds(Selection, st.integers(0, 50), st.sampled_from(["", "1", "t"])),
    wide=st.booleans(),
)
def test_the_frame_fits_every_screen(
    states: list[State],
    width: int,
    height: int,
    waits: bool,
    help_: str,
    selection: Selection,
    wide: bool,
) -> None:
    forwards = [forward(f"t{n}", state.value) for n, state in enumerate(states)]
    found = frame(
        model(
            report(*forwards),
            waiting=("agent: x", 1.0) if waits else None,
            keys=KEYS,
            help=help_,
            selection=selection,
            wide=wide,
        ),
        width,
        height,
    )
    assert len(found.lines) <= height
    assert all(line.cell_len <= width for line in found.lines)


def test_text_of_a_snapshot_cannot_move_the_cursor_or_be_markup() -> None:
    """The snapshot may come from a krelay that cleans nothing."""
    evil = "\x1b]0;owned\x07\x1b[2J\x1b[31mforged\r\n00:00:00 well\u2028\u202e\x9b1m\x7f[/x][bold]"
    texts = ("since", "started", "applied", "protocol")

    def spoilt(value: Any, key: str = "") -> Any:
        if isinstance(value, str) and key not in texts:
            return evil
        if isinstance(value, dict):
            return {name: spoilt(item, name) for name, item in value.items()}
        return [spoilt(item, key) for item in value] if isinstance(value, list) else value

    error = {"message": "x", "path": "x", "problems": []}
    file = FileState("/x/k.yaml", ("/x/k.yaml",), False, since=START, error=error)
    found = spoilt(report(forward(), forward("b", "failed"), file=file))
    for one, state in zip(found["forwards"], ("ready", "failed"), strict=True):
        one["state"] = state
    for line in painted(model(found, waiting=(evil, 3.0), help="x", keys=KEYS), 400):
        assert line.isprintable(), line
        assert not line.startswith("00:00:00"), line
    found["forwards"][0]["state"] = evil
    for line in plain(lines(found, NOW, None, wide=True)):
        assert line.isprintable(), line


def test_where_each_context_leads_is_a_line() -> None:
    found = report(
        forward(),
        contexts=(
            ContextState("dev\x1b[2J", "https://h:6443", "team", ("shop",)),
            ContextState("prod", "https://p", "team", ("a", "b", "c", "d", "e")),
            ContextState(None, "https://10.0.0.1", "default"),
        ),
    )
    assert [str(line) for line in contexts(found)] == [
        "context dev: https://h:6443, namespace shop",
        "context prod: https://p, namespaces a, b, c and 2 more",
        "in the cluster: https://10.0.0.1",
    ]
    del found["contexts"]  # of a krelay that ran before an update
    assert contexts(found) == []


def test_a_line_says_why_forwards_go_directly() -> None:
    forwards = [
        {"name": name, "wayReason": "cannot create jobs.batch" if name != "z" else ""}
        for name in "abcdez"
    ]
    (line,) = contexts({"forwards": forwards})
    assert str(line) == (
        "direct, TCP only and without resumption: a, b, c and 2 more: cannot create jobs.batch"
    )
