"""Tunnels that the API server's proxy carries: the way there, its faults, and the way back."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from krelay.status.client import ask
from tests.chaos.door import dropped, flooded
from tests.chaos.world import serves
from tests.e2e import kit, program
from tests.e2e.test_up_life import account
from tests.e2e.test_up_resilience import ticks

Make = Callable[..., str]
SIZE = 64 << 20
# Every 3 s a ping is due, and 6 s of silence end a tunnel; then it is dialled.
PING_DEADLINE = 9.0
SILENCE = PING_DEADLINE + 6.0


def config(namespace: str, world: str, tunnel: str = "{}", more: str = "") -> str:
    target = f"{{target: pod/solo, port: 9000, namespace: {world}}}"
    return (
        f"apiVersion: krelay/v1\nnamespace: {namespace}\ntunnel: {tunnel}\n{more}\n"
        f"targets:\n  solo: {target}\n"
    )


def tunnels(directory: Path) -> list[dict[str, Any]]:
    """What the krelay of the file in there says of its tunnels."""
    (file,) = directory.glob("krelay-*.yaml")
    (agent,) = ask(str(file), "GET", "/v1/status", timeout=10.0)["agents"]
    found: list[dict[str, Any]] = agent["tunnels"]
    return found


def carried(directory: Path, carrier: str, timeout: float = 30.0) -> list[dict[str, Any]]:
    """Wait until this carrier has all tunnels; what is said of them."""

    def there() -> bool:
        return {tunnel["carrier"] for tunnel in tunnels(directory)} == {carrier}

    kit.eventually(there, f"tunnels are carried by {carrier}", timeout)
    return tunnels(directory)


def pod_ip(namespace: str) -> str:
    (pod,) = kit.get(namespace, "pods", "-l", "app=krelay-server")["items"]
    return str(pod["status"]["podIP"])


def longest_pause(numbers: Iterator[int], until: Callable[[], bool]) -> float:
    """The longest time without a tick, until a condition holds."""
    longest, last = 0.0, time.monotonic()
    for _ in numbers:
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
        if until():
            return longest
    raise AssertionError("the ticks ended")


@contextmanager
def downloading(address: kit.Address) -> Iterator[Callable[[], bytes]]:
    """A download of SIZE, half of which is read; the function reads the rest and returns its
    digest."""
    with kit.command(address, f"send {SIZE}") as sock:
        whole, left = hashlib.sha256(), SIZE

        def read(count: int) -> None:
            nonlocal left
            while count > 0:
                data = sock.recv(min(count, 1 << 20))
                assert data, f"truncated, {left} bytes are missing"
                whole.update(data)
                count -= len(data)
                left -= len(data)

        read(SIZE // 2)

        def rest() -> bytes:
            read(left)
            return whole.hexdigest().encode()

        yield rest


def test_tunnels_move_to_the_proxy_while_they_serve(
    namespace: Make, world: str, tmp_path: Path
) -> None:
    with kit.up(config(namespace(), world), tmp_path, 1) as krelay:
        with kit.command(krelay.address("solo"), "tick") as sock:
            numbers = ticks(sock)
            next(numbers)
            found = carried(tmp_path, "proxy")
            assert next(numbers) >= 1
        assert all(tunnel["shortcut"] is None for tunnel in found)
        assert [tunnel["connects"] for tunnel in found] == [2, 2]
        assert not [line for line in krelay.log if "lost" in line], krelay.told()


@pytest.mark.timeout(240)
def test_a_drop_of_the_door_s_port_sends_tunnels_back_without_losing_a_byte(
    namespace: Make, world: str, tmp_path: Path
) -> None:
    place = namespace()
    with kit.up(config(place, world), tmp_path, 1) as krelay:
        carried(tmp_path, "proxy")
        address = krelay.address("solo")
        with downloading(address) as rest, kit.command(address, "tick") as sock:
            numbers = ticks(sock)
            next(numbers)
            with dropped(pod_ip(place)):
                back = longest_pause(
                    numbers, lambda: all(t["carrier"] == "spdy" for t in tunnels(tmp_path))
                )
                found = tunnels(tmp_path)
            assert rest() == program.digest(SIZE).encode()
        assert back < SILENCE
        assert {tunnel["shortcut"]["reason"] for tunnel in found} == {"it stopped delivering"}
        assert not any("are reset" in line for line in krelay.log), krelay.told()
        carried(tmp_path, "proxy", 60.0)


@pytest.mark.timeout(240)
def test_a_node_without_kubelet_and_containerd_is_not_felt(
    namespace: Make, world: str, tmp_path: Path
) -> None:
    """Nor is a restart of the API server meanwhile: the tunnels resume by the proxy."""
    with kit.up(config(namespace(), world), tmp_path, 1) as krelay:
        carried(tmp_path, "proxy")
        with kit.command(krelay.address("solo"), "tick") as sock, kit.faults() as fault:
            numbers = ticks(sock)
            next(numbers)
            before = len(krelay.log)
            try:
                fault("stop", "kubelet")
                fault("stop", "containerd")
                with kit.command(krelay.address("solo"), "echo") as other:
                    other.sendall(b"still")
                    assert other.recv(5, socket.MSG_WAITALL) == b"still"
                next(numbers)
                assert not any("tunnel lost" in line for line in krelay.log[before:])
                fault("stop", "kube-apiserver")
                krelay.wait_log("tunnel lost")
                fault("start", "kube-apiserver")
                last = next(numbers)
                while next(numbers) < last + 20:
                    pass
                carried(tmp_path, "proxy")
            finally:
                fault("start", "containerd")
                fault("start", "kubelet")
        assert not any("are reset" in line for line in krelay.log), krelay.told()
    serves()


@pytest.mark.timeout(240)
def test_a_stranger_s_flood_at_the_door_keeps_no_session_out(
    namespace: Make, world: str, tmp_path: Path
) -> None:
    place = namespace()
    # It rotates all the time, so that its handshakes compete with the stranger's.
    text = config(place, world, "{maxAge: 1s, sessions: 1}")
    with kit.up(text, tmp_path, 1) as krelay:
        carried(tmp_path, "proxy")
        with kit.command(krelay.address("solo"), "tick") as sock:
            numbers = ticks(sock)
            next(numbers)
            with flooded(place, pod_ip(place)):
                done = tunnels(tmp_path)[0]["rotated"]
                pause = longest_pause(numbers, lambda: tunnels(tmp_path)[0]["rotated"] >= done + 5)
        assert pause < 2.0
        assert not any("are reset" in line for line in krelay.log), krelay.told()
        carried(tmp_path, "proxy")


def test_an_agent_without_a_door_is_served_by_port_forward(
    namespace: Make, world: str, tmp_path: Path
) -> None:
    """As that of an earlier version is."""
    more = (
        "agent: {patches: [{patch: {spec: {containers: [{name: krelay-server, env: "
        "[{name: KRELAY_POD_IP, $patch: delete}]}]}}}]}"
    )
    with kit.up(config(namespace(), world, more=more), tmp_path, 1) as krelay:
        krelay.wait_log("not by proxy: nothing listens on port 10250")
        found = carried(tmp_path, "spdy")
        assert {tunnel["shortcut"]["reason"] for tunnel in found} == {
            "nothing listens on port 10250 of the agent's pod"
        }
        with kit.command(krelay.address("solo"), "echo") as sock:
            sock.sendall(b"there")
            assert sock.recv(5, socket.MSG_WAITALL) == b"there"


def test_a_pod_on_the_node_s_network_leaves_tunnels_on_the_port_forward(
    namespace: Make, world: str, tmp_path: Path
) -> None:
    """Its port 10250 is the kubelet's."""
    more = "agent: {patches: [{patch: {spec: {hostNetwork: true}}}]}"
    with kit.up(config(namespace(), world, more=more), tmp_path, 1) as krelay:
        krelay.wait_log("not by proxy: ")
        (reason,) = {t["shortcut"]["reason"] for t in carried(tmp_path, "spdy")}
        assert "HTTP" in reason, reason


PROXY = {"apiGroups": [""], "resources": ["pods/proxy"], "verbs": ["get"]}


def rules(tmp_path: Path, text: str) -> list[dict[str, Any]]:
    """What `krelay rbac` prints for the agent's namespace."""
    path = tmp_path / "rbac.yaml"
    path.write_text(text)
    (role,) = yaml.safe_load_all("\n".join(kit.run("rbac", "-f", str(path)).output))
    found: list[dict[str, Any]] = role["rules"]
    return found


def by_address(namespace: str, world: str, tunnel: str = "{}") -> str:
    """A file whose target needs no further rights."""
    ip = kit.get(world, "pod", "solo")["status"]["podIP"]
    return (
        f"apiVersion: krelay/v1\nnamespace: {namespace}\ntunnel: {tunnel}\n"
        f"targets:\n  solo: ip/{ip} :9000\n"
    )


def test_without_the_right_tunnels_stay_on_the_port_forward(
    namespace: Make, world: str, tmp_path: Path
) -> None:
    place = namespace()
    text = by_address(place, world)
    environ = {"KUBECONFIG": account(place, tmp_path, *rules(tmp_path, text))}
    with kit.up(text, tmp_path, 1, environ=environ) as krelay:
        krelay.wait_log("not by proxy: cannot get pods/proxy")
        (found, _) = carried(tmp_path, "spdy")
        assert found["shortcut"]["reason"] == f'cannot get pods/proxy in namespace "{place}"'
        (file,) = tmp_path.glob("krelay-*.yaml")
        wide = kit.run("status", "-f", str(file), "-o", "wide").output
        assert any("not by proxy: cannot get pods/proxy" in line for line in wide), wide
        assert sum("not by proxy" in line for line in krelay.log) == 1
    path = tmp_path / "alone.yaml"
    path.write_text(by_address(place, world, "{transport: proxy}"))
    refused = kit.run("up", "-f", str(path), environ=environ)
    assert refused.process.returncode == 4, refused.told()
    assert any("cannot get pods/proxy" in line for line in refused.log), refused.told()
    kit.assert_no_agents(place)


def test_with_nothing_else_allowed_only_the_proxy_carries(
    namespace: Make, world: str, tmp_path: Path
) -> None:
    """And `krelay rbac` prints the right that it needs then."""
    place = namespace()
    text = by_address(place, world, "{transport: proxy}")
    wanted = rules(tmp_path, text)
    assert PROXY in wanted
    environ = {"KUBECONFIG": account(place, tmp_path, *wanted)}
    with kit.up(text, tmp_path, 1, environ=environ) as krelay:
        assert {tunnel["carrier"] for tunnel in tunnels(tmp_path)} <= {"proxy", None}
        with kit.command(krelay.address("solo"), "echo") as sock:
            sock.sendall(b"there")
            assert sock.recv(5, socket.MSG_WAITALL) == b"there"
        assert not any("by spdy" in line for line in krelay.log)
