"""`krelay doctor` on a real cluster: the good case, missing rights, and admission that refuses."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import kit
from tests.e2e.kit import Krelay
from tests.e2e.test_admission import enforce, limit_range, quota
from tests.e2e.test_rights import Account

Make = Callable[..., str]
Report = dict[str, list[dict[str, Any]]]


def report(*args: str, expect: int) -> Report:
    """Return the findings of a doctor that ends with this code, by check."""
    done = kit.run("doctor", "-o", "json", *args)
    assert done.process.returncode == expect, done.told()
    found: Report = {}
    for one in json.loads("\n".join(done.output))["findings"]:
        found.setdefault(one["check"], []).append(one)
    return found


def test_all_is_well_and_the_agent_is_gone_afterwards(
    world: str, namespace: Make, tmp_path: Path
) -> None:
    place = namespace()
    path = tmp_path / "krelay.yaml"
    path.write_text(
        f"apiVersion: krelay/v1\nnamespace: {place}\n"
        f"targets:\n  web: -n {world} svc/web :80\n  db: -n {world} sts/db :80\n"
    )
    found = report("-f", str(path), expect=0)
    late = found["server"].pop()  # a warning, if the machine is busy
    assert late["text"].startswith("reached: ")
    bad = [one for findings in found.values() for one in findings if one["status"] != "ok"]
    assert bad == []
    assert found["admission"][0]["details"]["pod"] is True
    for carrier in ("spdy", "websocket", "proxy"):
        assert found[carrier][0]["details"]["bytes_per_second"] > 0
    assert found["tunnels"][0]["text"] == "start by spdy, and move to proxy"
    kit.assert_no_agents(place)


def test_missing_rights_are_given_by_the_command_that_the_doctor_names(
    world: str, namespace: Make, tmp_path: Path
) -> None:
    home = namespace()
    account = Account(home, home, tmp_path / "kubeconfig")
    path = tmp_path / "krelay.yaml"
    text = f"apiVersion: krelay/v1\ntargets:\n  web: -n {world} svc/web :80\n  x: host/a.test :80\n"
    path.write_text(text)
    args = ("-f", str(path), "--kubeconfig", str(account.path), "--quick")
    found = report(*args, expect=4)
    assert found["user"][0]["text"] == f"system:serviceaccount:{home}:dev"
    (missing,) = found["rights"]
    assert f'create,delete jobs.batch in "{home}"' in missing["text"]
    words = shlex.split(missing["command"])
    assert words[0] == "krelay"
    assert words[words.index("|") :] == ["|", "kubectl", "apply", "-f", "-"]
    roles = kit.run(*words[1 : words.index("|")])
    kit.kubectl("apply", "-f", "-", stdin="\n".join(roles.output))
    # The API server applies them a moment later.
    kit.eventually(lambda: kit.run("doctor", *args).process.returncode == 0, "the new rights")
    found = report(*args, expect=0)
    assert found["rights"][0]["text"].startswith("all ")
    assert "its pod was not tried" in found["admission"][0]["text"]


@pytest.mark.parametrize(
    ("objects", "text", "mends"),
    [
        ([quota(pods="0")], "exceeded quota: small", False),
        ([limit_range(max={"cpu": "500m"})], "maximum cpu usage per Container is 500m", True),
    ],
)
def test_admission_that_would_refuse_the_agent_is_found_by_a_dry_run(
    namespace: Make, objects: list[Any], text: str, mends: bool
) -> None:
    place = namespace()
    enforce(place, *objects)
    found = report("-n", place, expect=4)
    (one,) = found["admission"]
    assert text in one["text"]
    assert ("in the file, agent: " in one["hint"]) is mends
    assert found["agent"][0]["status"] == "skipped"
    kit.assert_no_agents(place)


def test_pod_security_passes_the_agent_and_refuses_a_patched_one(
    namespace: Make, tmp_path: Path
) -> None:
    place = namespace(**{"pod-security.kubernetes.io/enforce": "restricted"})
    path = tmp_path / "krelay.yaml"
    text = f"apiVersion: krelay/v1\nnamespace: {place}\ntargets: {{a: host/a.test :80}}\n"
    path.write_text(text)
    assert report("-f", str(path), "--quick", expect=0)["admission"][0]["status"] == "ok"
    path.write_text(f"{text}agent: {{patches: [{{patch: {{spec: {{hostNetwork: true}}}}}}]}}\n")
    (one,) = report("-f", str(path), "--quick", expect=4)["admission"]
    assert "violates PodSecurity" in one["text"]


def test_an_interrupted_doctor_leaves_no_agent(namespace: Make, tmp_path: Path) -> None:
    """Its agent never listens: the doctor tries each carrier for seconds."""
    place = namespace()
    idle = "{name: krelay-server, command: [sh, -c, sleep 600]}"
    path = tmp_path / "krelay.yaml"
    path.write_text(
        f"apiVersion: krelay/v1\nnamespace: {place}\ntargets: {{a: host/a.test :80}}\n"
        f"agent: {{patches: [{{patch: {{spec: {{containers: [{idle}]}}}}}}]}}\n"
    )
    with Krelay("doctor", "-f", str(path), expect=130) as krelay:
        started = "ok       agent "
        krelay.wait(
            lambda: any(line.startswith(started) for line in krelay.output), "an agent", 60.0
        )
        assert kit.agents(place)
        krelay.process.send_signal(signal.SIGTERM)
        krelay.finish()
    kit.assert_no_agents(place)
