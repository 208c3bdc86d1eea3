"""`krelay run`, `wait` and the live table, on the real cluster."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml

from krelay import payload
from tests.e2e import kit

FETCH = """
import os, urllib.request
with urllib.request.urlopen(f"http://{os.environ['KRELAY_WEB_ADDR']}/") as answer:
    print(answer.status, len(answer.read()) > 0)
raise SystemExit(42)
"""


def write(tmp_path: Path, namespace: str, targets: str, more: str = "") -> str:
    path = tmp_path / "krelay.yaml"
    path.write_text(
        f"apiVersion: krelay/v1\nnamespace: {namespace}\n{more}\ntargets:\n  {targets}\n"
    )
    return str(path)


def slow_to_listen() -> str:
    """An agent whose pod runs for seconds before it listens, as where the node is busy."""
    command = ["sh", "-c", 'sleep 3; exec "$0" "$@"', *payload.command()]
    pod = {"spec": {"containers": [{"name": "krelay-server", "command": command}]}}
    return f"agent: {json.dumps({'patches': [{'patch': pod}]})}"


@pytest.mark.parametrize("agent", ["", slow_to_listen()], ids=["agent", "slow agent"])
def test_a_job_runs_with_its_forwards_and_leaves_nothing(
    namespace: Callable[..., str], world: str, tmp_path: Path, agent: str
) -> None:
    """The command line says where its cluster is, and the target's namespace stays its own."""
    place = namespace()
    file = write(tmp_path, "not-there", f"web: svc/web :80 -n {world}", f"context: other\n{agent}")
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(kit.kubectl("config", "view", "--raw", "--minify", "--flatten"))
    context = yaml.safe_load(kubeconfig.read_text())["current-context"]
    where = ("--kubeconfig", str(kubeconfig), "--context", context, "-n", place)
    command = (sys.executable, "-c", FETCH)
    environ = {"KUBECONFIG": str(tmp_path / "none")}
    done = kit.run("run", "-f", file, *where, "--", *command, environ=environ)
    assert done.process.returncode == 42, done.told()
    assert done.output == ["200 True"]
    assert not [line for line in done.log if "tunnel" in line], done.told()
    kit.assert_no_agents(place)


def test_what_is_not_ready_in_time_leaves_nothing_either(
    namespace: Callable[..., str], tmp_path: Path
) -> None:
    place = namespace()
    file = write(tmp_path, place, "web: svc/not-there :80")
    done = kit.run("run", "-f", file, "--timeout", "5s", "--", "true")
    assert done.process.returncode == 3, done.told()
    assert any("not-there" in line for line in done.log), done.told()
    kit.assert_no_agents(place)


def test_wait_is_for_what_was_measured(world: str, tmp_path: Path) -> None:
    """A Service without a listener is bound and resolved, but not ready."""
    lines = "web: svc/web :80\n  dead: pod/solo :7"
    with kit.up(f"apiVersion: krelay/v1\nnamespace: {world}\ntargets:\n  {lines}\n", tmp_path, 2):
        file = str(next(tmp_path.glob("krelay-*.yaml")))
        ready = kit.run("wait", "-f", file, "web", "--timeout", "20s")
        assert ready.process.returncode == 0, ready.told()
        late = kit.run("wait", "-f", file, "--timeout", "3s")
        assert late.process.returncode == 3, late.told()
        assert any(line.startswith("dead: failed: refused") for line in late.log), late.told()


def test_add_and_check_ask_the_cluster_for_the_objects(world: str, tmp_path: Path) -> None:
    file = write(tmp_path, world, "page: svc/web 8080:80")
    before = Path(file).read_text()
    for target in ("svc/web", "deploy/web"):
        done = kit.run("add", "-f", file, target, "--name", target.replace("/", "-"))
        assert done.process.returncode == 0, done.told()
    service, workload = Path(file).read_text().removeprefix(before).splitlines()
    assert service == "  svc-web: svc/web 8081:80 10090:90 10091:91/udp"
    assert workload.startswith("  deploy-web: deploy/web 8000")
    checked = kit.run("check", "--cluster", "-f", file)
    assert checked.process.returncode == 0, checked.told()
    assert checked.output == [f"{file}: ok, also in the cluster, 3 targets"]
    elsewhere = kit.run("check", "--cluster", "-f", file, "-n", "default")
    assert elsewhere.process.returncode == 4, elsewhere.told()
    assert 'svc-web: services "web" not found in namespace "default"' in elsewhere.log
    gone = kit.run("add", "-f", file, "svc/not-there")
    assert gone.process.returncode == 4, gone.told()
    assert any("not-there" in line for line in gone.log), gone.told()


def test_import_finds_the_ports_of_services_in_the_cluster(world: str, tmp_path: Path) -> None:
    """kftray and kportal name ports of pods: 8000 is the port `http`, 9000 a targetPort."""
    context = kit.kubectl("config", "current-context").strip()
    common = {"workload_type": "service", "context": context, "namespace": world, "service": "web"}
    forwards = [
        {**common, "alias": "web", "local_port": 0, "remote_port": 8000},
        {**common, "alias": "command", "local_port": 0, "remote_port": 9000},
        {**common, "alias": "nowhere", "local_port": 0, "remote_port": 80},
    ]
    done = kit.run("import", "-", stdin=json.dumps(forwards))
    assert done.process.returncode == 0, done.told()
    assert done.log == [
        "warning: nowhere: no port of the Service leads to port 80 of its pods: name its workload"
    ]
    with kit.up("\n".join(done.output), tmp_path, 2) as krelay:
        assert kit.http_get(krelay.address("web"))
        assert [line.split(" -> ")[1] for line in krelay.output] == [
            "svc/web:80 (tcp)",
            "svc/web:90 (tcp)",
        ]


def krelay(*args: str) -> list[str]:
    """What a command that succeeds prints."""
    done = kit.run(*args)
    assert done.process.returncode == 0, done.told()
    return done.output


def test_a_krelay_in_the_background_from_up_to_down(
    namespace: Callable[..., str], tmp_path: Path, world: str
) -> None:
    """Its targets go through an agent and directly; each is restarted, then both and the agent."""
    place = namespace()
    web = f"web: svc/web :command -n {world}"
    db = f"db: {{target: sts/db, namespace: {world}, port: ':command', via: direct}}"
    file = write(tmp_path, place, f"{web}\n  {db}")
    try:
        started = krelay("up", "-d", "-f", file)
        assert [line.partition(":")[0] for line in started] == ["web", "db"]
        listed = json.loads("".join(krelay("ps", "-o", "json")))
        (mine,) = [one for one in listed if one["file"] == file]
        assert (mine["ready"], mine["total"]) == (2, 2)
        agents = kit.agents(place)
        for name in ("web", "db"):
            (address,) = krelay("port", "-f", file, name)
            host, _, port = address.rpartition(":")
            with kit.command((host, int(port)), "echo") as before:
                before.sendall(b"?\n")
                assert kit.read_until(before, b"\n") == b"?\n"
                done = krelay("restart", "-f", file, name)
                assert done == [f"restarted {name}; 1 connection reset"]
                with pytest.raises(ConnectionResetError):
                    kit.read_all(before)
            with kit.command((host, int(port)), "echo") as after:
                after.sendall(b"!\n")
                assert kit.read_until(after, b"\n") == b"!\n"
        about = krelay("logs", "-f", file, "db")
        assert any("db: restarted" in line for line in about)
        assert not any(" web: " in line for line in about)
        assert kit.agents(place) == agents
        (done_all,) = krelay("restart", "-f", file)
        assert done_all.startswith("restarted 2 targets and the agent; ")
        left = partial(kit.agents, place)
        kit.eventually(lambda: not {*agents} & {*left()}, "the former agent's end", kit.COLLECTED)
        assert krelay("down", "-f", file) == [f"krelay (pid {mine['pid']}) has ended"]
        kit.assert_no_agents(place)
    finally:
        kit.run("down", "-f", file)
