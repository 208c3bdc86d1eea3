"""`kubectl relay` beside `kubectl port-forward`: what it prints, where it listens, how it ends."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import kit
from tests.e2e.kit import Krelay

PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
BOTH = ("port-forward", "relay")
LINE = re.compile(
    r"Forwarding from (\S+):(\d+) -> (\d+)( also=(?P<also>\S+))?(?P<fields> protocol=.*)?"
)


def start(command: str, *args: str) -> Krelay:
    """kubectl port-forward, or krelay in its place."""
    return Krelay(*args, environ={"PATH": PATH}, expect=None, program=("kubectl", command))


def lines(tool: Krelay, count: int) -> list[tuple[str, str, str]]:
    """Address, port and remote port of `count` addresses, which are all of stdout.

    kubectl has a line for each of them, krelay one for each forward.
    """

    def found() -> list[tuple[str, str, str]]:
        told = []
        for line in tool.output:
            match = LINE.fullmatch(line)
            assert match, tool.told()
            told.append((match[1], match[2], match[3]))
            for local in (match["also"] or "").split(",") if match["also"] else ():
                address, _, port = local.rpartition(":")
                told.append((address, port, match[3]))
        return told

    tool.wait(lambda: len(found()) >= count, f"{count} addresses", 60.0)
    return found()


@contextlib.contextmanager
def port_taken_at(address: str) -> Iterator[int]:
    """A port that another program has at this address, or at none if it is empty."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
        sock.bind((address or "127.0.0.1", 0))
        if address:
            sock.listen()
        port: int = sock.getsockname()[1]
        if not address:
            sock.close()
        yield port


V4, V6 = "127.0.0.1", "[::1]"


@pytest.mark.parametrize(
    ("taken", "options", "addresses"),
    [
        ("", "", [V4, V6]),
        ("127.0.0.1", "", [V6]),
        ("::1", "", [V4]),
        ("", "--address 127.0.0.1", [V4]),
        ("", "--address ::1", [V6]),
        ("", "--address localhost,127.0.0.1", [V4, V6]),
        ("", "--address 127.0.0.1,127.0.0.2", [V4, "127.0.0.2"]),
        ("", "--address 0.0.0.0", ["0.0.0.0"]),
    ],
)
def test_both_listen_and_print_alike(
    taken: str, options: str, addresses: list[str], world: str
) -> None:
    for command in BOTH:
        with port_taken_at(taken) as port:
            args = ("-n", world, "pod/solo", f"{port}:8000", *options.split())
            with start(command, *args) as tool:
                expected = [(address, str(port), "8000") for address in addresses]
                assert lines(tool, len(addresses)) == expected, (command, tool.told())
                for address in addresses:
                    where = address.strip("[]").replace("0.0.0.0", "127.0.0.1"), port
                    assert kit.http_get(where) == b"solo\n"
                assert bool(tool.log) is (command == "relay" and bool(taken)), tool.told()


def test_both_name_the_port_of_a_service_s_pod(world: str) -> None:
    for command in BOTH:
        with start(command, "-n", world, "svc/web", ":80") as tool:
            assert [line[2] for line in lines(tool, 2)] == ["8000", "8000"]


@pytest.mark.parametrize("options", [(), ("--address", "127.0.0.1,127.0.0.2")])
def test_a_free_port_is_the_same_at_every_address(options: tuple[str, ...], world: str) -> None:
    for command in BOTH:
        with start(command, "-n", world, "pod/solo", ":8000", *options) as tool:
            one, two = lines(tool, 2)
            assert one[0] != two[0]
            same = one[1] == two[1]
            # Several addresses are forwards of their own in krelay.
            assert same or (command == "relay" and options), tool.told()


def test_the_go_krelay_s_fields_follow_once_a_forward(world: str) -> None:
    with start("relay", "-n", world, "pod/solo", ":8000", ":9001@udp") as tool:
        tool.wait_lines(2)
        fields = [match["fields"] for match in map(LINE.fullmatch, tool.output) if match]
        ports = [line.split()[2].rpartition(":")[2] for line in tool.output]
        assert fields == [
            f" protocol=tcp localAddr=127.0.0.1:{ports[0]} remotePort=8000",
            f" protocol=udp localAddr=127.0.0.1:{ports[1]} remotePort=9001",
        ]
        assert tool.log == []


@pytest.mark.parametrize("command", BOTH)
@pytest.mark.parametrize("name", ["INT", "TERM", "HUP"])
def test_a_script_s_background_job_ends_on_a_signal(
    command: str, name: str, world: str, tmp_path: Path
) -> None:
    """The shell has it ignore SIGINT. Stdout has the lines and nothing else, stderr nothing."""
    script = f"""
        kubectl {command} -n {world} pod/solo :8000 >out 2>err &
        until grep -q 'Forwarding from 127.0.0.1' out; do sleep 0.1; done
        kill -{name} $!
        wait $!
        echo $?
    """
    done = subprocess.run(
        ["sh", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": PATH},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    # kubectl handles SIGINT only; the others end it with no clean-up.
    number = signal.Signals[f"SIG{name}"]
    by_signal = command == "port-forward" and number != signal.SIGINT
    assert done.stdout.split() == [str(128 + number if by_signal else 0)]
    count = {"port-forward": 2, "relay": 1}[command]
    assert len((tmp_path / "out").read_text().splitlines()) == count
    assert (tmp_path / "err").read_text() == ""


def test_ctrl_c_ends_quiet_connections_and_says_how_many_it_waits_for(world: str) -> None:
    """An idle client costs no wait; a busy one has its time, unless Ctrl-C is pressed again."""
    terminal, stderr = pty.openpty()
    with open(terminal, "rb", buffering=0) as screen, open(stderr, "wb") as errors:
        tool = subprocess.Popen(
            ["kubectl", "relay", "-n", world, "pod/solo", ":9000", ":9001@udp"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "PATH": PATH},
        )
        errors.close()
        with tool:
            assert tool.stdout is not None
            lines = [tool.stdout.readline() for _ in range(2)]
            tcp, udp = (int(line.split()[2].rpartition(":")[2]) for line in lines)
            assert kit.ask_udp(("127.0.0.1", udp), b"who") == b"solo"
            with kit.command(("127.0.0.1", tcp), "echo") as quiet:
                quiet.sendall(b"x")
                assert quiet.recv(1) == b"x"
                with kit.command(("127.0.0.1", tcp), "tick") as busy:
                    assert kit.read_until(busy, b"\n30\n")
                    tool.send_signal(signal.SIGINT)
                    with pytest.raises(ConnectionResetError):
                        kit.read_all(quiet)
                    said = screen.read(1000).decode()
                    assert "draining 1 connection for up to 30 s" in said
                    assert busy.recv(1)
                    tool.send_signal(signal.SIGINT)
                    with pytest.raises(ConnectionResetError):
                        kit.read_all(busy)
            assert tool.wait(30) == 130


def test_ctrl_c_with_quiet_connections_only_ends_at_once(world: str) -> None:
    with start("relay", "-n", world, "pod/solo", ":9000") as tool:
        ((_, port, _), _) = lines(tool, 2)
        with kit.command(("127.0.0.1", int(port)), "echo") as quiet:
            quiet.sendall(b"x")
            assert quiet.recv(1) == b"x"
            tool.interrupt()
            with pytest.raises(ConnectionResetError):
                kit.read_all(quiet)
            # Far sooner than the 30 s of `drain`.
            assert tool.finish(15.0) == 0
        assert tool.log == []
