"""`krelay run`: the environment, signals and exit code of the command, and the clean-up."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from krelay.cli.run import CommandError, find
from krelay.processes import send
from tests import rig
from tests.cli.emulator import terminal
from tests.integration.product import ROOT, Done, alive, command, document, environment, run

pytestmark = pytest.mark.process

ASK = """
import os, socket, sys
place = os.environ["KRELAY_WEB_HOST"], int(os.environ["KRELAY_WEB_PORT"])
with socket.create_connection(place) as s:
    s.sendall(b"hello"); s.shutdown(socket.SHUT_WR)
    print(s.recv(100).decode(), end=""); print("err", end="", file=sys.stderr)
sys.exit(7)
"""


def write(tmp_path: Path, port: int, *more: str) -> Path:
    path = tmp_path / "krelay.yaml"
    path.write_text(document({"web": f"ip/127.0.0.1 :{port}"}, *more))
    return path


@asynccontextmanager
async def running(
    file: Path, script: str, before: Sequence[str] = ()
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A `krelay run` of a Python script that has said `ready`."""
    process = await asyncio.create_subprocess_exec(
        *(*before, *command("run", "-f", str(file), "-v", "--", sys.executable, "-c", script)),
        env=environment(PYTHONPATH=str(ROOT)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"ready\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_the_command_talks_through_its_forward(tmp_path: Path) -> None:
    async with rig.tcp_target(rig.echo) as port:
        file = write(tmp_path, port)
        done = await run("run", "-f", str(file), "web", "--", sys.executable, "-c", ASK)
    assert done == Done(7, "hello", "err")  # not a word of krelay's own


async def test_what_it_says_it_did_with_v_and_no_agent_is_left(tmp_path: Path) -> None:
    async with rig.tcp_target(rig.echo) as port:
        file = write(tmp_path, port)
        done = await run("run", "-v", "-f", str(file), "--", sys.executable, "-c", "print('x')")
    assert (done.code, done.out) == (0, "x\n")
    agent = re.search(r"embedded, process (\d+)", done.err)
    assert agent is not None, done.err
    assert not alive(int(agent[1]))
    assert "the command exited with 0" in done.err


async def test_a_signal_that_kills_it_is_128_and_more(tmp_path: Path) -> None:
    async with rig.tcp_target(rig.echo) as port:
        file = write(tmp_path, port)
        done = await run("run", "-f", str(file), "--", "sh", "-c", "kill -KILL $$")
    assert done.code == 128 + signal.SIGKILL


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("no-such-command-here",), 127, "no-such-command-here: command not found"),
        (("./plain",), 126, "./plain: not executable"),
        (("./missing",), 127, "./missing: command not found"),
    ],
)
async def test_what_cannot_be_run_starts_nothing(
    words: tuple[str, ...], code: int, text: str, tmp_path: Path
) -> None:
    write(tmp_path, 9)
    (tmp_path / "plain").write_text("text")
    done = await run("run", "-vv", "--", *words, cwd=tmp_path)
    assert (done.code, done.out) == (code, "")
    assert done.err == f"error: {text}\n"


async def test_a_file_that_the_system_cannot_run(tmp_path: Path) -> None:
    async with rig.tcp_target(rig.echo) as port:
        write(tmp_path, port)
        broken = tmp_path / "broken"
        broken.write_bytes(b"\x00\x01")
        broken.chmod(0o755)
        done = await run("run", "--", "./broken", cwd=tmp_path)
    assert (done.code, done.err) == (126, "error: ./broken: Exec format error\n")


def test_a_program_is_looked_for() -> None:
    find(sys.executable)
    find("sh")
    with pytest.raises(CommandError):
        find("/tmp")


async def test_late_is_3_and_says_what(tmp_path: Path) -> None:
    file = write(tmp_path, rig.closed_port())
    done = await run(
        *("run", "-v", "-f", str(file), "--timeout", "6s", "--", "touch", str(tmp_path / "ran"))
    )
    assert done.code == 3
    last = done.err.splitlines()[-3:]
    assert re.match(r"web: failed: refused", last[0])
    assert last[1] == "error: not ready after 6 s; the command was not run"
    assert last[2] == "  hint: check the port, and that the program behind it has started"
    assert not (tmp_path / "ran").exists()
    agents = re.findall(r"embedded, process (\d+)", done.err)
    assert not [pid for pid in agents if alive(int(pid))]


async def test_a_port_in_use_is_told_at_once(tmp_path: Path) -> None:
    async with rig.tcp_target(rig.echo) as port:
        file = tmp_path / "krelay.yaml"
        file.write_text(document({"web": f"ip/127.0.0.1 :{port}", "two": f"ip/127.0.0.1 {port}:1"}))
        done = await run("run", "-f", str(file), "--", "true")
    assert done.code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.err


async def test_two_side_by_side_and_beside_an_up(tmp_path: Path) -> None:
    """No control socket: any number of jobs may use one file."""
    async with rig.tcp_target(rig.echo) as port:
        file = write(tmp_path, port)
        async with running(file, "print('ready', flush=True); input()"):
            done = await run("run", "-f", str(file), "--", sys.executable, "-c", ASK)
            assert (done.code, done.out) == (7, "hello")


SIGNALLED = """
import os, signal, sys, time
def told(number, frame):
    print("got", signal.Signals(number).name, flush=True)
    sys.exit(9)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
    signal.signal(number, told)
print("ready\\n", end="", flush=True)  # in one write
while True:
    time.sleep(0.05)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGQUIT", "SIGINT"])
async def test_a_signal_is_passed_on(name: str, tmp_path: Path) -> None:
    async with rig.tcp_target(rig.echo) as port:
        async with running(write(tmp_path, port), SIGNALLED) as process:
            process.send_signal(signal.Signals[name])
            out, err = await process.communicate()
    assert out == f"got {name}\n".encode()
    assert process.returncode == 9, err
    agent = re.search(rb"embedded, process (\d+)", err)
    assert agent is not None
    assert not alive(int(agent[1]))


async def test_a_signal_as_it_ends_leaves_its_exit_code_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when a whole group is signalled: the command has ended, and asyncio is yet to see it."""
    told, waitpid = threading.Event(), os.waitpid

    def late(pid: int, options: int) -> tuple[int, int]:
        if threading.current_thread() is not threading.main_thread():
            told.wait()
        return waitpid(pid, options)

    monkeypatch.setattr(os, "waitpid", late)
    child = await asyncio.create_subprocess_exec("sh", "-c", "exit 7")
    try:
        await rig.until(lambda: not alive(child.pid))
        send(child, signal.SIGTERM)
    finally:
        told.set()
    assert await child.wait() == 7


IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
IGNORING = ("sh", "-c", "trap '' HUP INT QUIT; exec \"$@\"", "sh")
INHERITED = f"""
import signal
for number in {[*map(int, IGNORED)]}:
    assert signal.getsignal(number) == signal.SIG_IGN, number
{SIGNALLED}"""


async def test_what_was_ignored_stays_so_for_the_command_too(tmp_path: Path) -> None:
    """By `nohup`, and by a shell without jobs that puts krelay into the background."""
    async with rig.tcp_target(rig.echo) as port:
        async with running(write(tmp_path, port), INHERITED, IGNORING) as process:
            for number in (*IGNORED, signal.SIGTERM):
                process.send_signal(number)
            out, err = await process.communicate()
    assert (out, process.returncode) == (b"got SIGTERM\n", 9), err


async def test_the_exit_code_is_known_also_where_children_were_ignored(tmp_path: Path) -> None:
    code = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
    before = (sys.executable, "-c", code + "os.execv(sys.argv[1], sys.argv[1:])")
    async with rig.tcp_target(rig.echo) as port:
        async with running(write(tmp_path, port), SIGNALLED, before) as process:
            process.terminate()
            out, err = await process.communicate()
    assert (out, process.returncode) == (b"got SIGTERM\n", 9), err


DESCRIPTORS = """
import os
print("ready", flush=True)
def is_open(number):
    try:
        return os.fstat(number)
    except OSError:
        return None
print(*sorted(number for number in map(int, os.listdir("/proc/self/fd")) if is_open(number)))
print(os.read(3, 100).decode(), end="")
"""


async def test_it_has_the_descriptors_that_krelay_was_given_and_none_of_its_own(
    tmp_path: Path,
) -> None:
    """As `krelay run -- cat <(echo hello)` has."""
    given = tmp_path / "given"
    given.write_text("hello\n")
    before = ("sh", "-c", f"exec 3<'{given}'; exec \"$@\"", "sh")
    async with rig.tcp_target(rig.echo) as port:
        async with running(write(tmp_path, port), DESCRIPTORS, before) as process:
            out, err = await process.communicate()
    assert (out, process.returncode) == (b"0 1 2 3\nhello\n", 0), err


COUNTING = """
import signal, sys, time
count = 0
def told(number, frame):
    global count
    count += 1
signal.signal(signal.SIGINT, told)
print("ready", flush=True)
while not count:
    time.sleep(0.01)
sys.stdin.readline()
print("count", count, flush=True)
"""


async def test_ctrl_c_at_a_terminal_comes_once(tmp_path: Path) -> None:
    async with rig.tcp_target(rig.echo) as port:
        file = write(tmp_path, port)
        args = ("run", "-f", str(file), "--", sys.executable, "-c", COUNTING)
        async with terminal(*args, cwd=tmp_path) as screen:
            await screen.shows("ready")
            screen.type("\x03")
            await screen.shows("^C")
            screen.type("\n")
            await screen.shows("count 1")
            assert await screen.process.wait() == 0


async def test_at_a_terminal_what_a_key_may_have_sent_is_not_passed_on(tmp_path: Path) -> None:
    async with rig.tcp_target(rig.echo) as port:
        file = write(tmp_path, port)
        args = ("run", "-f", str(file), "--", sys.executable, "-c", SIGNALLED)
        async with terminal(*args, cwd=tmp_path) as screen:
            await screen.shows("ready")
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
                screen.process.send_signal(number)
            await screen.shows("got")
            assert await screen.process.wait() == 9
            assert [line for line in screen.lines if line] == ["ready", "got SIGTERM"]


@asynccontextmanager
async def waiting(tmp_path: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """Start a `krelay run` whose forward never becomes ready; yield it and its agent's process id.
    It must end in the block, without running its command."""
    file = write(tmp_path, rig.closed_port())
    process = await asyncio.create_subprocess_exec(
        *command("run", "-v", "-f", str(file), "--", "touch", str(tmp_path / "ran")),
        env=environment(PYTHONPATH=str(ROOT)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    log = b""
    try:
        while b"web: failed" not in log:
            line = await process.stderr.readline()
            assert line, log
            log += line
        agent = re.search(rb"embedded, process (\d+)", log)
        assert agent is not None
        yield process, int(agent[1])
    finally:
        if process.returncode is None:
            process.kill()
        log += (await process.communicate())[1]
    assert b"Traceback" not in log, log.decode()
    assert not (tmp_path / "ran").exists()


async def test_a_signal_while_nothing_is_ready_ends_the_wait(tmp_path: Path) -> None:
    async with waiting(tmp_path) as (process, agent):
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 128 + signal.SIGTERM
        assert not alive(agent)


async def test_two_signals_at_once_end_the_wait_at_once(tmp_path: Path) -> None:
    def stopped() -> bool:
        stat = Path(f"/proc/{process.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"

    async with waiting(tmp_path) as (process, agent):
        # It finds both when it goes on; which of them is the first, the system says.
        process.send_signal(signal.SIGSTOP)
        await rig.until(stopped)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCONT):
            process.send_signal(number)
        assert await process.wait() in (128 + signal.SIGTERM, 128 + signal.SIGHUP)
        assert not alive(agent)


async def test_names_that_clash_and_no_command(tmp_path: Path) -> None:
    file = tmp_path / "krelay.yaml"
    file.write_text(document({"a-b": "ip/127.0.0.1 :1", "a_b": "ip/127.0.0.1 :2"}))
    done = await run("run", "-f", str(file), "--", "true")
    assert done.code == 2
    assert "would both be KRELAY_A_B_ADDR" in done.err
    done = await run("run", "-f", str(file))
    assert (done.code, done.err) == (
        2,
        "error: no command to run\n  hint: write it after `--`: `krelay run -- make test`\n",
    )


async def test_what_the_command_leaves_behind_does_not_hold_it_up(tmp_path: Path) -> None:
    """A child of the command keeps a connection, which is cut once it is quiet."""
    async with rig.tcp_target(rig.hold) as port:
        file = write(tmp_path, port, "tunnel: {drain: 10s}")
        script = (
            "import os, socket, time\n"
            "s = socket.create_connection(('127.0.0.1', int(os.environ['KRELAY_WEB_PORT'])))\n"
            "s.sendall(b'x')\n"
            "pid = os.fork()\n"
            "if pid == 0:\n"
            "    os.close(1); os.close(2)\n"
            "    try:\n"
            "        s.recv(1)\n"
            "    finally:\n"
            "        os._exit(0)\n"
            "print(pid, flush=True)\n"
        )
        done = await run("run", "-f", str(file), "--", sys.executable, "-c", script)
    assert done.code == 0, done.err
    await rig.until(lambda: not alive(int(done.out)))
