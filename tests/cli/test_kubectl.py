"""The command line of `kubectl relay`; tests/e2e has what it does."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import re
import socket
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from krelay.cli import kubectl as module
from krelay.cli import up
from krelay.cluster.auth.kubeconfig import Overrides
from krelay.config.diff import specs
from krelay.model import Config, Kind, Origin, Patch, Port, Protocol
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
    assert found.listen == ("0.0.0.0" if "--address" in line else "localhost")
    assert started.options["must_exist"]


def test_the_namespace_of_the_agent_is_an_option(started: Started, relay: Relay) -> None:
    assert relay("-n", "shop", "--agent-namespace=relays", "svc/web", "80") == 0
    config = started.config
    assert (config.agent.namespace, config.targets[0].namespace) == ("relays", "shop")
    assert config.origin == Origin(("svc/web", "80"), "shop", flags=True)


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


@pytest.mark.parametrize(
    ("options", "seconds"),
    [([], 300.0), (["--idle-timeout=15s"], 15.0), (["--idle-timeout", "1m30s"], 90.0)],
)
def test_an_idle_timeout_is_the_agent_s(
    options: list[str], seconds: float, started: Started, relay: Relay
) -> None:
    assert relay(*options, "svc/a", "1") == 0
    assert started.config.agent.idle_timeout == seconds


@pytest.mark.parametrize("text", ["0", "soon", "-1s"])
def test_an_idle_timeout_out_of_range_is_refused(text: str, relay: Relay) -> None:
    assert relay(f"--idle-timeout={text}", "svc/a", "1") == 2


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


@pytest.mark.parametrize(
    ("options", "addresses"),
    [
        ([], ["localhost"]),
        (["--address", "127.0.0.1"], ["127.0.0.1"]),
        (["-l", "127.0.0.2,fd00::1", "--address", "0.0.0.0"], ["127.0.0.2", "fd00::1", "0.0.0.0"]),
        (["--address", "127.0.0.2,localhost,127.0.0.1,::1"], ["127.0.0.2", "localhost"]),
    ],
)
def test_each_address_is_bound_once(
    options: list[str], addresses: list[str], started: Started, relay: Relay
) -> None:
    assert relay(*options, "svc/a", "1") == 0
    (target,) = started.config.targets
    assert target.listen.split(",") == addresses


def test_what_is_not_an_address_is_refused(started: Started, relay: Relay) -> None:
    assert relay("-l", "nowhere", "svc/a", "1") == 2


@pytest.mark.parametrize(
    ("options", "addresses"),
    [
        ([], ["localhost", "127.0.0.3"]),
        (["--address", "127.0.0.2"], ["127.0.0.2", "127.0.0.3"]),
    ],
)
def test_lines_of_a_file_listen_as_command_lines_do(
    options: list[str], addresses: list[str], started: Started, relay: Relay
) -> None:
    Path("targets.txt").write_text("svc/a 1\n-l 127.0.0.3 svc/b 2\n")
    assert relay(*options, "-f", "targets.txt") == 0
    assert [target.listen for target in started.config.targets] == addresses


def test_a_krelay_yaml_keeps_its_own_addresses(started: Started, relay: Relay) -> None:
    Path("krelay.yaml").write_text(
        "apiVersion: krelay/v1\ntargets:\n  a: svc/a 1\n  b: svc/b 2 -l localhost\n"
    )
    assert relay("-f", "krelay.yaml") == 0
    assert [target.listen for target in started.config.targets] == ["127.0.0.1", "localhost"]


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("svc/web 8080:80", ["svc/web:80"]),
        ("service/web :http -n x", ["svc/web:http"]),
        ("web 5000 6000", ["pod/web:5000", "pod/web:6000"]),
        ("svc/dns 53@tcp 53@udp", ["svc/dns:53/tcp", "svc/dns:53/udp"]),
        ("-l 127.0.0.2,127.0.0.3 svc/web 80", ["svc/web:80"]),
    ],
)
def test_a_forward_is_named_by_its_target_and_port(
    line: str, names: list[str], started: Started, relay: Relay
) -> None:
    assert relay(*line.split()) == 0
    assert [spec.name for spec in specs(started.config)] == names


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
            *("--client-key", "c.key", "--as-uid=7", "--as-user-extra", "k=v=w"),
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
    assert overrides.as_user_extra == (("k", "v=w"),)
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
        ["svc/a", "1", "--address="],
        ["svc/a", "1", "--as-user-extra=k"],
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


def test_the_time_for_a_pod_to_run_is_a_minute_for_a_target_alone(
    started: Started, relay: Relay
) -> None:
    times = []
    for args in (["a", "1"], ["a", "1", "--pod-running-timeout", "1h2m"], ["proxy"], ["-f", "-"]):
        assert relay(*args, stdin=b"svc/a 1\n") == 0
        times.append(started.options["pod_running_timeout"])
    assert times == [60.0, 3720.0, None, None]


@pytest.mark.parametrize("line", ["pod/a :1", "svc/a :1", "host/a :1", "svc/a :1 --via direct"])
def test_a_server_out_of_reach_ends_the_start(
    line: str, relay: Relay, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert relay(*line.split(), "-s", f"http://127.0.0.1:{port}", "--kubeconfig=/dev/null") == 4
    assert "connection refused" in capsys.readouterr().err


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
    [("0", logging.WARNING), ("1", logging.INFO), ("3", logging.INFO), ("4", logging.DEBUG)],
)
def test_the_log_level_follows_v(number: str, level: int, started: Started, relay: Relay) -> None:
    for flag in (["-v", number], [f"-v{number}"], [f"--v={number}"]):
        assert relay(*flag, "svc/a", "1") == 0
        assert logging.getLogger("krelay").level == level


def test_only_warnings_are_logged_without_v(started: Started, relay: Relay) -> None:
    assert relay("svc/a", "1") == 0
    assert logging.getLogger("krelay").level == logging.WARNING


def test_the_go_krelay_s_proxy_works(started: Started, relay: Relay) -> None:
    for args in ([], ["-l", "127.0.0.1:0"], ["--listen", "127.0.0.1:0"]):
        assert relay("proxy", *args, "--context", "c") == 0
    assert [config.targets[0].ports[0].local for config in started.configs] == [1080, 0, 0]
    assert {config.targets[0].kind for config in started.configs} == {Kind.PROXY}
    # A pod of that name has ports.
    started.configs.clear()
    assert relay("proxy", "8080") == 0
    assert str(started.config.targets[0]) == "pod/proxy"


WEB = ForwardState(
    "svc/web",
    0,
    "svc/web:http",
    "svc/web:http",
    State.READY,
    "",
    datetime.now(UTC),
    protocol="tcp",
    listen=("127.0.0.1:8080", "[::1]:8080"),
    endpoint="10.0.0.1:80",
)
LINE = "Forwarding from 127.0.0.1:8080 -> 80 protocol=tcp localAddr=127.0.0.1:8080 remotePort=80"


def announced(forward: ForwardState, capsys: pytest.CaptureFixture[str], **more: Any) -> list[str]:
    """The lines that a bound forward prints."""
    capsys.readouterr()
    module._announce(ForwardBound(forward, **more))
    return capsys.readouterr().out.splitlines()


def test_a_ready_forward_is_announced_as_kubectl_and_the_go_krelay_do(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "krelay")
    assert announced(WEB, capsys) == [LINE.replace(" protocol", " also=[::1]:8080 protocol")]
    only = dataclasses.replace(WEB, listen=("[::1]:8080",))
    assert announced(only, capsys) == [LINE.replace("127.0.0.1", "[::1]")]
    unresolved = dataclasses.replace(WEB, endpoint=None)
    assert announced(unresolved, capsys)[0].startswith("Forwarding from 127.0.0.1:8080 -> http ")
    service = announced(only, capsys, pod_port=8000)
    assert service[0] == LINE.replace("127.0.0.1", "[::1]").replace("-> 80", "-> 8000")
    several = dataclasses.replace(WEB, listen=("127.0.0.2:8080", *WEB.listen))
    assert announced(several, capsys) == [
        LINE.replace("127.0.0.1", "127.0.0.2"),
        LINE.replace(" protocol", " also=[::1]:8080 protocol"),
    ]
    proxy = announced(WEB, capsys, proxy=True)
    assert proxy == ["SOCKS5 server is running address=127.0.0.1:8080 also=[::1]:8080"]
    assert not caplog.messages


def first_word(text: str) -> str:
    return text.split()[0]


# How public programs, tests and scripts find the port: by a pattern, or by cutting the line.
PATTERNS = [
    r"Forwarding from 127.0.0.1:(\d+) -> 80",
    r"^Forwarding from .+?:(\d+) ->",
    r"Forwarding from [^:]+:(\d+)",
    r"Forwarding from \S+:(\d+)",
    r"\AForwarding from \d+\.\d+\.\d+\.\d+:(\d+) -> \d+",
    r"Forwarding from (?:127.0.0.1|\[::1\]):([0-9]+) -> 80",
    r"Forwarding from (?:127\.0\.0\.1|\[::1\]|[^ ]+):(\d+) ->",
    r"Forwarding from [^ ]*127\.0\.0\.1:(\d+)\s*->\s*80\b",
    r"(?i)^forwarding from .*:(\d+) ->",
    r"Forwarding.* protocol=tcp localAddr=127.0.0.1:(\d+) remotePort=80",
    r"localAddr=\S+:(\d+)",
    r"localAddr=127\.0\.0\.1:(\d+) remotePort=80$",
]
CUTS: list[Callable[[str], str]] = [
    lambda line: first_word(line.split(":")[1]),
    lambda line: first_word(line.split(":")[-1]),
    lambda line: line.split(" -> ", 1)[0].removeprefix("Forwarding from ").rpartition(":")[2],
    lambda line: line.split()[2].split(":")[1],
    lambda line: re.split(r"[ :]", line)[3],
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_waits_for_a_line_of_either_tool_finds_the_port(
    pattern: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = announced(WEB, capsys)
    found = re.search(pattern, line)
    assert found is not None
    assert found[1] == "8080"


@pytest.mark.parametrize("cut", CUTS)
def test_what_cuts_kubectl_s_line_finds_the_port(
    cut: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = announced(WEB, capsys)
    assert cut(line) == "8080"
    assert cut("Forwarding from 127.0.0.1:8080 -> 80") == "8080"


def test_the_go_krelay_s_fields_are_there_once_for_a_forward(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "\n".join(announced(WEB, capsys)).count("localAddr=") == 1


def test_a_reader_that_has_gone_silences_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(line: str) -> None:
        raise BrokenPipeError

    hushed: list[bool] = []
    monkeypatch.setattr(module, "echo", broken)
    monkeypatch.setattr(module, "silence_stdout", lambda: hushed.append(True))
    module._announce(ForwardBound(WEB))
    assert hushed == [True]
