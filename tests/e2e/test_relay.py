"""`kubectl relay`, run by kubectl: the lines of the Go krelay's README, and what scripts expect."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e import kit
from tests.e2e.kit import Krelay

Make = Callable[..., str]
# What tools wait for: kubectl's line, and in it, once a forward, the Go krelay's fields.
KUBECTL = re.compile(r"Forwarding from (?:\[(\S+)\]|([\d.]+)):(\d+) -> (\d+)")
SEED = re.compile(r"(?:localAddr|address)=\S+:(\d+)")
# The scripts are beside the interpreter that runs this.
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
# A query for the addresses of kubernetes.default.svc.cluster.local.
QUERY = (
    b"\x12\x34\1\0\0\1\0\0\0\0\0\0"
    + b"".join(
        bytes([len(part)]) + part for part in b"kubernetes.default.svc.cluster.local".split(b".")
    )
    + b"\0\0\1\0\1"
)


def kubectl_relay(*args: str, stdin: str | None = None, expect: int | None = 0) -> Krelay:
    return Krelay(
        *args,
        stdin=stdin,
        expect=expect,
        environ={"PATH": PATH},
        program=("kubectl", "relay"),
    )


def ready(krelay: Krelay, count: int = 1) -> list[int]:
    """The local ports, once `count` forwards are ready."""
    krelay.wait(lambda: len(forwards(krelay)) >= count, f"{count} forwards", 60.0)
    assert all(map(KUBECTL.match, krelay.output)), krelay.told()
    return [int(match[3]) for match in forwards(krelay)]


def forwards(krelay: Krelay) -> list[re.Match[str]]:
    """The line of each forward."""
    lines = filter(SEED.search, krelay.output)
    return [match for match in map(KUBECTL.match, lines) if match]


def body(port: int, host: str = "127.0.0.1") -> bytes:
    return kit.http_get((host, port))


def failed(*args: str) -> str:
    """What a command that fails says; it leaves no agent behind."""
    krelay = kubectl_relay(*args)
    code = krelay.finish(90.0)
    assert code == 4, krelay.told()
    assert krelay.output == []
    return "\n".join(krelay.log)


@pytest.mark.parametrize(
    "line",
    [
        "service/web :http -n {world}",
        "-n {world} deploy/web :8000",
        "pod/solo :http --namespace={world}",
        "solo -n {world} :8000",
        "host/web.{world} :80",
        "host/web.{world}.svc.cluster.local :80@tcp",
        "-n {world} sts/db 0:8000",
    ],
)
def test_a_target(line: str, world: str) -> None:
    with kubectl_relay(*line.format(world=world).split()) as krelay:
        (port,) = ready(krelay)
        assert body(port)


def test_udp_to_a_deployment_s_pod() -> None:
    with kubectl_relay("-n", "kube-system", "deploy/coredns", ":53@udp") as krelay:
        (port,) = ready(krelay)
        assert kit.ask_udp(("127.0.0.1", port), QUERY)[:2] == QUERY[:2]


def test_all_addresses(world: str) -> None:
    with kubectl_relay("--address", "0.0.0.0", "-n", world, "pod/solo", ":8000") as krelay:
        (port,) = ready(krelay)
        assert body(port, "127.0.0.2") == b"solo\n"


def test_an_address_by_tcp_and_udp(world: str) -> None:
    address = kit.get(world, "pod", "solo")["status"]["podIP"]
    with kubectl_relay(f"ip/{address}", ":8000@tcp", ":9001@udp") as krelay:
        tcp, udp = ready(krelay, 2)
        assert body(tcp) == b"solo\n"
        assert kit.ask_udp(("127.0.0.1", udp), b"who") == b"solo"


def test_many_targets_from_a_file_and_from_standard_input(world: str, tmp_path: Path) -> None:
    text = (
        "# Each line is a target\n// also a comment\n\n"
        "-n kube-system svc/kube-dns :53@udp\n"
        f"svc/web :80\nhost/web.{world} :80\n-l 127.0.0.3 pod/solo :8000\n"
    )
    file = tmp_path / "targets.txt"
    file.write_text(text)
    for args, stdin in ((("-f", str(file)), None), (("-f", "-"), text)):
        with kubectl_relay(*args, "-n", world, stdin=stdin) as krelay:
            ready(krelay, 4)
            found = forwards(krelay)
            for match in found:
                if match[4] != "53":
                    assert body(int(match[3]), match[2])
            assert "127.0.0.3" in [match[2] for match in found]


def test_a_patch_moves_the_agent_and_chooses_its_node(world: str, namespace: Make) -> None:
    place = namespace()
    patch = {
        "metadata": {"namespace": place},
        "spec": {"nodeSelector": {"kubernetes.io/os": "linux"}},
    }
    address = kit.get(world, "pod", "solo")["status"]["podIP"]
    with kubectl_relay("--patch", json.dumps(patch), f"ip/{address}", ":8000") as krelay:
        (port,) = ready(krelay)
        assert body(port) == b"solo\n"
        (pod,) = kit.get(place, "pods", "-l", "app=krelay-server")["items"]
        assert pod["spec"]["nodeSelector"] == {"kubernetes.io/os": "linux"}
    kit.assert_no_agents(place)


def test_a_patch_file_names_the_agent_and_a_patch_of_args_leaves_the_rest(
    world: str, namespace: Make, tmp_path: Path
) -> None:
    place = namespace()
    file = tmp_path / "patch.yaml"
    file.write_text(f"metadata:\n  generateName: foo-\n  namespace: {place}\n")
    args = '{"spec":{"containers":[{"name":"krelay-server","args":["--idle-timeout=15s"]}]}}'
    with kubectl_relay(
        *("--patch-file", str(file), "--patch", args, "-n", world, "svc/web", ":80")
    ) as krelay:
        (port,) = ready(krelay)
        assert body(port)
        (pod,) = kit.get(place, "pods", "-l", "app=krelay-server")["items"]
        assert pod["metadata"]["name"].startswith("foo-")
        assert pod["spec"]["containers"][0]["args"] == ["--idle-timeout=15s"]
        assert not any("drops" in line for line in krelay.log), krelay.told()


def test_a_patch_that_takes_what_is_needed_is_warned_of(world: str, namespace: Make) -> None:
    patch = {
        "metadata": {"namespace": namespace()},
        "spec": {"containers": [{"name": "krelay-server", "command": None}]},
    }
    with kubectl_relay(
        *("-p", json.dumps(patch), "-n", world, "svc/web", ":80"), expect=None
    ) as krelay:
        krelay.wait_log("drops the container's command of the agent's pod")
        krelay.interrupt()


def test_a_patch_that_the_api_server_refuses(world: str) -> None:
    patch = '{"spec":{"containers":[{"name":"krelay-server","imagePullPolicy":"Sometimes"}]}}'
    said = failed("-p", patch, "-n", world, "svc/web", ":80")
    assert "imagePullPolicy" in said
    assert "Sometimes" in said


def test_what_does_not_exist_is_an_error(world: str) -> None:
    assert f'pods "none" not found in namespace "{world}"' in failed(
        "-n", world, "pod/none", "8000"
    )
    assert "has no port nope" in failed("-n", world, "svc/web", ":nope")


def test_kubectl_s_flags_reach_the_api_server(world: str) -> None:
    assert "nobody" in failed("--as", "nobody", "-n", world, "svc/web", ":80")
    assert "cannot reach" in failed(
        "--server", "https://127.0.0.1:1", "--request-timeout", "5s", "-n", world, "svc/web", ":80"
    )


def test_a_lost_cluster_does_not_end_it(world: str) -> None:
    with kubectl_relay("--v=3", "-n", world, "svc/web", ":80") as krelay:
        (port,) = ready(krelay)
        krelay.wait_log(" runs")
        match = next(m for m in (re.search(r"pod (\S+)/(\S+) runs", x) for x in krelay.log) if m)
        kit.kubectl("-n", match[1], "delete", "pod", match[2], "--wait=false")
        krelay.wait_log("tunnel lost")
        assert body(port)
        assert krelay.process.poll() is None


# -- proxies -----------------------------------------------------------------------------------


def through(port: int, kind: str, url: str) -> str:
    """What curl gets by a proxy."""
    done = subprocess.run(
        ["curl", "-sS", "--max-time", "20", "-x", f"{kind}://127.0.0.1:{port}", url],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("program", [("kubectl", "relay"), (sys.executable, "-m", "krelay")])
def test_a_proxy_into_the_cluster(program: tuple[str, ...], world: str) -> None:
    krelay = Krelay("proxy", "-l", "127.0.0.1:0", environ={"PATH": PATH}, program=program)
    with krelay:
        krelay.wait_lines(1)
        match = re.search(r"127\.0\.0\.1:(\d+)", krelay.output[0])
        assert match is not None
        if program[0] == "kubectl":
            assert krelay.output == [f"SOCKS5 server is running address={match[0]}"]
        port = int(match[1])
        for kind in ("socks5h", "http"):
            for host in (f"web.{world}", f"web.{world}.svc.cluster.local"):
                assert through(port, kind, f"http://{host}/").startswith("web-")


def test_a_proxy_s_short_names_are_of_the_agent_s_namespace(world: str, tmp_path: Path) -> None:
    text = (
        f"apiVersion: krelay/v1\nagent: {{namespace: {world}}}\n"
        "proxies: {px: {port: 0, username: me, password: pw}}\n"
    )
    with kit.up(text, tmp_path, 1) as krelay:
        port = krelay.address("px")[1]
        done = subprocess.run(
            ["curl", "-sS", "-x", f"socks5h://me:pw@127.0.0.1:{port}", "http://web/"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.startswith("web-")


def test_datagrams_by_socks5(world: str) -> None:
    """A DNS query to a Service by its name, from a client that speaks RFC 1928 itself."""
    krelay = Krelay("proxy", "-l", "127.0.0.1:0")
    with krelay:
        krelay.wait_lines(1)
        match = re.search(r"127\.0\.0\.1:(\d+)", krelay.output[0])
        assert match is not None
        with kit.dial(("127.0.0.1", int(match[1]))) as control:
            control.sendall(b"\5\1\0\5\3\0\1\0\0\0\0\0\0")
            answer = b""
            while len(answer) < 12:
                answer += control.recv(12 - len(answer))
            assert answer[:6] == b"\5\0\5\0\0\1"
            relay = ("127.0.0.1", int.from_bytes(answer[10:], "big"))
            name = b"kube-dns.kube-system"
            head = b"\0\0\0\3" + bytes([len(name)]) + name + b"\0\x35"
            found = kit.ask_udp(relay, head + QUERY)
            assert found.startswith(head + QUERY[:2])
            assert len(found) > len(head + QUERY)
