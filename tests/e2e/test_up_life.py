"""From `krelay up` to the last trace of it: starts, refusals and ends on the real cluster."""

from __future__ import annotations

import json
import re
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e import kit
from tests.e2e.test_admission import enforce

Make = Callable[..., str]


def config(namespace: str, targets: str = "web: svc/web :80", more: str = "") -> str:
    return f"apiVersion: krelay/v1\nnamespace: {namespace}\n{more}\ntargets:\n  {targets}\n"


def write(tmp_path: Path, text: str, name: str = "krelay.yaml") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_sigint_leaves_nothing_behind(namespace: Make, world: str, tmp_path: Path) -> None:
    place = namespace()
    text = config(place, f"web: svc/web :80 -n {world}")
    with kit.up(text, tmp_path, 1) as krelay:
        assert kit.http_get(krelay.address("web"))
        assert len(kit.agents(place)) == 2
    kit.assert_no_agents(place)
    pods = partial(kit.get, place, "pods")
    kit.eventually(lambda: not pods()["items"], "the agent's pod is gone", kit.COLLECTED)


def test_sigkill_leaves_nothing_behind_once_idle(
    namespace: Make, world: str, tmp_path: Path
) -> None:
    place = namespace()
    text = config(
        place,
        f"web: svc/web :90 -n {world}",
        "agent: {idleTimeout: 2s}",
    )
    krelay = kit.up(text, tmp_path, 1, expect=None)
    with kit.command(krelay.address("web"), "tick") as sock:
        assert sock.recv(1)
        krelay.process.kill()
        assert krelay.finish() == -signal.SIGKILL
        # Well before a session without a tunnel would end by itself.
        kit.eventually(lambda: not kit.agents(place), "job and pod are gone", 30.0)


def test_a_second_interrupt_stops_at_once(world: str, tmp_path: Path) -> None:
    text = config(world, "solo: pod/solo :9000")
    with kit.up(text, tmp_path, 1, expect=130) as krelay:
        with kit.command(krelay.address("solo"), "tick") as sock:
            assert sock.recv(1)
            krelay.interrupt()
            krelay.wait_log("draining 1 connection")
            krelay.interrupt()
            assert krelay.finish() == 130
            with pytest.raises(ConnectionResetError):
                kit.read_all(sock)


def test_draining_lets_a_live_connection_finish(world: str, tmp_path: Path) -> None:
    with kit.up(config(world, "solo: pod/solo :9000"), tmp_path, 1) as krelay:
        with kit.command(krelay.address("solo"), "tick") as sock:
            assert sock.recv(1)
            krelay.interrupt()
            krelay.wait_log("draining 1 connection ")
            sock.shutdown(socket.SHUT_WR)
            assert kit.read_all(sock).endswith(b"\n")
        assert krelay.finish() == 0


def test_pod_security_restricted(namespace: Make, world: str, tmp_path: Path) -> None:
    place = namespace(**{"pod-security.kubernetes.io/enforce": "restricted"})
    with kit.up(config(place, f"web: svc/web :80 -n {world}"), tmp_path, 1) as krelay:
        assert kit.http_get(krelay.address("web"))


def quota(**hard: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small"},
        "spec": {"hard": hard},
    }


def test_a_quota_with_room(namespace: Make, world: str, tmp_path: Path) -> None:
    place = namespace()
    enforce(
        place,
        quota(
            **{"requests.memory": "100Mi", "limits.memory": "1Gi", "limits.cpu": "2", "pods": "1"}
        ),
    )
    with kit.up(config(place, f"web: svc/web :80 -n {world}"), tmp_path, 1) as krelay:
        assert kit.http_get(krelay.address("web"))


def test_a_quota_without_room(namespace: Make, world: str, tmp_path: Path) -> None:
    place = namespace()
    enforce(place, quota(**{"limits.memory": "1Mi"}))
    text = config(place, f"web: svc/web :80 -n {world}", "via: agent")
    done = kit.run("up", "-f", write(tmp_path, text))
    assert done.process.returncode == 4, done.told()
    assert "exceeded quota: small" in "\n".join(done.log)
    kit.assert_no_agents(place)


def test_an_image_that_does_not_exist(namespace: Make, world: str, tmp_path: Path) -> None:
    place = namespace()
    wrong = "agent: {image: nowhere.test/python:9}"
    target = f"web: svc/web :80 -n {world}"
    text = config(place, target, f"via: agent\n{wrong}")
    done = kit.run("up", "-f", write(tmp_path, text))
    assert done.process.returncode == 4, done.told()
    assert "nowhere.test/python:9" in "\n".join(done.log)
    kit.assert_no_agents(place)
    # By default what can do without an agent does.
    with kit.up(config(place, target, wrong), tmp_path, 1) as krelay:
        krelay.wait_log("no agent: cannot pull the image nowhere.test/python:9")
        assert kit.http_get(krelay.address("web")).startswith(b"web-")
        kit.assert_no_agents(place)


def account(namespace: str, tmp_path: Path, *rules: dict[str, Any]) -> str:
    """A kubeconfig of a service account that may do this much."""
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "some"},
        "rules": list(rules),
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "some"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "some"},
        "subjects": [{"kind": "ServiceAccount", "name": "somebody", "namespace": namespace}],
    }
    kit.kubectl("-n", namespace, "create", "serviceaccount", "somebody")
    if rules:
        kit.apply(namespace, role, binding)
        kit.wait_granted(kit.service_account(namespace, "somebody"))
    token = kit.kubectl("-n", namespace, "create", "token", "somebody").strip()
    mine = json.loads(kit.kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
    mine["users"] = [{"name": mine["contexts"][0]["context"]["user"], "user": {"token": token}}]
    return write(tmp_path, yaml.safe_dump(mine), "kubeconfig")


def test_missing_rights_are_named(namespace: Make, tmp_path: Path) -> None:
    place = namespace()
    kubeconfig = account(
        place, tmp_path, {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}
    )
    done = kit.run(
        "up",
        "-f",
        write(tmp_path, config(place, "there: ip/10.98.0.1 :80")),
        environ={"KUBECONFIG": kubeconfig},
    )
    assert done.process.returncode == 4, done.told()
    assert f'cannot create jobs.batch in namespace "{place}"' in "\n".join(done.log)


def bound(role: str) -> dict[str, Any]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": f"somebody-{role}"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": "somebody", "namespace": ""}],
    }


def test_the_example_s_roles_are_enough(namespace: Make, world: str, tmp_path: Path) -> None:
    place = namespace()
    roles = list(yaml.safe_load_all((kit.ROOT / "examples" / "rbac.yaml").read_text()))
    agent, targets = (role for role in roles if role["kind"] == "Role")
    kubeconfig = account(place, tmp_path)
    for where, role in ((place, agent), (world, targets)):
        binding = bound(role["metadata"]["name"])
        binding["subjects"][0]["namespace"] = place
        kit.apply(where, role, binding)
    kit.wait_granted(kit.service_account(place, "somebody"))
    text = config(
        place,
        f"svc: svc/web :80 -n {world}\n  headless: svc/headless :80 -n {world}\n"
        f"  deploy: deploy/web :8000 -n {world}\n  job: job/task :8000 -n {world}\n"
        f"  pod: solo :8000 -n {world}",
    )
    with kit.up(text, tmp_path, 5, environ={"KUBECONFIG": kubeconfig}) as krelay:
        for name in ("svc", "headless", "deploy", "job", "pod"):
            assert kit.http_get(krelay.address(name))


def test_what_krelay_rbac_prints_is_enough(namespace: Make, world: str, tmp_path: Path) -> None:
    """Each rule of it is needed, too: without any one of them something is refused."""
    place = namespace()
    kubeconfig = account(place, tmp_path)
    text = config(
        place,
        f"svc: svc/web :80 -n {world}\n  deploy: deploy/web :8000 -n {world}\n"
        f"  job: job/task :8000 -n {world}\n  pod: solo :8000 -n {world}",
    )
    file = write(tmp_path, text)
    printed = kit.run("rbac", "-f", file, "--serviceaccount", f"{place}:somebody")
    assert printed.process.returncode == 0, printed.told()
    documents = list(yaml.safe_load_all("\n".join(printed.output)))
    assert {(d["kind"], d["metadata"]["namespace"]) for d in documents} == {
        (kind, where) for kind in ("Role", "RoleBinding") for where in (place, world)
    }
    kit.kubectl("apply", "-f", "-", stdin="\n".join(printed.output))
    kit.wait_granted(kit.service_account(place, "somebody"))
    with kit.up(text, tmp_path, 4, environ={"KUBECONFIG": kubeconfig}) as krelay:
        for name in ("svc", "deploy", "job", "pod"):
            assert kit.http_get(krelay.address(name))
        # What only makes tunnels faster is not printed, and its lack is no failure.
        refused = [line for line in krelay.log if "cannot" in line]
        assert all("not by proxy: cannot get pods/proxy" in line for line in refused), krelay.told()


def test_two_contexts_in_one_file(namespace: Make, world: str, tmp_path: Path) -> None:
    """Two of one cluster, which krelay cannot know: an agent for each."""
    first, second = namespace(), namespace()
    mine = json.loads(kit.kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
    context = mine["contexts"][0]["context"]
    mine["contexts"] = [
        {"name": name, "context": {**context, "namespace": place}}
        for name, place in (("one", first), ("two", second))
    ]
    mine["current-context"] = "one"
    kubeconfig = write(tmp_path, yaml.safe_dump(mine), "kubeconfig")
    text = f"""
apiVersion: krelay/v1
targets:
  here: svc/web :80 -n {world}
  there: {{target: pod/solo, port: ":8000", namespace: {world}, context: two}}
"""
    with kit.up(text, tmp_path, 2, environ={"KUBECONFIG": kubeconfig}) as krelay:
        assert kit.http_get(krelay.address("here")).startswith(b"web-")
        assert kit.http_get(krelay.address("there")) == b"solo\n"
        assert len(kit.agents(first)) == len(kit.agents(second)) == 2
    kit.assert_no_agents(first, second)


def test_an_api_server_that_nobody_answers_for(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        kubeconfig = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "gone",
            "clusters": [{"name": "gone", "cluster": {"server": f"https://127.0.0.1:{port}"}}],
            "users": [{"name": "me", "user": {"token": "x"}}],
            "contexts": [{"name": "gone", "context": {"cluster": "gone", "user": "me"}}],
        }
        done = kit.run(
            "up",
            "-f",
            write(tmp_path, config("x")),
            environ={"KUBECONFIG": write(tmp_path, yaml.safe_dump(kubeconfig), "kubeconfig")},
        )
    assert done.process.returncode == 4, done.told()
    assert f"127.0.0.1:{port}" in "\n".join(done.log)


def test_targets_txt_on_standard_input(world: str) -> None:
    text = f"# comment\n-n {world} svc/web :80\n// another\n\n-n {world} -l ::1 pod/solo :8000\n"
    with kit.Krelay("up", "-f", "-", stdin=text) as krelay:
        krelay.wait_lines(2)
        # A target's name is its line here, spaces and all.
        found = re.findall(r": \[?([^\]\s]+?)\]?:(\d+) -> ", "\n".join(krelay.output))
        web, solo = [(host, int(port)) for host, port in found]
        assert kit.http_get(web).startswith(b"web-")
        assert solo[0] == "::1"
        assert kit.http_get(solo) == b"solo\n"


def test_only_the_named_targets_and_localhost_on_both_families(world: str, tmp_path: Path) -> None:
    text = config(
        world, "other: svc/nobody :80\n  both: {target: pod/solo, port: ':8000', listen: localhost}"
    )
    with kit.up(text, tmp_path, 1, "both") as krelay:
        krelay.wait_lines(2)
        assert {kit.http_get(krelay.address("both", index=i)) for i in (0, 1)} == {b"solo\n"}
        assert {krelay.address("both", index=i)[0] for i in (0, 1)} == {"127.0.0.1", "::1"}


@pytest.mark.parametrize("value", ["false", "true"])
def test_both_ways_into_the_cluster(world: str, tmp_path: Path, value: str) -> None:
    environ = {"KUBECTL_PORT_FORWARD_WEBSOCKETS": value}
    way = "auto" if value == "false" else "websocket"
    text = config(world, "solo: pod/solo :8000", f"tunnel: {{transport: {way}}}")
    with kit.up(text, tmp_path, 1, environ=environ) as krelay:
        assert kit.http_get(krelay.address("solo")) == b"solo\n"
