"""`krelay.relay` as programs use it: with an agent on this machine, and real targets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import krelay
from krelay.api import Forward, Forwards
from krelay.errors import (
    ConfigError,
    CredentialsError,
    KrelayError,
    ListenError,
    NotReadyError,
    UnreachableError,
    UsageError,
)
from tests import rig
from tests.integration.product import alive, document, environment, listens

pytestmark = pytest.mark.process


def agents() -> list[int]:
    """The processes that this one has started and that run."""
    return [child.pid for child in psutil.Process().children() if alive(child.pid)]


def ask(forward: Forward) -> bytes:
    """What an echo says through it."""
    with socket.create_connection((forward.host, forward.port), timeout=10) as sock:
        sock.sendall(b"hello")
        sock.shutdown(socket.SHUT_WR)
        return sock.makefile("rb").read()


def with_(relay: krelay.relay, body: Callable[[Forwards], object] = lambda forwards: None) -> None:
    """`with`, as in code without a loop."""
    with relay as forwards:
        body(forwards)


# -- what they are -----------------------------------------------------------------------------


def test_forwards_are_a_mapping_with_addresses_and_urls() -> None:
    web = Forward("web", "127.0.0.1", 8080, "tcp", "svc/web:80")
    assert (web.address, web.url()) == ("127.0.0.1:8080", "http://127.0.0.1:8080")
    six = Forward("web", "::1", 8080, "tcp", "svc/web:81")
    assert six.url("postgres") == "postgres://[::1]:8080"
    other = Forward("db", "127.0.0.1", 5432, "tcp", "sts/db:5432")
    forwards = Forwards([web, six, other])
    assert dict(forwards) == {"web": web, "db": other}
    assert (forwards.all("web"), len(forwards)) == ((web, six), 2)
    assert repr(forwards) == "<Forwards 'web': 127.0.0.1:8080, 'db': 127.0.0.1:5432>"
    with pytest.raises(KeyError):
        forwards["nope"]


# -- a block -----------------------------------------------------------------------------------


async def test_async_with_relays_until_the_block_ends() -> None:
    async with rig.tcp_target(rig.echo) as port, rig.udp_echo() as udp:
        line = f"ip/127.0.0.1 :{port}"
        async with krelay.relay(
            line,
            two=f"host/localhost :{port} :{port}",
            dns=f"ip/127.0.0.1 :{udp}/udp",
            embedded=True,
        ) as forwards:
            assert list(forwards) == [line, "two", "dns"]
            for forward in (forwards[line], *forwards.all("two")):
                assert await rig.exchange(forward.port, b"hello", forward.host) == b"hello"
            assert len({forward.port for forward in forwards.all("two")}) == 2
            assert (forwards[line].protocol, forwards["dns"].protocol) == ("tcp", "udp")
            assert forwards["two"].to == f"host/localhost:{port}"
            async with rig.udp_socket(connect=forwards["dns"].port) as client:
                client.send(b"hello")
                assert await rig.recv(client) == b"hello"
            assert len(agents()) == 1
        assert agents() == []
        assert not listens(forwards[line].port)


async def test_with_relays_until_the_block_ends() -> None:
    async with rig.tcp_target(rig.echo) as port:
        relay = krelay.relay(web=f"ip/127.0.0.1 :{port}", embedded=True)
        ports = []

        def body(forwards: Forwards) -> None:
            ports.append(forwards["web"].port)
            assert ask(forwards["web"]) == b"hello"
            assert len(agents()) == 1

        await asyncio.to_thread(with_, relay, body)
        await asyncio.to_thread(with_, relay, body)  # one after the other
    assert agents() == []
    assert not any(listens(port) for port in ports)


async def test_a_file_is_relayed_with_the_named_targets_only(tmp_path: Path) -> None:
    async with rig.tcp_target(rig.echo) as port:
        file = tmp_path / "krelay.yaml"
        line = f"ip/127.0.0.1 :{port}"
        file.write_text(document({"web": line, "db": line, "dead": f"ip/{rig.HOST} :1"}))
        async with krelay.relay("web", "db", file=file) as forwards:
            assert sorted(forwards) == ["db", "web"]
            assert await rig.exchange(forwards["db"].port, b"hello") == b"hello"
        with pytest.raises(UsageError, match="no target `wbe`"):
            async with krelay.relay("wbe", file=str(file)):
                pass


async def test_an_error_in_the_block_resets_live_connections() -> None:
    async with rig.tcp_target(rig.hold) as port:
        with contextlib.suppress(ZeroDivisionError):
            async with krelay.relay(web=f"ip/127.0.0.1 :{port}", embedded=True) as forwards:
                reader, writer = await asyncio.open_connection(rig.HOST, forwards["web"].port)
                writer.write(b"?")
                raise ZeroDivisionError
            pytest.fail("the error is gone")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
    assert agents() == []


async def test_live_connections_are_drained_at_the_end_of_the_block() -> None:
    async with rig.tcp_target(rig.hold) as port:
        async with krelay.relay(web=f"ip/127.0.0.1 :{port}", embedded=True) as forwards:
            reader, writer = await asyncio.open_connection(rig.HOST, forwards["web"].port)
            writer.write(b"?")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


async def test_a_block_may_end_in_another_task() -> None:
    """As fixtures do it."""
    async with rig.tcp_target(rig.echo) as port:
        relay = krelay.relay(web=f"ip/127.0.0.1 :{port}", embedded=True)
        async with asyncio.TaskGroup() as tasks:
            forwards = await tasks.create_task(relay.__aenter__())
            assert await rig.exchange(forwards["web"].port, b"hello") == b"hello"
            await tasks.create_task(relay.__aexit__(None, None, None))
    assert agents() == []


async def test_a_cancellation_leaves_no_agent_behind() -> None:
    """Before it is ready, in the block, and while it ends."""
    async with rig.tcp_target(rig.hold) as port:
        for target, reached in ((rig.closed_port(), False), (port, True)):
            inside = asyncio.Event()

            async def body(target: int = target, inside: asyncio.Event = inside) -> None:
                async with krelay.relay(f"ip/127.0.0.1 :{target}", embedded=True):
                    inside.set()
                    await asyncio.Event().wait()

            async with asyncio.TaskGroup() as tasks:
                task = tasks.create_task(body())
                await rig.until(inside.is_set if reached else agents)
                task.cancel()
            assert task.cancelled()
            assert inside.is_set() is reached
            assert agents() == []

        relay = krelay.relay(web=f"ip/127.0.0.1 :{port}", embedded=True)
        forwards = await relay.__aenter__()
        _, writer = await asyncio.open_connection(rig.HOST, forwards["web"].port)
        async with asyncio.TaskGroup() as tasks:
            ending = tasks.create_task(relay.__aexit__(None, None, None))
            await rig.until(lambda: not listens(forwards["web"].port))
            ending.cancel()
        assert ending.cancelled()
        assert agents() == []
        writer.close()


INTERRUPTED = """
import sys, krelay
with krelay.relay(f"ip/127.0.0.1 :{sys.argv[1]}", embedded=True):
    pass
"""


async def test_ctrl_c_during_the_start_leaves_no_agent_behind() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", INTERRUPTED, str(rig.closed_port())),
        env=environment(),
        stderr=asyncio.subprocess.PIPE,
    )
    found: list[psutil.Process] = []

    def started() -> bool:
        found[:] = psutil.Process(process.pid).children()
        return bool(found)

    await rig.until(started)
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert err.decode().splitlines()[-1] == "KeyboardInterrupt"
    assert not alive(found[0].pid)


# -- without a block -------------------------------------------------------------------------------


async def test_started_forwards_last_until_they_are_closed() -> None:
    async with rig.tcp_target(rig.echo) as port:
        relay = krelay.relay(web=f"ip/127.0.0.1 :{port} :{port}", embedded=True)
        forwards = await asyncio.to_thread(relay.start)
        assert await asyncio.to_thread(ask, forwards["web"]) == b"hello"
        assert len(forwards.all("web")) == 2
        assert len(agents()) == 1
        with pytest.raises(UsageError, match="has not ended yet"):
            await asyncio.to_thread(relay.start)
        await asyncio.to_thread(forwards.close)
        await asyncio.to_thread(forwards.close)
        assert agents() == []
        assert not listens(forwards["web"].port)
        again = await asyncio.to_thread(relay.start)
        assert await asyncio.to_thread(ask, again["web"]) == b"hello"
        await again.aclose()
        await again.aclose()
    assert agents() == []


async def test_forwards_started_on_a_loop_end_there() -> None:
    async with rig.tcp_target(rig.echo) as port:
        forwards = await krelay.relay(web=f"ip/127.0.0.1 :{port}", embedded=True).astart()
        assert await rig.exchange(forwards["web"].port, b"hello") == b"hello"
        with pytest.raises(UsageError, match="`astart` started these forwards") as caught:
            forwards.close()
        assert caught.value.hint == "`await forwards.aclose()`"
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(forwards.aclose())
        await forwards.aclose()
        forwards.close()
    assert agents() == []


async def test_a_failed_start_leaves_nothing() -> None:
    relay = krelay.relay(db=f"ip/127.0.0.1 :{rig.closed_port()}", embedded=True, timeout=1)
    with pytest.raises(NotReadyError):
        await asyncio.to_thread(relay.start)
    with pytest.raises(NotReadyError):
        await relay.astart()
    assert agents() == []


FORGOTTEN = """
import asyncio, os, sys, krelay, psutil

def start():
    forwards = krelay.relay(f"ip/127.0.0.1 :{sys.argv[1]}", embedded=True).start()
    print(psutil.Process().children()[0].pid, flush=True)
    if not (child := os.fork()):
        sys.exit(0)
    os.waitpid(child, 0)
    assert psutil.Process().children()

async def cell():
    start()

asyncio.run(cell()) if sys.argv[2] == "loop" else start()
"""


@pytest.mark.parametrize("where", ["loop", "main"])
async def test_the_end_of_the_interpreter_closes_what_a_program_forgot(where: str) -> None:
    """As in a notebook, whose loop runs. The end of a fork closes nothing."""
    async with rig.tcp_target(rig.echo) as port:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "ignore", "-c", FORGOTTEN, str(port), where),
            env=environment(PYTHONWARNINGS=""),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert not alive(int(out))


async def test_an_error_at_the_end_of_the_interpreter_is_a_line_of_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with rig.tcp_target(rig.echo) as port:
        relay = krelay.relay(web=f"ip/127.0.0.1 :{port}", embedded=True)
        forwards = await asyncio.to_thread(relay.start)
        end = relay.__exit__

        def fail(*exc: Any) -> None:
            end(*exc)
            raise KrelayError("relaying has failed")

        monkeypatch.setattr(krelay.relay, "__exit__", fail)
        await asyncio.to_thread(forwards._close_at_exit)
    assert "relaying has failed" in caplog.text
    assert agents() == []


# -- what fails --------------------------------------------------------------------------------


async def test_a_forward_not_ready_in_time_is_named_with_its_reason() -> None:
    relay = krelay.relay(db=f"ip/127.0.0.1 :{rig.closed_port()}", embedded=True, timeout=5)
    with pytest.raises(NotReadyError, match=r"^not ready after 5 s\n") as caught:
        await asyncio.to_thread(with_, relay)
    (line,) = caught.value.unready
    assert line.startswith("db: failed: refused")
    # A traceback, or pytest, shows all of it, and nothing of the inside.
    shown = traceback.format_exception(caught.value)
    hint = "hint: check the port, and that the program behind it has started"
    assert [text.strip() for text in shown[-2:]] == [line, hint]
    assert "supervisor" not in "".join(shown)
    assert agents() == []


async def test_a_port_that_cannot_be_bound_is_an_error_at_once() -> None:
    async with rig.tcp_target(rig.echo) as port:
        with pytest.raises(ListenError, match=f"cannot listen on 127.0.0.1:{port}"):
            async with krelay.relay(web=f"ip/127.0.0.1 {port}:{port}", embedded=True):
                pass
    assert agents() == []


async def test_wrong_lines_and_arguments_are_errors_with_notes() -> None:
    with pytest.raises(ConfigError) as caught:
        async with krelay.relay("svc/a", b="nope"):
            pass
    assert len(caught.value.problems) == 2
    assert caught.value.__notes__ == caught.value.details()
    with pytest.raises(UsageError, match="both a file and targets") as both:
        krelay.relay(file="krelay.yaml", web="svc/a :80")
    assert both.value.__notes__ == ["  hint: write the targets into the file"]


async def test_a_relay_refuses_a_second_block_at_the_same_time() -> None:
    async with rig.tcp_target(rig.echo) as port:
        relay = krelay.relay(f"ip/127.0.0.1 :{port}", embedded=True)
        async with relay as forwards:
            with pytest.raises(UsageError, match="its block has not ended yet"):
                with_(relay)
            (forward,) = forwards.values()
            assert await rig.exchange(forward.port, b"hello") == b"hello"


KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: here
contexts: [{name: here, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "https://127.0.0.1:%d"}}]
users: [{name: u, user: {token: t}}]
"""


async def test_a_missing_cluster_is_an_error_of_its_kind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "kubeconfig"
    monkeypatch.setenv("KUBECONFIG", str(file))
    with pytest.raises(CredentialsError, match="no kubeconfig"):
        await asyncio.to_thread(with_, krelay.relay("svc/web :80"))
    file.write_text(KUBECONFIG % rig.closed_port())
    with pytest.raises(CredentialsError, match='no context "elsewhere"'):
        await asyncio.to_thread(with_, krelay.relay("svc/web :80", context="elsewhere"))
    with pytest.raises(UnreachableError, match="cannot reach the API server"):
        await asyncio.to_thread(with_, krelay.relay("svc/web :80"))


# -- the package -------------------------------------------------------------------------------


def test_import_krelay_imports_nothing_else_until_it_relays() -> None:
    code = (
        "import sys; before = set(sys.modules); import krelay;"
        "print(*sorted(set(sys.modules) - before));"
        "krelay.relay; print('krelay.api' in sys.modules, 'krelay.supervisor' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment()
    )
    assert done.stdout.splitlines() == ["__future__ krelay", "True False"]
    with pytest.raises(AttributeError, match="module 'krelay' has no attribute 'nope'"):
        krelay.nope  # noqa: B018


def test_a_program_without_logging_gets_no_output() -> None:
    """A library's log is its user's."""
    code = (
        "import krelay\n"
        f"try:\n    krelay.relay('ip/127.0.0.1 :{rig.closed_port()}', embedded=True, timeout=1)"
        ".__enter__()\nexcept krelay.api.KrelayError as exc:\n    print(type(exc).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment()
    )
    assert (done.stdout, done.stderr) == ("NotReadyError\n", "")
    assert issubclass(NotReadyError, KrelayError)
    assert os.path.exists(os.path.join(os.path.dirname(krelay.__file__), "py.typed"))


def test_relaying_raises_the_limit_of_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[None] = []
    monkeypatch.setattr("krelay.api.raise_file_limit", lambda: raised.append(None))
    krelay.relay(web="ip/127.0.0.1 :80", embedded=True)._make_run()
    assert raised == [None]
