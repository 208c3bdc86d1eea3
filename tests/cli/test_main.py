"""The command line: its output and exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from krelay import __version__, config
from krelay.cli.commands import files
from krelay.cli.flags import compose
from krelay.cli.kubectl import relay
from krelay.cli.main import GROUPS, cli
from krelay.errors import (
    AccessDeniedError,
    AgentError,
    KrelayError,
    ListenError,
    NotReadyError,
    TunnelError,
    UsageError,
)

ROOT = Path(__file__).parents[2]
GOOD = "apiVersion: krelay/v1\ntargets:\n  web: svc/web 8080:80\n"
BAD = (
    "apiVersion: krelay/v1\ntargets:\n  web: svc/web 99999\n  db: {target: svc/db, prt: 5432}\n"
    "  x: host/a 80\n  y: host/b 80\n"
)

Krelay = Callable[..., int]


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("command", [[], ["up"], ["check"], ["schema"]])
def test_help_goes_to_stdout_and_exits_with_0(
    command: list[str], option: str, krelay: Krelay, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krelay(*command, option) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Usage: krelay")
    assert err == ""


@pytest.mark.parametrize("path", ["", *sorted(cli.commands), "kubectl relay"])
def test_help_is_whole_at_80_columns(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    command = relay if path == "kubectl relay" else cli.commands.get(path, cli)
    context = click.Context(command, info_name=f"krelay {path}".strip())
    usage, *lines = command.get_help(context).splitlines()
    assert usage.startswith("Usage: krelay")
    assert [line for line in lines if len(line) > 80] == []
    assert [line for line in lines if line.endswith(("...", "…")) and "[" not in line] == []


def test_help_lists_every_command_under_its_task(
    krelay: Krelay, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert krelay("--help") == 0
    lines = capsys.readouterr().out.splitlines()
    listed: dict[str, list[str]] = {}
    for line in lines:
        if re.fullmatch(r"[A-Z][a-z ]+:", line):
            title = line.rstrip(":")
        elif match := re.match(r"  ([a-z]+) ", line):
            listed.setdefault(title, []).append(match[1])
    found = {title: listed[title] for title in GROUPS}
    assert found == {title: [command.name for command in each] for title, each in GROUPS.items()}
    shown = {name for names in found.values() for name in names}
    assert shown == {name for name, command in cli.commands.items() if not command.hidden}
    assert " ".join(lines[-2:]).strip().startswith("Begin with `krelay init`")


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version_is_printed(
    option: str, krelay: Krelay, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krelay(option) == 0
    assert capsys.readouterr().out == f"krelay {__version__}\n"


@pytest.mark.parametrize(
    "args", [[], ["bogus"], ["up", "--bogus"], ["check", "a", "b"], ["up", "-f"]]
)
def test_a_wrong_command_line_exits_with_2_and_prints_to_stderr(
    args: list[str], krelay: Krelay, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krelay(*args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert ("Usage: krelay" in err) or err == "Error: Option '-f' requires an argument.\n"


def test_proxy_takes_its_credentials_from_options_and_variables(
    krelay: Krelay, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from krelay.cli import up

    sources: list[Any] = []

    def ran(source: Any, *, contexts: Any) -> int:
        sources.append(source)
        return 0

    monkeypatch.setattr(up, "run", ran)
    assert krelay("proxy") == 0
    monkeypatch.setenv("KRELAY_PROXY_PASSWORD", "pw")
    assert krelay("proxy", "-l", "127.0.0.1:0", "--username", "me", "--embedded") == 0
    assert [(s.listen, s.credentials, s.embedded) for s in sources] == [
        ("127.0.0.1:1080", None, False),
        ("127.0.0.1:0", ("me", "pw"), True),
    ]
    monkeypatch.delenv("KRELAY_PROXY_PASSWORD")
    assert krelay("proxy", "-l", "0.0.0.0:0", "--insecure") == 0
    assert sources[-1].load().targets[0].insecure
    assert krelay("proxy", "-l", "0.0.0.0:0") == 0
    with pytest.raises(UsageError, match="is open to other machines"):
        sources[-1].load()
    monkeypatch.setenv("KRELAY_PROXY_PASSWORD", "pw")
    assert krelay("proxy") == 2
    assert "a username needs a password" in capsys.readouterr().err


# -- commands with options of their own -------------------------------------------------------


def test_run_takes_another_command_line_after_two_dashes(
    krelay: Krelay, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from krelay.cli import run

    asked: list[Any] = []

    def note(source: Any, command: Any, *, timeout: float, contexts: Any) -> int:
        asked.append((source.path, source.names, source.embedded, command, timeout))
        return 5

    monkeypatch.setattr(run, "run", note)
    assert krelay("run", "-f", "a.yaml", "web", "--", "make", "-f", "b", "--", "x") == 5
    assert krelay("run", "--embedded", "--timeout", "1m30s", "--", "true") == 5
    assert asked == [
        ("a.yaml", ("web",), False, ("make", "-f", "b", "--", "x"), 60.0),
        (None, (), True, ("true",), 90.0),
    ]
    for args in (["run"], ["run", "true"], ["run", "web", "--"]):
        assert krelay(*args) == 2
        assert "hint: write it after `--`" in capsys.readouterr().err
    assert krelay("run", "--help") == 0
    assert "Usage: krelay run [OPTIONS] [NAME]... -- CMD [ARG]..." in capsys.readouterr().out


@pytest.mark.parametrize("command", ["status", "wait", "logs", "restart", "down"])
def test_client_commands_require_the_file_of_a_running_krelay(
    command: str, krelay: Krelay, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krelay(command, "-f", "-") == 2
    assert "`-f` names the file that krelay runs" in capsys.readouterr().err
    assert krelay(command) == 2
    err = capsys.readouterr().err
    assert "no krelay.yaml in this directory\n  hint: `krelay ps` lists " in err
    Path("krelay.yaml").write_text(GOOD)
    if command != "wait":
        assert krelay(command) == 1
        assert "krelay is not running for krelay.yaml" in capsys.readouterr().err
    else:
        assert krelay(command, "--timeout", "0") == 3
        assert krelay(command, "nope", "--timeout", "60s") == 2
        capsys.readouterr()


def test_port_and_ps_take_an_output_format(
    krelay: Krelay, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("krelay.yaml").write_text(GOOD)
    assert krelay("port", "web", "80", "-o", "json") == 1
    assert "krelay is not running for krelay.yaml" in capsys.readouterr().err
    assert krelay("port") == 2
    assert krelay("ps", "--output", "json") == 0
    assert isinstance(json.loads(capsys.readouterr().out), list)


def test_up_detached_starts_another_process(
    krelay: Krelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    from krelay.cli.background import start

    asked: list[Any] = []

    def note(selection: Any, arguments: Any, *, timeout: float) -> int:
        asked.append((selection.path, selection.names, arguments, timeout))
        return 3

    monkeypatch.setattr(start, "start", note)
    line = ["up", "-d", "-f", "a.yaml", "web", "--timeout", "1m"]
    assert krelay(*line) == 3
    assert asked == [("a.yaml", ("web",), line, 60.0)]


def test_a_timeout_without_a_process_in_the_background_is_refused(
    krelay: Krelay, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krelay("up", "--timeout", "1m") == 2
    assert capsys.readouterr().err.startswith("error: `--timeout` is for `-d`\n  hint: ")


@pytest.mark.parametrize("text", ["-1s", "soon", "1", "2d"])
def test_a_timeout_is_a_duration(
    text: str, krelay: Krelay, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("krelay.yaml").write_text(GOOD)
    if text == "1":
        assert krelay("wait", "--timeout", "0.05") == 3
    else:
        assert krelay("wait", "--timeout", text) == 2
        assert "--timeout" in capsys.readouterr().err


def test_errors_follow_the_log_format(
    krelay: Krelay, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("krelay.yaml").write_text("nonsense")
    assert krelay("up", "--log-format", "json") == 2
    assert json.loads(capsys.readouterr().err)["level"] == "error"
    monkeypatch.setenv("KRELAY_LOG_FORMAT", "json")
    for command in (["up"], ["run", "--", "true"]):
        assert krelay(*command) == 2
        assert json.loads(capsys.readouterr().err)["message"].endswith("krelay.yaml: 1 problem")
    monkeypatch.setenv("KRELAY_LOG_FORMAT", "xml")
    assert krelay("up") == 2
    assert "'xml' is not one of" in capsys.readouterr().err


# -- check -------------------------------------------------------------------------------------


def test_check_confirms_a_valid_file(krelay: Krelay, capsys: pytest.CaptureFixture[str]) -> None:
    Path("krelay.yaml").write_text(GOOD)
    Path("other.yaml").write_text(GOOD + "  api: svc/api 9090\n")
    Path("targets.txt").write_text("# mine\nsvc/web 8080:80\n")
    for args in ([], ["-f", "other.yaml"], ["other.yaml"], ["targets.txt"]):
        assert krelay("check", *args) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "krelay.yaml: ok, 1 target",
        "other.yaml: ok, 2 targets",
        "other.yaml: ok, 2 targets",
        "targets.txt: ok, 1 target",
    ]
    assert err == ""


@pytest.mark.parametrize("args", [["check", "-f", "-"], ["check", "-"]])
def test_check_reads_standard_input(
    args: list[str], krelay: Krelay, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krelay(*args, stdin=GOOD.encode()) == 0
    assert capsys.readouterr().out == "<stdin>: ok, 1 target\n"
    assert krelay(*args, stdin=b"targets: {web: 1}") == 2


@pytest.mark.parametrize("args", [["check", "bad.yaml"], ["up", "-f", "bad.yaml"]])
def test_every_problem_of_a_file_is_printed_with_its_place_and_hint(
    args: list[str], krelay: Krelay, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.yaml").write_text(BAD)
    assert krelay(*args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    places = [line for line in lines if line.startswith("bad.yaml:")]
    assert [place.split(": ")[0] for place in places] == [
        "bad.yaml:3:16",
        "bad.yaml:4:3",
        "bad.yaml:4:24",
        "bad.yaml:6:13",
    ]
    assert "  hint: did you mean `port`?" in lines
    assert lines[-1] == "error: bad.yaml: 4 problems"


@pytest.mark.parametrize("command", ["check", "up"])
def test_a_missing_default_file_has_a_hint(
    command: str, krelay: Krelay, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krelay(command) == 2
    assert capsys.readouterr().err == (
        "error: no krelay.yaml in this directory\n"
        "  hint: `krelay init` writes one; `-f FILE` names one elsewhere\n"
    )


def test_a_missing_file_is_a_usage_error(
    krelay: Krelay, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krelay("check", "nope.yaml") == 2
    assert "cannot read 'nope.yaml': no such file" in capsys.readouterr().err


# -- docker compose ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("stop", "krelay has no command `stop` `krelay down`"),
        ("ls", "krelay has no command `ls` `krelay ps`"),
        ("ps -a", "`krelay ps` has no option `-a` `krelay ps` alone"),
        ("ps --all", "`krelay ps` has no option `--all` `krelay ps` alone"),
        ("down -v", "`krelay down` has no option `-v` `krelay down` alone"),
        ("logs -f", "`-f` requires an argument `krelay logs --follow`"),
        ("logs --tail=9", "`krelay logs` has no option `--tail` `krelay logs --lines N`"),
        ("up --wait", "`krelay up` has no option `--wait` `krelay up -d`"),
    ],
)
def test_a_command_line_of_docker_compose_is_answered_with_krelays_own(
    line: str, says: str, krelay: Krelay, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krelay(*line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    error, hint = err.splitlines()
    assert f"{error} {hint.removeprefix('  hint: ')}".startswith(f"error: {says}")


def test_the_hints_for_docker_compose_name_what_krelay_lacks_and_what_it_has() -> None:
    assert not compose.COMMANDS.keys() & cli.commands.keys()
    for name, options in compose.OPTIONS.items():
        known = {text for param in cli.commands[name].params for text in param.opts}
        assert not (options.keys() - {"-f"}) & known
    hints = [*compose.COMMANDS.values()]
    hints += [hint for options in compose.OPTIONS.values() for hint in options.values()]
    for words in re.findall("`krelay ([^`]+)`", " ".join(hints)):
        name, *given = [word for word in words.split() if not word.isupper()]
        command = cli.commands.get(name, cli)
        known = {text for param in command.params for text in param.opts}
        assert {name, *given} - {command.name, "json"} <= known


def test_logs_with_a_name_after_f_has_the_hint_to_follow(
    krelay: Krelay, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krelay("logs", "-f", "web") == 1
    assert "hint: `krelay logs --follow` prints new lines" in capsys.readouterr().err
    Path("krelay.yaml").write_text(GOOD)
    assert krelay("logs", "-f", "krelay.yaml") == 1
    assert "hint: start it with `krelay up -f krelay.yaml`" in capsys.readouterr().err


# -- schema ------------------------------------------------------------------------------------


def test_schema_prints_the_schema(krelay: Krelay, capsys: pytest.CaptureFixture[str]) -> None:
    assert krelay("schema") == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == json.loads(config.schema_text())
    assert err == ""


# -- exit codes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KrelayError("it failed"), 1),
        (ListenError("it failed"), 1),
        (TunnelError("it failed"), 1),
        (NotReadyError("it failed"), 3),
        (AgentError("it failed", hint="help it"), 4),
        (AccessDeniedError("it failed"), 4),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_error_has_its_exit_code(
    error: BaseException,
    code: int,
    krelay: Krelay,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, cluster: object) -> None:
        raise error

    monkeypatch.setattr(files, "select", fail)
    assert krelay("check") == code
    out, err = capsys.readouterr()
    assert out == ""
    if isinstance(error, KrelayError):
        assert err.startswith("error: it failed\n")
        assert ("  hint: help it\n" in err) == (error.hint is not None)


# -- as a program ------------------------------------------------------------------------------


def program(*args: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, *args],
        cwd=ROOT,
        text=True,
        capture_output="stdout" not in kwargs,
        check=False,
        **kwargs,
    )


HEAVY = ("kubernetes_asyncio", "aiohttp", "prometheus_client", "websockets", "watchfiles", "rich")


@pytest.mark.parametrize(
    "args",
    [["--help"], ["up", "--help"], ["run", "--help"], ["check", "krelay.yaml.example"], ["schema"]],
)
@pytest.mark.process
def test_commands_without_a_cluster_import_no_heavy_library(args: list[str]) -> None:
    done = program("-X", "importtime", "-m", "krelay", *args)
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "krelay.cli.main" in imported
    assert not [name for name in imported if name.startswith(HEAVY)]


@pytest.mark.process
def test_a_closed_stdout_exits_with_1_in_silence() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = program("-m", "krelay", "schema", stdout=closed, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr == ""


@pytest.mark.process
def test_python_dash_m_exits_with_the_exit_code() -> None:
    assert program("-m", "krelay", "check", "nope.yaml").returncode == 2
