"""`krelay up` at a real terminal: the table, the keys, and the restored terminal."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests import rig
from tests.cli.emulator import Terminal, terminal
from tests.integration.product import alive, document, listens

pytestmark = pytest.mark.process

KEYS = "r reload   q quit   ? help   / filter"


async def ended(screen: Terminal, code: int) -> None:
    assert await screen.process.wait() == code, screen.text
    await rig.until(lambda: screen.as_it_was)
    assert KEYS not in screen.text
    assert "TARGET" not in screen.text


def write(tmp_path: Path, port: int, *more: str, names: tuple[str, ...] = ("web",)) -> Path:
    path = tmp_path / "krelay.yaml"
    path.write_text(document(dict.fromkeys(names, f"ip/127.0.0.1 :{port}"), *more))
    return path


def table(screen: Terminal) -> list[str]:
    """Its lines, from the one above the heads."""
    lines = [line for line in screen.lines if line]
    heads = (number for number, line in enumerate(lines) if line.startswith("TARGET"))
    return lines[max(next(heads, len(lines)) - 1, 0) :]


async def test_the_table_its_keys_and_the_log_above(tmp_path: Path) -> None:
    async with rig.tcp_target(rig.echo) as port:
        path = write(tmp_path, port)
        async with terminal("up", cwd=tmp_path, columns=120) as screen:
            # A frame may arrive in pieces.
            await rig.until(
                lambda: (
                    [
                        *(line[:28] for line in table(screen)[:1]),
                        *(line[:27] for line in table(screen)[2:3]),
                        *table(screen)[3:],
                    ]
                    == ["krelay.yaml · 1 of 1 ready ·", "web     ● ready  127.0.0.1:", KEYS]
                )
            )
            assert not screen.as_it_was
            assert f"ip/127.0.0.1:{port}" in table(screen)[2]
            assert "agent: embedded, process" in screen.text.partition("krelay.yaml")[0]
            # Keys: help and back, a reload that finds something, Ctrl-Z and back.
            screen.type("?")
            await screen.shows("◌ draining")
            screen.type("?")
            await screen.hides("◌ draining")
            path.write_text(path.read_text() + f"  new: ip/127.0.0.1 :{port}\n")
            screen.type("r")
            await screen.shows("2 of 2 ready")
            await screen.shows("new: added")
            await rig.until(lambda: screen.text.count("TARGET") == 1)
            screen.type("\x1a")
            await screen.stopped()
            await screen.hides(KEYS)
            screen.process.send_signal(signal.SIGCONT)
            await screen.shows(KEYS)
            assert not screen.as_it_was
            screen.type("q")
            await ended(screen, 0)
            await screen.shows("q: stopping")


async def test_an_agent_that_is_lost_is_waited_for_from_then_on(tmp_path: Path) -> None:
    async with rig.tcp_target(rig.echo) as port:
        write(tmp_path, port, "tunnel: {ping: 0.1s, pingTimeout: 0.2s}")
        async with terminal("up", cwd=tmp_path, columns=120) as screen:
            await screen.shows("1 of 1 ready")
            found = re.search(r"embedded, process (\d+)", screen.text)
            assert found
            agent = int(found[1])
            os.kill(agent, signal.SIGSTOP)
            try:
                await screen.shows("agent: no tunnel, trying again")
            finally:
                os.kill(agent, signal.SIGCONT)
            await screen.hides("trying again")
            await screen.shows("1 of 1 ready")
            screen.type("q")
            await ended(screen, 0)


async def test_rates_and_draining(tmp_path: Path) -> None:
    async with rig.tcp_target(rig.echo) as port:
        write(tmp_path, port, "tunnel: {drain: 20s}")
        async with terminal("up", cwd=tmp_path, columns=120) as screen:
            await screen.shows("● ready")
            row = next(line for line in screen.lines if line.startswith("web"))
            local = int(row.split()[3].rpartition(":")[2])
            async with rig.connect(local) as (reader, writer):
                async with asyncio.TaskGroup() as tasks:

                    async def talk() -> None:
                        while True:
                            writer.write(b"x" * 5_000)
                            await reader.readexactly(5_000)
                            await asyncio.sleep(0.01)

                    talking = tasks.create_task(talk())
                    await screen.shows("kB/s")
                    talking.cancel()
                screen.type("q")
                await screen.shows("draining 1 connection ")
                await screen.shows("◌ draining")
                await screen.shows("ending · 1 draining")
                screen.type("q")
                await ended(screen, 130)


async def test_it_keeps_within_any_screen_and_a_resize_leaves_no_copies(tmp_path: Path) -> None:
    names = tuple(f"target-{number}" for number in range(20))
    async with rig.tcp_target(rig.echo) as port:
        write(tmp_path, port, names=names)
        async with terminal("up", cwd=tmp_path, columns=60, rows=12) as screen:
            await screen.shows("20 of 20 ready")
            await screen.shows("more ready")
            assert screen.text.count("krelay.yaml ·") == 1
            for columns, rows in ((80, 10), (40, 12), (50, 8), (100, 40), (24, 20), (30, 6)):
                screen.resize(columns, rows)
                shown = "target-19 " if rows == 40 else "more ready"
                await screen.shows(shown)
                # The whole screen is of one frame of the new size.
                await rig.until(lambda size=columns: len(screen.lines[-1]) < size)
                await rig.until(lambda: screen.text.count("TARGET") == 1)
                assert screen.text.count("20 of 20 ready") == 1
            screen.process.send_signal(signal.SIGTERM)
            await ended(screen, 0)
            assert not any("TARGET" in line for line in [*screen.lines, *screen.screen.scrolled])


async def test_the_log_is_on_the_normal_screen_after_ctrl_z_and_the_end(tmp_path: Path) -> None:
    async with rig.tcp_target(rig.echo) as port:
        write(tmp_path, port)
        async with terminal("up", cwd=tmp_path, columns=120) as screen:
            await screen.shows("1 of 1 ready")
            await screen.shows("web: ready")
            assert screen.screen.alternate
            screen.type("\x1a")
            await screen.stopped()
            await rig.until(lambda: screen.text.count("web: ready") == 1)
            screen.process.send_signal(signal.SIGCONT)
            await screen.shows(KEYS)
            assert screen.text.count("web: ready") == 1
            screen.type("q")
            await ended(screen, 0)
            await rig.until(lambda: screen.text.count("web: ready") == 1)


async def test_keys_scroll_and_filter_a_long_table(tmp_path: Path) -> None:
    # The log has `target-0: ready`, a row of the table `target-0 `.
    names = tuple(f"target-{number}" for number in range(40))
    async with rig.tcp_target(rig.echo) as port:
        write(tmp_path, port, names=names)
        async with terminal("up", cwd=tmp_path, columns=80, rows=20) as screen:
            await screen.shows("40 of 40 ready")
            await screen.shows("target-0 ")
            screen.type("j")
            await screen.shows("1 above")
            screen.type("G")
            await screen.shows("target-39 ")
            await screen.hides("more ready")
            screen.type("k")
            await screen.shows("1 more ready")
            screen.type("\x1b[H")
            await screen.shows("target-0 ")
            screen.type("/get-3")
            await screen.shows("/get-3")
            await screen.shows("target-39 ")
            await screen.hides("target-20 ")
            # A filter is text: `q` and `r` in it do nothing else.
            screen.type("q\r")
            await screen.shows("no forward contains this text")
            screen.type("\x1b")
            await screen.shows("more ready")
            screen.type("q")
            await ended(screen, 0)


async def test_without_colour_it_says_the_same(tmp_path: Path) -> None:
    async with rig.tcp_target(rig.echo) as port:
        write(tmp_path, port)
        async with terminal("up", cwd=tmp_path, NO_COLOR="1") as screen:
            await screen.shows("● ready")
            assert not any(f"\x1b[{colour}m".encode() in screen.raw for colour in range(30, 38))
            screen.type("\x03")
            await ended(screen, 0)


@pytest.mark.parametrize("way", ["dumb", "plain", "json"])
async def test_lines_where_a_table_is_not_wanted(way: str, tmp_path: Path) -> None:
    args = {"dumb": (), "plain": ("--plain",), "json": ("--log-format", "json")}[way]
    async with rig.tcp_target(rig.echo) as port:
        write(tmp_path, port)
        term: dict[str, Any] = {"TERM": "dumb"} if way == "dumb" else {}
        async with terminal("up", *args, cwd=tmp_path, columns=200, **term) as screen:
            await screen.shows(f"-> ip/127.0.0.1:{port} (tcp)")
            assert screen.as_it_was
            assert "TARGET" not in screen.text
            screen.type("\x03")
            await ended(screen, 0)


async def test_a_start_that_fails_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "krelay.yaml"
    async with rig.tcp_target(rig.echo) as taken:
        path.write_text(document({"web": f"ip/127.0.0.1 {taken}:1"}))
        async with terminal("up", cwd=tmp_path) as screen:
            await ended(screen, 1)
            await screen.shows(f"error: cannot listen on 127.0.0.1:{taken}")


async def test_ctrl_backslash_ends_it_by_that_signal_and_leaves_a_terminal(tmp_path: Path) -> None:
    async with rig.tcp_target(rig.echo) as port:
        write(tmp_path, port)
        async with terminal("up", cwd=tmp_path) as screen:
            await screen.shows("● ready")
            screen.type("\x1c")
            await ended(screen, -signal.SIGQUIT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_ends_at_a_terminal_that_takes_no_output(
    number: signal.Signals, tmp_path: Path
) -> None:
    async with rig.tcp_target(rig.echo) as port:
        write(tmp_path, port)
        async with terminal("up", cwd=tmp_path, columns=120) as screen:
            await screen.shows("● ready")
            agent = re.search(r"embedded, process (\d+)", screen.text)
            assert agent is not None
            screen.stall()
            screen.process.send_signal(number)
            assert await screen.process.wait() == 0
            assert not alive(int(agent[1]))


@pytest.mark.parametrize("stalled", [False, True], ids=["reading", "stalled"])
@pytest.mark.parametrize("plain", [(), ("--plain",)], ids=["table", "lines"])
async def test_a_window_that_is_closed_ends_it_and_its_agent(
    plain: tuple[str, ...], stalled: bool, tmp_path: Path
) -> None:
    more = rig.closed_port()
    async with rig.tcp_target(rig.echo) as port:
        path = write(tmp_path, port)
        async with terminal("up", *plain, cwd=tmp_path, columns=120) as screen:
            await screen.shows("web: ready")
            agent = re.search(r"embedded, process (\d+)", screen.text)
            assert agent is not None
            if stalled:
                screen.stall()
                path.write_text(path.read_text() + f"  more: ip/127.0.0.1 {more}:{port}\n")
                await rig.until(lambda: listens(more))  # what krelay says of it is not taken
            screen.hang_up()
            assert await screen.process.wait() == 0
            assert not alive(int(agent[1]))


def ignoring(number: signal.Signals) -> str:
    """A script that runs krelay as who started it has it: with a signal ignored."""
    return f"""
import os, signal, sys
signal.signal({int(number)}, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, "-m", "krelay", *sys.argv[1:]])
"""


@pytest.mark.parametrize(("number", "key"), [(signal.SIGQUIT, "\x1c"), (signal.SIGTSTP, "\x1a")])
async def test_a_key_whose_signal_was_ignored_does_nothing(
    number: signal.Signals, key: str, tmp_path: Path
) -> None:
    async with rig.tcp_target(rig.echo) as port:
        write(tmp_path, port)
        async with terminal("up", cwd=tmp_path, script=ignoring(number)) as screen:
            await screen.shows("● ready")
            screen.type(key)
            screen.type("?")
            await screen.shows("◌ draining")
            screen.type("q")
            await ended(screen, 0)


@pytest.mark.parametrize("plain", [(), ("--plain",)], ids=["table", "lines"])
async def test_a_window_that_is_closed_is_only_a_reload_where_hangups_were_ignored(
    plain: tuple[str, ...], tmp_path: Path
) -> None:
    """What cannot be said to a terminal that has gone does not end it either."""
    more = rig.closed_port()
    async with rig.tcp_target(rig.echo) as port:
        path = write(tmp_path, port)
        args = ("up", "--no-watch", *plain)
        async with terminal(
            *args, cwd=tmp_path, columns=120, script=ignoring(signal.SIGHUP)
        ) as screen:
            await screen.shows("web: ready")
            path.write_text(path.read_text() + f"  more: ip/127.0.0.1 {more}:{port}\n")
            screen.hang_up()
            await rig.until(lambda: listens(more) or screen.process.returncode is not None)
            assert await rig.exchange(more, b"x") == b"x"
            screen.process.send_signal(signal.SIGTERM)
            assert await screen.process.wait() == 0


BROKEN = """
import sys
from krelay.cli.terminal import live
from krelay.cli import main
def fail(*_):
    raise ZeroDivisionError
{}
sys.exit(main.main())
"""
PAINTING = "live.frame = fail"
REPORTING = "live.RateMeter.update = fail"
LATE = """
import time
live.frame, paint = fail, live.Live._paint_once
def late(self):
    while self._latest is None or not any("web: ready" in line for line in self._log._lines):
        time.sleep(0.01)
    paint(self)
live.Live._paint_once = late
"""
"""It fails with a line of the log that has not been shown."""


@pytest.mark.parametrize(
    "where", [PAINTING, REPORTING, LATE], ids=["painting", "reporting", "late"]
)
async def test_a_bug_of_the_table_does_not_end_what_is_relayed(where: str, tmp_path: Path) -> None:
    async with rig.tcp_target(rig.echo) as port:
        path = write(tmp_path, port)
        script = BROKEN.format(where)
        async with terminal("up", cwd=tmp_path, columns=120, rows=50, script=script) as screen:
            await screen.shows("the live table failed; `--plain` runs without it")
            await screen.shows("web: ready")
            path.write_text(path.read_text() + f"  new: ip/127.0.0.1 :{port}\n")
            await screen.shows("new: ready")
            screen.type("\x03")
            await ended(screen, 0)
