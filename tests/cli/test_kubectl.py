"""The command line of `kubectl relay`; tests/e2e has what it does."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from krelay.cli import kubectl as module
from krelay.cli import up
from krelay.cluster.auth.kubeconfig import Overrides
from krelay.model import Config, Kind, Patch, Port, Protocol
from krelay.state.events import ForwardBound
from krelay.state.states import ForwardState, State

Relay = Callable[..., int]


class Started:
    """The arguments of a run."""

    def __init__(self) -> None:
        self.configs: list[Config] = []
        self.options: dict[str, Any] = {}

    def run(self, source: Any, **options: Any) -> int:
        self.configs.append(source.load())
        self.options = options
        return 0

    @property
    def config(self) -> Config:
        (config,) = self.configs
        return config


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    made = Started()
    monkeypatch.setattr(up, "run", made.run)
    return made


@pytest.fixture
def relay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Relay:
    monkeypatch.chdir(tmp_path)

    def run(*args: str, stdin: bytes = b"") -> int:
        monkeypatch.setattr(sys, "argv", ["kubectl-relay", *args])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        return module.main()

    return run


# The usage of the Go krelay's README, a line each.
README = [
    ("service/my-service 8080:http", None, "svc/my-service", (Port("http", 8080),)),
    (
        "-n kube-system deploy/kube-dns :53@udp",
        "kube-system",
        "deploy/kube-dns",
        (Port(53, 0, Protocol.UDP),),
    ),
    ("--address 0.0.0.0 pod/my-pod 5353:53", None, "pod/my-pod", (Port(53, 5353),)),
    (
        "host/redis.cn-north-1.cache.amazonaws.com 6379",
        None,
        "host/redis.cn-north-1.cache.amazonaws.com",
        (Port(6379, 6379),),
    ),
    (
        "ip/1.2.3.4 5000@tcp 6000@udp",
        None,
        "ip/1.2.3.4",
        (Port(5000, 5000, Protocol.TCP), Port(6000, 6000, Protocol.UDP)),
    ),
    # kubectl port-forward's
    ("pod/mypod 5000 6000", None, "pod/mypod", (Port(5000, 5000), Port(6000, 6000))),
    ("mypod :5000", None, "pod/mypod", (Port(5000, 0),)),
    ("deployment/mydeployment 5000 -n x", "x", "deploy/mydeployment", (Port(5000, 5000),)),
    ("--pod-running-timeout=1m0s service/a 8443:https", None, "svc/a", (Port("https", 8443),)),
]


@pytest.mark.parametrize(("line", "namespace", "target", "ports"), README)
def test_the_usage_of_the_go_krelay_and_of_kubectl_works(
    line: str,
    namespace: str | None,
    target: str,
    ports: tuple[Port, ...],
    started: Started,
    relay: Relay,
) -> None:
    assert relay(*line.split()) == 0
    (found,) = started.config.targets
    assert (str(found), found.ports, found.namespace) == (target, ports, namespace)
    assert found.listen == ("0.0.0.0" if "--address" in line else "127.0.0.1")
    assert started.options["must_exist"]


def test_the_go_krelay_s_patch_is_accepted(started: Started, relay: Relay) -> None:
    patch = '{"metadata":{"namespace":"kube-public"},"spec":{"nodeSelector":{"k": "v"}}}'
    assert relay("--patch", patch, "ip/1.2.3.4", "5000") == 0
    assert started.config.agent.patches == (Patch(json.loads(patch)),)


def test_patches_of_every_type_are_accepted(started: Started, relay: Relay) -> None:
    Path("patch.yaml").write_text(
        "metadata:\n  generateName: foo-\nspec:\n  nodeSelector: {key: $$value}\n"
    )
    assert relay("--patch-file", "patch.yaml", "-p", '[{"op":"remove","path":"/a"}]', "a", "1") == 0
    file, line = started.config.agent.patches
    assert file == Patch(
        {"metadata": {"generateName": "foo-"}, "spec": {"nodeSelector": {"key": "$value"}}}
    )
    assert line == Patch(({"op": "remove", "path": "/a"},), type="json")
    started.configs.clear()
    assert relay("-p", "spec: {a: 1}", "--patch-type", "merge", "a", "1") == 0
    assert started.config.agent.patches == (Patch({"spec": {"a": 1}}, type="merge"),)


def test_an_invalid_patch_is_refused(
    started: Started, relay: Relay, capsys: pytest.CaptureFixture[str]
) -> None:
    for args in (
        ["-p", "{"],
        ["-p", "text"],
        ["--patch-file", "missing"],
        ["-p", "[]", "--patch-type", "merge"],
    ):
        assert relay(*args, "a", "1") == 2
    assert "--patch:2:1: " in capsys.readouterr().err
    assert not started.configs


def test_several_addresses_are_bound_once_each(started: Started, relay: Relay) -> None:
    assert relay("-l", "127.0.0.2,::1", "--address", "localhost", "svc/a", "1") == 0
    assert [target.listen for target in started.config.targets] == [
        "127.0.0.2",
        "::1",
        "localhost",
    ]
    assert relay("-l", "nowhere", "svc/a", "1") == 2


def test_targets_come_from_a_file_or_standard_input(started: Started, relay: Relay) -> None:
    text = (
        "# a comment\n-n kube-system svc/kube-dns 10053:53@udp\nsvc/nginx 8080:80\n"
        "host/redis.test 6379\n-l 192.0.2.1 ip/1.2.3.4 5000\n"
    )
    Path("targets.txt").write_text(text)
    assert relay("-n", "n", "-f", "targets.txt") == 0
    assert relay("-f", "-", stdin=text.encode()) == 0
    one, two = started.configs
    assert [target.namespace for target in one.targets] == ["kube-system", "n", "n", "n"]
    assert [target.namespace for target in two.targets] == ["kube-system", None, None, None]
    assert [target.listen for target in two.targets][-1] == "192.0.2.1"


def test_kubectl_s_connection_options_are_passed_on(started: Started, relay: Relay) -> None:
    assert (
        relay(
            *("--kubeconfig", "k", "--context", "c", "--cluster", "cl", "--user", "u"),
            *("--server", "https://x", "--token", "t", "--as", "a", "--as-group", "g"),
            *("--as-group", "h", "--certificate-authority", "ca.crt", "--tls-server-name", "s"),
            *("--insecure-skip-tls-verify", "--request-timeout", "5s", "svc/a", "1"),
            *("--username", "n", "--password=p", "--client-certificate=c.crt"),
            *("--client-key", "c.key", "--as-uid=7"),
        )
        == 0
    )
    options = started.options["contexts"]._options
    assert options["kubeconfig"] == "k"
    overrides = options["overrides"]
    assert (overrides.cluster, overrides.user, overrides.server) == ("cl", "u", "https://x")
    assert (overrides.token, overrides.as_, overrides.as_group) == ("t", "a", ("g", "h"))
    assert overrides.certificate_authority == "ca.crt"
    assert (overrides.tls_server_name, overrides.insecure_skip_tls_verify) == ("s", True)
    assert (overrides.username, overrides.password, overrides.as_uid) == ("n", "p", "7")
    assert (overrides.client_certificate, overrides.client_key) == ("c.crt", "c.key")
    assert overrides.request_timeout == 5.0
    assert started.config.context == "c"


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["svc/a"],
        ["-f", "x", "svc/a", "1"],
        ["svc/a", "1", "--bogus"],
        ["--request-timeout", "soon", "svc/a", "1"],
        ["svc/a", "80:80:80"],
        ["svc/a", "1", "-n"],
        ["svc/a", "1", "-x"],
        ["svc/a", "1", "-v=x"],
        ["svc/a", "1", "--insecure=maybe"],
        ["svc/a", "1", "--pod-running-timeout=soon"],
        ["svc/a", "1", "--pod-running-timeout=0"],
        ["svc/a", "1", "--pod-running-timeout="],
    ],
)
def test_a_wrong_command_line_exits_with_2(
    args: list[str], started: Started, relay: Relay, capsys: pytest.CaptureFixture[str]
) -> None:
    assert relay(*args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err
    assert not started.configs


@pytest.mark.parametrize(
    "flag",
    [
        *("--cache-dir=/x", "--kuberc=/x", "--log-flush-frequency=1s", "--profile=cpu"),
        *("--profile-output=x", "--vmodule=a=1", "--disable-compression"),
        *("--match-server-version=false", "--warnings-as-errors", "--log_dir=/x"),
        *("--alsologtostderr=true", "--stderrthreshold=2", "--pod-running-timeout=1m0s"),
        *("--insecure-skip-tls-verify=false", "--namespace=", "--kubeconfig=", "--context="),
        *("--file=", "--patch=", "--patch-file=", "--request-timeout=", "--as="),
    ],
)
def test_a_flag_without_a_meaning_for_krelay_changes_nothing(
    flag: str, started: Started, relay: Relay, capsys: pytest.CaptureFixture[str]
) -> None:
    assert relay("svc/a", "1") == 0
    assert relay("svc/a", "1", flag) == 0
    plain, flagged = started.configs
    assert plain == flagged
    assert started.options["contexts"]._options["kubeconfig"] is None
    assert started.options["contexts"]._options["overrides"] == Overrides()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("flag", "hint"),
    [
        ("--server.namespace=tools", "--server.namespace is called --agent-namespace now"),
        ("--server-image=tools", "--server-image is called --server.image now"),
        ("--rm", "--rm has no effect: krelay always removes its agent"),
    ],
)
def test_a_flag_of_an_older_go_krelay_is_understood_with_a_hint(
    flag: str, hint: str, started: Started, relay: Relay, capsys: pytest.CaptureFixture[str]
) -> None:
    assert relay("svc/a", "1", flag) == 0
    assert hint in capsys.readouterr().err
    agent = started.config.agent
    expected = {
        "--server.namespace=tools": agent.namespace,
        "--server-image=tools": agent.image,
    }.get(flag, "tools")
    assert expected == "tools"


def test_the_agents_namespace_can_be_chosen(started: Started, relay: Relay) -> None:
    assert relay("-n", "shop", "svc/a", "1", "--agent-namespace", "tools") == 0
    assert started.config.agent.namespace == "tools"
    assert started.config.targets[0].namespace == "shop"


def test_the_version_is_json_like_the_go_krelay_s(
    relay: Relay, capsys: pytest.CaptureFixture[str]
) -> None:
    for flag in ("-V", "--version"):
        assert relay(flag) == 0
        assert json.loads(capsys.readouterr().out)["Version"].startswith("v")
    assert relay("--help") == 0
    assert "kubectl relay service/my-service 8080:http" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("number", "level"),
    [("0", logging.ERROR), ("2", logging.WARNING), ("3", logging.INFO), ("4", logging.DEBUG)],
)
def test_the_log_level_follows_v(number: str, level: int, started: Started, relay: Relay) -> None:
    for flag in (["-v", number], [f"-v{number}"], [f"--v={number}"]):
        assert relay(*flag, "svc/a", "1") == 0
        assert logging.getLogger("krelay").level == level


def test_the_go_krelay_s_proxy_works(started: Started, relay: Relay) -> None:
    for args in ([], ["-l", "127.0.0.1:0"], ["--listen", "127.0.0.1:0"]):
        assert relay("proxy", *args, "--context", "c") == 0
    assert [config.targets[0].ports[0].local for config in started.configs] == [1080, 0, 0]
    assert {config.targets[0].kind for config in started.configs} == {Kind.PROXY}
    # A pod of that name has ports.
    started.configs.clear()
    assert relay("proxy", "8080") == 0
    assert str(started.config.targets[0]) == "pod/proxy"


def test_a_ready_forward_is_announced_as_kubectl_and_the_go_krelay_do(
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO", "krelay")
    forward = ForwardState(
        "web",
        0,
        "web",
        "svc/web:http",
        State.READY,
        "",
        datetime.now(UTC),
        protocol="tcp",
        listen=("127.0.0.1:8080", "[::1]:8080"),
        endpoint="10.0.0.1:80",
    )
    module._announce(ForwardBound(forward))
    assert capsys.readouterr().out == (
        "Forwarding from 127.0.0.1:8080 -> 80\nForwarding from [::1]:8080 -> 80\n"
    )
    assert caplog.messages[0] == "Forwarding protocol=tcp localAddr=127.0.0.1:8080 remotePort=80"
    module._announce(ForwardBound(forward, proxy=True))
    assert capsys.readouterr().out.startswith("SOCKS5 server is running address=127.0.0.1:8080\n")
    module._announce(ForwardBound(dataclasses.replace(forward, endpoint=None)))
    assert "-> http\n" in capsys.readouterr().out

    def broken(line: str) -> None:
        raise BrokenPipeError

    hushed: list[bool] = []
    monkeypatch.setattr(module, "echo", broken)
    monkeypatch.setattr(module, "silence_stdout", lambda: hushed.append(True))
    module._announce(ForwardBound(forward))
    assert hushed == [True]
