"""Lines for people: levels, colour, hints."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from krelay.cli.output import (
    JsonFormatter,
    coloured,
    complain,
    in_json,
    keep_log,
    open_output,
    say,
    set_up_logging,
)
from krelay.errors import ConfigError, KrelayError, Problem
from tests.integration.product import command

LOG = logging.getLogger("krelay.test")
OTHER = logging.getLogger("websockets.test")


def make_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have stderr be one."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)


def speak() -> None:
    for logger in (LOG, OTHER):
        logger.debug("debugging")
        logger.info("news")
        logger.warning("beware of %s", logger.name)


@pytest.mark.parametrize(
    ("verbosity", "lines"),
    [
        (0, ["news", "warning: beware of krelay.test", "warning: beware of websockets.test"]),
        (
            1,
            ["debug: debugging", "news", "warning: beware of krelay.test"]
            + ["warning: beware of websockets.test"],
        ),
        (
            2,
            ["debug: debugging", "news", "warning: beware of krelay.test"]
            + ["debug: debugging", "news", "warning: beware of websockets.test"],
        ),
    ],
)
def test_how_much_is_said(
    verbosity: int, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_logging(verbosity)
    speak()
    out, err = capsys.readouterr()
    assert out == ""
    stamped = [re.fullmatch(r"\d\d:\d\d:\d\d (.*)", line) for line in err.splitlines()]
    assert [match and match[1] for match in stamped] == lines


def test_a_traceback_follows_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(0)
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        LOG.exception("it broke")
    err = capsys.readouterr().err.splitlines()
    assert err[0].endswith("error: it broke")
    assert err[1].startswith("Traceback")


def test_a_terminal_has_colour(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_terminal(monkeypatch)
    set_up_logging(0)
    speak()
    err = capsys.readouterr().err
    assert "\x1b[33mwarning:\x1b[0m" in err
    assert "\x1b" not in err.splitlines()[0]


def test_no_color_is_heeded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_terminal(monkeypatch)
    assert coloured()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not coloured()
    set_up_logging(0)
    speak()
    complain(KrelayError("it failed", hint="help it"))
    assert "\x1b" not in capsys.readouterr().err


def test_a_pipe_has_no_colour(capsys: pytest.CaptureFixture[str]) -> None:
    assert not coloured()


def test_data_is_a_line_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    say("web: 127.0.0.1:8080")
    assert capsys.readouterr() == ("web: 127.0.0.1:8080\n", "")


def test_an_error_and_its_hint(capsys: pytest.CaptureFixture[str]) -> None:
    complain(KrelayError("it failed", hint="help it"))
    complain(KrelayError("it failed"))
    assert capsys.readouterr() == (
        "",
        "error: it failed\n  hint: help it\nerror: it failed\n",
    )


def test_a_file_s_problems_in_order_with_what_is_known_of_their_place(
    capsys: pytest.CaptureFixture[str],
) -> None:
    problems = [
        Problem(7, 3, "later", "do this"),
        Problem(2, 0, "earlier"),
        Problem(0, 0, "nowhere"),
    ]
    complain(ConfigError("krelay.yaml", problems))
    assert capsys.readouterr().err.splitlines() == [
        "krelay.yaml: nowhere",
        "krelay.yaml:2: earlier",
        "krelay.yaml:7:3: later",
        "  hint: do this",
        "error: krelay.yaml: 3 problems",
    ]


def test_the_problems_of_other_files_come_after_under_their_own_names(
    capsys: pytest.CaptureFixture[str],
) -> None:
    problems = [
        Problem(1, 1, "of another", path="b.yaml"),
        Problem(2, 1, "second", path="a.yaml"),
        Problem(1, 9, "first", path="a.yaml"),
        Problem(9, 1, "late", path="krelay.yaml"),
        Problem(8, 1, "its own"),
    ]
    complain(ConfigError("krelay.yaml", problems))
    assert capsys.readouterr().err.splitlines() == [
        "krelay.yaml:8:1: its own",
        "krelay.yaml:9:1: late",
        "a.yaml:1:9: first",
        "a.yaml:2:1: second",
        "b.yaml:1:1: of another",
        "error: krelay.yaml: 5 problems",
    ]


# -- JSON ----------------------------------------------------------------------------------------


def events(capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    out, err = capsys.readouterr()
    assert out == ""
    return [json.loads(line) for line in err.splitlines()]


def test_an_event_is_a_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(0, json=True)
    assert in_json()
    LOG.info("news of\n%s", "two lines, ünd")
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        LOG.exception("it broke")
    first, second = events(capsys)
    moment = datetime.fromisoformat(first.pop("time"))
    assert moment.tzinfo is UTC
    assert first == {
        "level": "info",
        "logger": "krelay.test",
        "message": "news of\ntwo lines, ünd",
    }
    assert second["level"] == "error"
    assert second["exception"].endswith("ZeroDivisionError")


def test_an_error_is_an_event_too(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(-2, json=True)
    complain(ConfigError("k.yaml", [Problem(3, 1, "wrong", "right it")]))
    (event,) = events(capsys)
    assert event["level"] == "error"
    assert event["message"] == "k.yaml:3:1: wrong\n  hint: right it\nk.yaml: 1 problem"


@pytest.mark.parametrize(
    ("module", "name", "text", "args", "extra", "target"),
    [
        ("listener", "krelay.listener", "%s: connection reset: %s", ("web", "x"), {}, "web"),
        ("forward", "krelay.forward", "%s: %s%s", ("web[80:80]", "x", ""), {}, "web"),
        ("group", "krelay.supervisor", "%s: %d streams are cut", ("p1", 2), {}, None),
        ("listener", "krelay.listener", "bound", (), {}, None),
        ("proxy", "other.proxy", "%s: connect", ("host",), {}, None),
        ("up", "krelay.cli", "%s", ("web: ...",), {"target": "web"}, "web"),
    ],
)
def test_whose_event_it_is(
    module: str,
    name: str,
    text: str,
    args: tuple[object, ...],
    extra: dict[str, str],
    target: str | None,
) -> None:
    record = logging.LogRecord(name, logging.INFO, f"/x/{module}.py", 1, text, args, None)
    record.__dict__.update(extra)
    assert json.loads(JsonFormatter().format(record)).get("target") == target


# -- what is kept --------------------------------------------------------------------------------


@pytest.mark.parametrize("for_programs", [False, True])
def test_the_log_is_kept_without_colour(
    for_programs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_terminal(monkeypatch)
    set_up_logging(0, json=for_programs)
    with keep_log() as ring:
        LOG.warning("beware")
    LOG.warning("not kept")
    ((number, text),) = ring.after(0)
    assert number == 1
    if for_programs:
        assert json.loads(text)["message"] == "beware"
    else:
        assert re.fullmatch(r"\d\d:\d\d:\d\d warning: beware", text)


# -- output that has nowhere to go ---------------------------------------------------------------


def test_a_sign_that_the_encoding_does_not_have_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1"))
    open_output()
    say("\u25cf ready")
    assert raw.getvalue() == b"? ready\n"


@pytest.mark.parametrize(
    ("redirected", "code", "err"),
    [
        ("", 0, ""),
        (">&-", 0, ""),
        (">&- 2>&-", 0, ""),
        (
            ">/dev/full",
            1,
            "error: cannot write what there is to say: No space left on device\n",
        ),
    ],
)
def test_it_ends_in_order_where_it_cannot_write(
    redirected: str, code: int, err: str, tmp_path: Path
) -> None:
    (tmp_path / "krelay.yaml").write_text("apiVersion: krelay/v1\ntargets: {web: ip/127.0.0.1 :1}")
    script = f'"$@" {redirected}'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *command("plan")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    told = "no krelay runs krelay.yaml; this is what `krelay up` would start:\n"
    expected = "" if "2>&-" in redirected else told + err
    assert (done.returncode, done.stderr) == (code, expected)
