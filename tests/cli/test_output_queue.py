"""Output that its reader does not take: it is queued, in order, and delays nothing."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import pty
import re
import signal
import sys
import threading
import tty
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from krelay.cli import output_queue as module
from krelay.cli.output import echo, note, set_up_logging
from krelay.cli.output_queue import MOST_LINES, queued_output, wait_until_written
from tests import rig
from tests.cli.emulator import fill, terminal
from tests.integration.product import (
    ROOT,
    alive,
    command,
    document,
    environment,
    listens,
    run,
)

logger = logging.getLogger("krelay.cli")


class Reader:
    """Two streams of this process that lead to descriptors, and what was read from these."""

    def __init__(self, ends: list[int]) -> None:
        self.ends = ends

    def read(self, until: str) -> str:
        """Read from the last descriptor until a text comes."""
        found = ""
        while until not in found:
            found += self.read_some()
        return found

    def read_some(self) -> str:
        """Read what the last descriptor has."""
        return os.read(self.ends[-1], 1 << 16).decode()


@contextmanager
def streams(monkeypatch: pytest.MonkeyPatch, *pairs: tuple[int, int]) -> Iterator[Reader]:
    """Make stdout and stderr lead to the second of each pair, or of the only pair."""
    with ExitStack() as stack:
        for name, (_, place) in zip(("stdout", "stderr"), pairs * 2, strict=False):
            stream = stack.enter_context(open(os.dup(place), "w", encoding="utf-8"))
            monkeypatch.setattr(sys, name, stream)
        for _, place in pairs:
            os.close(place)
        set_up_logging(0)
        try:
            yield Reader([reader for reader, _ in pairs])
        finally:
            logging.getLogger().handlers.clear()
            for reader, _ in pairs:
                os.close(reader)


def a_terminal() -> tuple[int, int]:
    reader, place = pty.openpty()
    tty.setraw(place)
    return reader, place


def threads() -> int:
    return sum(thread.name == "output" for thread in threading.enumerate())


@pytest.mark.parametrize("kind", [os.pipe, a_terminal])
def test_lines_of_both_streams_are_written_in_order(
    kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    with streams(monkeypatch, kind()) as reader:
        before = threads()
        with queued_output(deadline=60.0):
            assert threads() == before + 1
            assert sys.stderr.isatty() == sys.stdout.isatty() == (kind is a_terminal)
            for number in range(100):
                echo(f"{number} echo")
                logger.info("%d log", number)
                note(f"{number} note")
        logger.info("after")
        text = re.sub(r"\d\d:\d\d:\d\d ", "", reader.read("after\n"))
        words = ("echo", "log", "note")
        assert text.splitlines() == [
            *(f"{number} {word}" for number in range(100) for word in words),
            "after",
        ]


@pytest.mark.parametrize("kind", [os.pipe, a_terminal])
def test_a_reader_that_goes_on_learns_how_many_lines_are_lost(
    kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_LINES", 100)
    written = 10_000  # more than waits and is on its way
    text, known = "", 0
    pair = kind()
    fill(pair[1])
    with streams(monkeypatch, pair) as reader, queued_output():
        for number in range(written):
            logger.info("line %d", number)
        while known < written:
            text += reader.read_some()
            shown = re.findall(r"line (\d+)\n", text)
            # A terminal may take some more after a pause, so that there is more than one gap.
            lost = re.findall(r"(\d+) lines are lost: the terminal or pipe took no output\n", text)
            known = len(shown) + sum(map(int, lost))
        logger.info("more")
        assert reader.read("\n").endswith(" more\n")
    assert known == written
    assert lost
    assert shown == sorted(set(shown), key=int)


def test_each_stream_has_its_own_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = os.pipe(), os.pipe()
    fill(out[1])
    with streams(monkeypatch, out, err) as reader, queued_output(deadline=0.0):
        for _ in range(MOST_LINES + 10):
            echo("data")
        logger.info("the log goes on")
        assert reader.read("\n").endswith(" the log goes on\n")


@pytest.mark.parametrize("kind", [os.pipe, a_terminal])
def test_the_end_waits_for_a_stuck_reader_only_so_long(
    kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = kind()
    fill(pair[1])
    with streams(monkeypatch, pair):
        with queued_output(deadline=0.01):
            # A terminal may take some of it after a pause, but never all.
            for _ in range(MOST_LINES // 2):
                logger.info("unread %s", "x" * 200)
        for _ in range(10_000):
            logger.info("dropped")
        note("dropped")


@pytest.mark.parametrize("kind", [os.pipe, a_terminal])
def test_a_reader_that_has_gone_costs_nothing(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, place = kind()
    other = os.open(os.devnull, os.O_RDONLY)
    with streams(monkeypatch, (other, place)), queued_output():
        os.close(reader)
        echo("gone")
        wait_until_written(sys.stdout)
        for _ in range(MOST_LINES + 1):
            echo("dropped")
        note("dropped")
    assert sys.stdout is not None


def test_a_descriptor_that_another_process_made_non_blocking_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = os.pipe()
    fill(pair[1])
    os.set_blocking(pair[1], False)
    with streams(monkeypatch, pair) as reader, queued_output():
        logger.info("waits")
        assert reader.read("waits\n").endswith(" waits\n")


def test_files_and_closed_streams_need_no_thread(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = threads()
    closed = io.StringIO()
    closed.close()
    for first, second in ((open(tmp_path / "out", "w"), open(os.devnull, "w")), (closed, closed)):  # noqa: SIM115
        monkeypatch.setattr(sys, "stdout", first)
        monkeypatch.setattr(sys, "stderr", second)
        with queued_output():
            assert (sys.stdout, sys.stderr) == (first, second)
            assert threads() == before
            wait_until_written(sys.stdout)
        first.close()
        second.close()


def test_without_a_thread_the_streams_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with streams(monkeypatch, os.pipe()) as reader:
        monkeypatch.setattr(threading.Thread, "start", start)
        with queued_output():
            echo("at once")
        assert reader.read("\n") == "at once\n"


# -- krelay ----------------------------------------------------------------------------------------


def write(tmp_path: Path, targets: dict[str, str]) -> Path:
    path = tmp_path / "krelay.yaml"
    path.write_text(document(targets))
    return path


@pytest.mark.process
async def test_krelay_relays_and_follows_its_file_at_a_terminal_that_takes_no_output(
    tmp_path: Path,
) -> None:
    async with rig.tcp_target(rig.echo) as port:
        targets = {"web": f"ip/127.0.0.1 {rig.closed_port()}:{port}"}
        path = write(tmp_path, targets)
        async with terminal("up", "--plain", cwd=tmp_path, columns=120) as screen:
            await screen.shows("web: ready")
            agent = re.search(r"embedded, process (\d+)", screen.text)
            assert agent is not None
            screen.stall()
            for name in ("one", "two"):
                more = rig.closed_port()
                targets[name] = f"ip/127.0.0.1 {more}:{port}"
                path.write_text(document(targets))
                await rig.until(lambda more=more: listens(more))
                assert await rig.exchange(more, b"x") == b"x"
                assert (await run("wait", name, cwd=tmp_path)).code == 0
            screen.go_on()
            await screen.shows("two: ready")
            assert screen.text.index("one: ready") < screen.text.index("two: added")
            screen.stall()
            screen.process.send_signal(signal.SIGTERM)
            assert await screen.process.wait() == 0
            assert not alive(int(agent[1]))


KUBECTL = "from krelay.cli.kubectl import main; raise SystemExit(main())"


@pytest.mark.process
@pytest.mark.parametrize("stopped", ["out", "err"])
async def test_krelay_relays_and_ends_beside_a_pipe_that_is_not_read(
    stopped: str, tmp_path: Path
) -> None:
    async with rig.tcp_target(rig.echo) as port:
        local = rig.closed_port()
        path = write(tmp_path, {"web": f"ip/127.0.0.1 {local}:{port}"})
        reader, place = os.pipe()
        fill(place)
        null = asyncio.subprocess.DEVNULL
        for program in (
            command("up", "-f", str(path)),
            [sys.executable, "-c", KUBECTL, "-f", str(path)],
        ):
            process = await asyncio.create_subprocess_exec(
                *program,
                env=environment(),
                cwd=ROOT,
                stdin=null,
                stdout=place if stopped == "out" else null,
                stderr=place if stopped == "err" else null,
            )
            try:
                await rig.until(lambda: listens(local))
                assert await rig.exchange(local, b"x") == b"x"
                process.terminate()
                assert await process.wait() == 0
            finally:
                if process.returncode is None:
                    process.kill()
        os.close(reader)
        os.close(place)
