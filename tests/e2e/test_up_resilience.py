"""Connections that outlive their tunnel, on the real cluster; tests/chaos leaves it to chance."""

from __future__ import annotations

import socket
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from krelay.status.client import ask
from tests.e2e import kit, program

SIZE = 48 << 20


def config(namespace: str, targets: str, more: str = "") -> str:
    return f"apiVersion: krelay/v1\nnamespace: {namespace}\n{more}\ntargets:\n  {targets}\n"


def ticks(sock: socket.socket) -> Generator[int]:
    """The numbers that `tick` sends, each of which must be the next."""
    with sock.makefile("rb") as lines:
        for expected, line in enumerate(lines):
            assert int(line) == expected
            yield expected


def rotations(krelay: kit.Krelay) -> int:
    return sum("tunnel resumed" in line for line in krelay.log)


def reached(directory: Path) -> bool:
    """Whether the krelay of the file in there has every tunnel up."""
    (file,) = directory.glob("krelay-*.yaml")
    agents = ask(str(file), "GET", "/v1/status", timeout=10.0)["agents"]
    return all(tunnel["up"] for agent in agents for tunnel in agent["tunnels"])


def test_tunnels_that_grow_old_are_replaced_under_load(world: str, tmp_path: Path) -> None:
    more = "tunnel: {maxAge: 1s, sessions: 1}"
    with kit.up(config(world, "solo: pod/solo :9000", more), tmp_path, 1) as krelay:
        address = krelay.address("solo")
        received: list[bytes] = []

        def upload() -> None:
            with kit.command(address, "receive") as sock:
                for block in program.blocks(SIZE):
                    sock.sendall(block)
                sock.shutdown(socket.SHUT_WR)
                received.append(kit.read_all(sock))

        with kit.command(address, "tick") as sock:
            sending = threading.Thread(target=upload)
            sending.start()
            for _ in ticks(sock):
                if rotations(krelay) >= 4 and not sending.is_alive():
                    break
        assert received == [f"{SIZE} {program.digest(SIZE)}\n".encode()]
        assert not [line for line in krelay.log if "lost" in line], krelay.told()
        assert len(kit.agents(world)) >= 2


def test_a_lost_agent_of_two_costs_its_own_streams_alone(
    namespace: object, world: str, tmp_path: Path
) -> None:
    place = namespace()  # type: ignore[operator]
    # A probe would count as a stream of its tunnel, and have the next one go to the other.
    target = f"{{target: pod/solo, port: 9000, namespace: {world}, check: none}}"
    text = config(place, f"solo: {target}", "agent: {replicas: 2}")
    with kit.up(text, tmp_path, 1) as krelay:
        pods = kit.get(place, "pods", "-l", "app=krelay-server")["items"]
        assert len(pods) == 2
        (spread,) = pods[0]["spec"]["topologySpreadConstraints"]
        assert spread["topologyKey"] == "kubernetes.io/hostname"
        run = spread["labelSelector"]["matchLabels"]
        assert all(run.items() <= pod["metadata"]["labels"].items() for pod in pods)

        # It is ready with one of them; where the other is slow, it would have no stream.
        kit.eventually(lambda: reached(tmp_path), "both agents are reached")
        socks = [kit.command(krelay.address("solo"), "echo") for _ in range(8)]
        for sock in socks:
            sock.sendall(b"there")
            assert sock.recv(5, socket.MSG_WAITALL) == b"there"
        kit.kubectl(
            *("-n", place, "delete", "pod", pods[0]["metadata"]["name"], "--grace-period=1")
        )
        krelay.wait_log("streams are reset", 30)
        alive = 0
        for sock in socks:
            try:
                sock.sendall(b"still")
                assert sock.recv(5, socket.MSG_WAITALL) == b"still"
                alive += 1
            except ConnectionError:
                continue
            finally:
                sock.close()
        assert alive == 4
        with kit.command(krelay.address("solo"), "echo") as sock:
            sock.sendall(b"new")
            assert sock.recv(3, socket.MSG_WAITALL) == b"new"
        kit.eventually(
            lambda: len(kit.agents(place)) == 4, "the lost agent is replaced", kit.COLLECTED
        )
    kit.assert_no_agents(place)


@pytest.mark.timeout(180)
def test_a_connection_outlives_its_api_server(world: str, tmp_path: Path) -> None:
    """And what was opened meanwhile waits for it."""
    with kit.up(config(world, "solo: pod/solo :9000"), tmp_path, 1) as krelay:
        address = krelay.address("solo")
        with kit.command(address, "tick") as sock, kit.faults() as fault:
            numbers = ticks(sock)
            next(numbers)
            fault("stop", "kube-apiserver")
            krelay.wait_log("tunnel lost")
            waiting = kit.command(address, "echo")
            waiting.sendall(b"patience")
            fault("start", "kube-apiserver")
            with waiting:
                assert waiting.recv(8, socket.MSG_WAITALL) == b"patience"
            last = next(numbers)
            assert next(numbers) == last + 1
        assert not any("are reset" in line for line in krelay.log), krelay.told()
