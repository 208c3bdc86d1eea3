"""ServiceAccounts with few rights: where their agent goes, and what the hint gives them."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e import kit
from tests.e2e.kit import Krelay
from tests.e2e.test_relay import PATH, kubectl_relay

Make = Callable[..., str]
ALL_BUT_FORWARDS = "jobs.batch,pods,services,endpointslices.discovery.k8s.io"
LISTENING = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) -> ")


class Account:
    """A ServiceAccount of `home` with a kubeconfig, whose context has the namespace `own`."""

    def __init__(self, home: str, own: str, path: Path) -> None:
        self.home, self.path = home, path
        self.user = kit.service_account(home, "dev")
        kit.kubectl("-n", home, "create", "serviceaccount", "dev")
        token = kit.kubectl("-n", home, "create", "token", "dev").strip()
        admin = json.loads(kit.kubectl("config", "view", "--raw", "--minify", "-o", "json"))
        admin["users"] = [{"name": "dev", "user": {"token": token}}]
        admin["contexts"][0]["context"] |= {"user": "dev", "namespace": own}
        path.write_text(json.dumps(admin))

    def allow(self, namespace: str, *words: str) -> None:
        """Give the account the rights of `krelay rbac WORDS` in a namespace."""
        account = ("--serviceaccount", f"{self.home}:dev")
        done = kit.run("rbac", *words, "-n", namespace, *account)
        assert done.process.returncode == 0, done.told()
        kit.kubectl("apply", "-f", "-", stdin="\n".join(done.output))
        kit.wait_granted(self.user)

    def kubectl_relay(self, *args: str, expect: int | None = 0) -> Krelay:
        return kubectl_relay("--kubeconfig", str(self.path), *args, expect=expect)


def page(krelay: Krelay) -> bytes:
    """What comes through the first forward of `kubectl relay`."""
    krelay.wait_lines(1)
    found = LISTENING.match(krelay.output[0])
    assert found, krelay.told()
    return kit.http_get(("127.0.0.1", int(found[1])))


def jobs(namespace: str) -> set[str]:
    """The names of the agents' Jobs."""
    items = kit.get(namespace, "jobs", "-l", "app=krelay-server")["items"]
    return {item["metadata"]["name"] for item in items}


def moved(krelay: Krelay) -> list[str]:
    return [line for line in krelay.log if "the agent runs in the namespace" in line]


def test_rights_in_the_targets_namespace_alone_are_enough(
    namespace: Make, world: str, tmp_path: Path
) -> None:
    account = Account(namespace(), namespace(), tmp_path / "kubeconfig")
    account.allow(world, "svc/web", "80")
    with account.kubectl_relay("-n", world, "svc/web", ":80") as krelay:
        assert page(krelay)
        (line,) = moved(krelay)
        assert f'in the namespace "{world}": cannot create jobs.batch in namespace "' in line
        # It stays there when it has to start again, and says nothing more of it.
        first = jobs(world)
        kit.kubectl("-n", world, "delete", "job", *first, "--wait=false")
        krelay.wait_log("another one is being started")
        assert page(krelay)
        assert jobs(world) - first
        assert len(moved(krelay)) == 1


@pytest.mark.parametrize("own", ["forbidden", "missing"])
def test_krelay_up_takes_the_first_namespace_that_permits(
    own: str, namespace: Make, world: str, tmp_path: Path
) -> None:
    home, other = namespace(), namespace()
    place = namespace() if own == "forbidden" else "e2e-nowhere"
    account = Account(home, place, tmp_path / "kubeconfig")
    if own == "missing":
        # An administrator's answer is a 404, and not a 403.
        admin = json.loads(kit.kubectl("config", "view", "--raw", "--minify", "-o", "json"))
        admin["contexts"][0]["context"]["namespace"] = place
        account.path.write_text(json.dumps(admin))
    else:
        account.allow(world, "svc/web", "80")
    config = f"""
apiVersion: krelay/v1
targets:
  web: svc/web :80 -n {world}
  any: svc/web :80 -n {other}
"""
    with kit.up(config, tmp_path, 1, environ={"KUBECONFIG": str(account.path)}) as krelay:
        assert kit.http_get(krelay.address("web"))
        (line,) = moved(krelay)
        assert f'in the namespace "{world}"' in line
        assert ("not found" if own == "missing" else "cannot create jobs.batch") in line


def test_a_chosen_namespace_decides_without_a_fallback(
    namespace: Make, world: str, tmp_path: Path
) -> None:
    place = namespace()
    account = Account(namespace(), place, tmp_path / "kubeconfig")
    account.allow(world, "svc/web", "80")
    words = ("-n", world, "--via", "agent", "svc/web", ":80")
    krelay = account.kubectl_relay(*words, "--agent-namespace", place)
    assert krelay.finish() == 4, krelay.told()
    assert any(f'cannot create jobs.batch in namespace "{place}"' in line for line in krelay.log)
    with account.kubectl_relay(*words, "--agent-namespace", world) as krelay:
        assert page(krelay)
        assert not moved(krelay)
    path = tmp_path / "krelay.yaml"
    path.write_text(
        f"apiVersion: krelay/v1\nvia: agent\nagent: {{namespace: {place}}}\n"
        f"targets: {{web: svc/web :80 -n {world}}}\n"
    )
    refused = kit.run("up", "-f", str(path), environ={"KUBECONFIG": str(account.path)})
    assert refused.process.returncode == 4, refused.told()
    assert any(f'"{place}"' in line for line in refused.log)


def follow_hint(krelay: Krelay, account: Account) -> None:
    """Do what the hint says, as an administrator."""
    krelay.finish()
    command = next(line.partition(" with: ")[2] for line in krelay.log if " with: " in line)
    assert command.endswith(" | kubectl apply -f -"), krelay.told()
    subprocess.run(
        ["bash", "-ec", f"set -o pipefail; {command}"],
        check=True,
        env={**os.environ, "PATH": PATH},
        timeout=60,
    )
    kit.wait_granted(account.user)


@pytest.mark.parametrize(
    ("target", "port"), [("svc/web", ":80"), ("sts/db", ":8000"), ("pod/solo", ":8000")]
)
def test_one_command_of_the_hint_gives_every_right(
    target: str, port: str, namespace: Make, world: str, tmp_path: Path
) -> None:
    account = Account(namespace(), namespace(), tmp_path / "kubeconfig")
    words = ["-n", world, target, port]
    if target == "sts/db":
        words += ["--agent-namespace", account.home]
    follow_hint(account.kubectl_relay(*words), account)
    # Rights for something else take none away.
    account.allow(world, "deploy/web", "80")
    with account.kubectl_relay(*words) as krelay:
        assert page(krelay)


@pytest.mark.parametrize("via", ["agent", "direct", "auto"])
def test_the_hint_for_a_missing_port_forward_gives_every_right(
    via: str, namespace: Make, world: str, tmp_path: Path
) -> None:
    """The right is missing where the agent runs, or where the pods are."""
    own = namespace()
    account = Account(namespace(), own, tmp_path / "kubeconfig")
    for place in (own, world):
        subject = f"--serviceaccount={account.home}:dev"
        some = ("--verb=create,delete,list,watch", f"--resource={ALL_BUT_FORWARDS}")
        kit.kubectl("-n", place, "create", "role", own, *some)
        kit.kubectl("-n", place, "create", "rolebinding", own, f"--role={own}", subject)
    kit.wait_granted(account.user)
    words = ("-n", world, "--via", via, "svc/web", ":80")
    krelay = account.kubectl_relay(*words)
    if via == "direct":
        krelay.wait_log(" with: ")
        krelay.process.terminate()
    follow_hint(krelay, account)
    assert sum("pods/portforward" in line for line in krelay.log) == 1, krelay.told()
    with account.kubectl_relay(*words) as krelay:
        assert page(krelay)
        assert not moved(krelay)


def test_the_hint_for_a_file_gives_every_right(namespace: Make, world: str, tmp_path: Path) -> None:
    account = Account(namespace(), namespace(), tmp_path / "kubeconfig")
    path = tmp_path / "krelay.yaml"
    path.write_text(
        f"""
apiVersion: krelay/v1
targets:
  web: svc/web :80 -n {world}
  db: sts/db :8000 -n {world}
"""
    )
    environ = {"KUBECONFIG": str(account.path)}
    follow_hint(kit.run("up", "-f", str(path), environ=environ), account)
    with Krelay("up", "-f", str(path), environ=environ) as krelay:
        krelay.wait_lines(2)
        assert kit.http_get(krelay.address("web"))
        assert kit.http_get(krelay.address("db"))


def test_two_users_keep_their_bindings(namespace: Make, world: str, tmp_path: Path) -> None:
    place = namespace()
    for name in ("jane", "joe"):
        done = kit.run("rbac", "svc/web", "80", "-n", place, "--user", name)
        kit.kubectl("apply", "-f", "-", stdin="\n".join(done.output))
    bindings = kit.get(place, "rolebindings", "-l", "app.kubernetes.io/managed-by=krelay")["items"]
    assert {b["subjects"][0]["name"] for b in bindings} == {"jane", "joe"}
    for name in ("jane", "joe"):
        kit.wait_granted(name)
        can = kit.kubectl("auth", "can-i", "create", "jobs", "-n", place, "--as", name)
        assert can.strip() == "yes"


def test_the_hint_of_init_gives_every_right(namespace: Make, world: str, tmp_path: Path) -> None:
    account = Account(namespace(), namespace(), tmp_path / "kubeconfig")
    environ = {"KUBECONFIG": str(account.path)}
    words = ("init", "-f", str(tmp_path / "krelay.yaml"), "--from-namespace", world)
    refused = kit.run(*words, environ=environ)
    hint = next(line for line in refused.log if " with: " in line)
    kit.kubectl(*shlex.split(hint.partition(" with: kubectl ")[2]))
    # The API server applies them a moment later.
    kit.eventually(
        lambda: kit.run(*words, environ=environ).process.returncode == 0, "the new rights"
    )
