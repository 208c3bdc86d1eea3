"""The file changes while krelay runs: on the real cluster, with the file on a real disk."""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.e2e import kit
from tests.e2e.kit import Krelay
from tests.e2e.program import digest

Make = Callable[..., str]
UNWATCHED = ("--no-watch",)


class Edited:
    """A krelay on a file, and the ways of saving that."""

    def __init__(self, namespace: str, file: Path) -> None:
        self.file = file
        self._namespace = namespace
        self.krelay: Krelay

    def text(self, *lines: str, more: str = "") -> str:
        """A file with these targets, each in a line."""
        targets = "".join(f"  {line}\n" for line in lines)
        return f"apiVersion: krelay/v1\nnamespace: {self._namespace}\n{more}targets:\n{targets}"

    def save(self, *lines: str, more: str = "") -> None:
        """As an editor does."""
        new = self.file.with_name(".new")
        new.write_text(self.text(*lines, more=more))
        new.rename(self.file)

    def reload(self, *lines: str, more: str = "") -> list[str]:
        """Save, and wait until it is carried out; what changed."""
        self.save(*lines, more=more)
        done = kit.run("reload", "-f", str(self.file))
        assert done.process.returncode == 0, done.told()
        return done.output


@pytest.fixture
def edited(world: str, tmp_path: Path) -> Edited:
    return Edited(world, tmp_path / "krelay.yaml")


@contextmanager
def running(
    edited: Edited, *lines: str, more: str = "", args: tuple[str, ...] = ()
) -> Iterator[Krelay]:
    """krelay on a file with these targets, each with one port."""
    edited.file.write_text(edited.text(*lines, more=more))
    krelay = Krelay("up", "-f", str(edited.file), *args)
    with krelay:
        krelay.wait_lines(len(lines))
        yield krelay


def free_ports(count: int) -> list[int]:
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports


def pod(port: int) -> bytes:
    """Which pod answers at a local port."""
    return kit.http_get(("127.0.0.1", port))


def test_an_edit_is_followed_as_it_is_saved(edited: Edited) -> None:
    one, two = free_ports(2)
    with running(edited, f"web: svc/web {one}:80") as krelay:
        assert pod(one).startswith(b"web-")
        edited.save(f"web: svc/bare {one}:80", f"more: pod/solo {two}:8000")
        krelay.wait_lines(2)
        assert pod(one) == pod(two) == b"solo\n"
        krelay.wait_log("web: re-routed svc/web:80 -> svc/bare:80 (krelay.yaml changed,")
        krelay.wait_log(f"more: added 127.0.0.1:{two} -> pod/solo:8000 (krelay.yaml changed,")
        edited.file.write_text("targets: {web: nothing")
        krelay.wait_log("the active config stays")
        assert pod(one) == b"solo\n"
        edited.save(f"more: pod/solo {two}:8000")
        krelay.wait_log("web: removed")
        with pytest.raises(ConnectionRefusedError):
            pod(one)
        assert pod(two) == b"solo\n"


def test_ports_are_swapped_between_targets_while_connections_live(edited: Edited) -> None:
    one, two = free_ports(2)
    before = f"web: svc/web {one}:80", f"solo: pod/solo {two}:9000"
    with running(edited, *before, args=UNWATCHED) as krelay:
        with kit.command(("127.0.0.1", two), "tick") as live, ExitStack() as stack:
            lines = stack.enter_context(live.makefile())
            assert lines.readline() == "0\n"
            changed = edited.reload(f"web: svc/web {two}:80", f"solo: pod/solo {one}:9000")
            assert changed == [
                f"~ web: rebound 127.0.0.1:{one} -> 127.0.0.1:{two}",
                f"~ solo: rebound 127.0.0.1:{two} -> 127.0.0.1:{one}, 1 live connection stays",
            ]
            assert pod(two).startswith(b"web-")
            with kit.command(("127.0.0.1", one), "send 1000") as sock:
                assert hashlib.sha256(kit.read_all(sock)).hexdigest() == digest(1000)
            assert lines.readline() == "1\n"
        assert krelay.process.poll() is None


def test_a_hangup_reloads_where_nothing_watches(edited: Edited) -> None:
    (one,) = free_ports(1)
    with running(edited, f"web: svc/web {one}:80", args=UNWATCHED) as krelay:
        edited.save(f"web: pod/solo {one}:8000")
        plan = kit.run("plan", "--exit-code", "-f", str(edited.file))
        assert plan.process.returncode == 3
        assert plan.output == ["~ web: re-routed svc/web:80 -> pod/solo:8000"]
        assert pod(one).startswith(b"web-")
        krelay.process.send_signal(signal.SIGHUP)
        krelay.wait_log("(SIGHUP, ")
        assert pod(one) == b"solo\n"


def test_another_agent_takes_over_while_everything_goes_on(edited: Edited, namespace: Make) -> None:
    """A transfer and a UDP flow run on through edits of the agent and of other targets; then the
    former agents are gone from the cluster."""
    place = namespace()
    chance = random.Random(7)
    ports = free_ports(3)
    mine = "bulk: pod/solo :9000", "udp: svc/web :91/udp"

    def more(number: int) -> str:
        return (
            f"agent: {{namespace: {place}, labels: {{round: r{number}}}}}\ntunnel: {{drain: 30s}}\n"
        )

    size = 64 << 20
    with running(edited, *mine, more=more(0), args=UNWATCHED) as krelay:
        stop = threading.Event()
        asked = 0

        def flow() -> None:
            nonlocal asked
            while not stop.is_set():
                data = secrets.token_bytes(100)
                assert kit.ask_udp(krelay.address("udp", "udp"), data) == data
                asked += 1

        asking = threading.Thread(target=flow)
        asking.start()
        with kit.command(krelay.address("bulk"), f"send {size}") as sock:
            whole, received = hashlib.sha256(), 0
            for number in range(1, 4):
                for _ in range(8):
                    part = sock.recv(1 << 20)
                    whole.update(part)
                    received += len(part)
                # The agent that is replaced now carries something, too.
                due = asked + 2
                kit.eventually(lambda due=due: asked >= due, "the flow goes on")
                others = [
                    f"t{n}: {chance.choice(('svc/web', 'svc/bare'))} {port}:80"
                    for n, port in enumerate(chance.sample(ports, number))
                ]
                changed = edited.reload(*mine, *others, more=more(number))
                assert changed[0].startswith("~ agent: replaced agent.labels, ")
                for line in others:
                    assert pod(int(line.split()[2].partition(":")[0]))
            while data := sock.recv(1 << 20):
                whole.update(data)
                received += len(data)
        assert (received, whole.hexdigest()) == (size, digest(size))
        stop.set()
        asking.join(30)
        assert asked > 10
        # The agents that carried nothing any more went at once, the first one with its drain.
        agents = partial(kit.agents, place)
        kit.eventually(lambda: len(agents()) == 2, "one agent, a Job and a pod", kit.COLLECTED)
        pods = kit.get(place, "pods", "-l", "app=krelay-server")["items"]
        rounds = [
            pod["metadata"]["labels"]["round"]
            for pod in pods
            if "deletionTimestamp" not in pod["metadata"]
        ]
        assert rounds == ["r3"]
    kit.assert_no_agents(place)


def test_an_agent_that_cannot_start_leaves_all_as_it_was(edited: Edited, namespace: Make) -> None:
    place = namespace()
    (one,) = free_ports(1)
    more = f"agent: {{namespace: {place}}}\n"
    with running(edited, f"web: svc/web {one}:80", more=more) as krelay:
        wrong = more.replace("}", ", image: 'nowhere.invalid/none:1'}")
        edited.save(f"web: pod/solo {one}:8000", more=wrong)
        krelay.wait_log("not applied, the active config stays")
        assert pod(one).startswith(b"web-")
        agents = partial(kit.agents, place)
        kit.eventually(lambda: len(agents()) == 2, "the former agent alone", kit.COLLECTED)
        edited.save(f"web: pod/solo {one}:8000", more=more)
        krelay.wait_log("web: re-routed")
        assert pod(one) == b"solo\n"


def test_a_target_that_may_not_be_seen_is_that_target_s_alone(
    edited: Edited, tmp_path: Path
) -> None:
    one, two = free_ports(2)
    with running(edited, f"web: svc/web {one}:80") as krelay:
        edited.save(f"web: svc/web {one}:80", f"lost: svc/none {two}:80")
        krelay.wait_log('services "none" not found')
        krelay.wait_lines(2)
        assert pod(one).startswith(b"web-")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_a_file_that_is_mounted_alone(edited: Edited, tmp_path: Path) -> None:
    """As in a container: edits from outside come to the inode, and no directory hears of them."""
    one, two = free_ports(2)
    outside = tmp_path / "outside" / "krelay.yaml"
    outside.parent.mkdir()
    outside.write_text(edited.text(f"web: svc/web {one}:80"))
    edited.file.touch()
    subprocess.run(["mount", "--bind", outside, edited.file], check=True)
    try:
        krelay = Krelay("up", "-f", str(edited.file), environ={"KRELAY_WATCH": "inotify"})
        with krelay:
            krelay.wait_lines(1)
            outside.write_text(edited.text(f"web: svc/web {two}:80"))
            krelay.wait_lines(2)
            assert pod(two).startswith(b"web-")
            # Replaced there, it is another file; the mount keeps the old one, unchanged.
            new = outside.with_name("new")
            new.write_text(outside.read_text())
            new.rename(outside)
            krelay.wait_log("was replaced outside the mount")
    finally:
        subprocess.run(["umount", edited.file], check=True)
