"""Log lines, data and errors, as text and as JSON."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import warnings
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest

from krelay.cli.output import (
    echo,
    echo_event,
    in_json,
    keep_log,
    note,
    open_output,
    print_bug,
    print_error,
    print_usage_error,
    set_up_logging,
    shows_colour,
)
from krelay.errors import ConfigError, KrelayError, NotReadyError, Problem
from krelay.mux.log import about
from tests.integration.product import command

LOG = logging.getLogger("krelay.test")
OTHER = logging.getLogger("websockets.test")


def make_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make stderr a terminal."""
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
def test_verbosity_sets_the_levels(
    verbosity: int, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_logging(verbosity)
    speak()
    out, err = capsys.readouterr()
    assert out == ""
    stamped = [re.fullmatch(r"\d\d:\d\d:\d\d (.*)", line) for line in err.splitlines()]
    assert [match and match[1] for match in stamped] == lines


@pytest.mark.parametrize("traces", ["wire", ""])
def test_the_wire_trace_is_shown_without_v_if_the_environment_asks_for_it(
    traces: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KRELAY_TRACE", traces)
    set_up_logging(0)
    logging.getLogger("krelay.wire.trace").debug("> PING s0 size=8")
    shown = "debug: > PING s0 size=8" in capsys.readouterr().err
    assert shown == bool(traces)
    monkeypatch.undo()
    set_up_logging(0)


def test_a_traceback_is_indented_below_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(0)
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        LOG.exception("it broke")
    err = capsys.readouterr().err.splitlines()
    assert err[0].endswith("error: it broke")
    assert err[1].startswith("  Traceback")


def test_a_terminal_shows_colour(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_terminal(monkeypatch)
    set_up_logging(0)
    speak()
    err = capsys.readouterr().err
    assert "\x1b[33mwarning:\x1b[0m" in err
    assert "\x1b" not in err.splitlines()[0]


def test_no_color_disables_colour(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_terminal(monkeypatch)
    assert shows_colour()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not shows_colour()
    set_up_logging(0)
    speak()
    print_error(KrelayError("it failed", hint="help it"))
    assert "\x1b" not in capsys.readouterr().err


def test_a_pipe_shows_no_colour(capsys: pytest.CaptureFixture[str]) -> None:
    assert not shows_colour()


def test_echo_prints_a_line_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    echo("web: 127.0.0.1:8080")
    assert capsys.readouterr() == ("web: 127.0.0.1:8080\n", "")


def test_an_error_is_printed_with_its_hint(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(KrelayError("it failed", hint="help it"))
    print_error(KrelayError("it failed"))
    assert capsys.readouterr() == (
        "",
        "error: it failed\n  hint: help it\nerror: it failed\n",
    )


def test_problems_of_a_file_are_sorted_by_their_place(
    capsys: pytest.CaptureFixture[str],
) -> None:
    problems = [
        Problem(7, 3, "later", "do this"),
        Problem(2, 0, "earlier"),
        Problem(0, 0, "nowhere"),
    ]
    print_error(ConfigError("krelay.yaml", problems))
    assert capsys.readouterr().err.splitlines() == [
        "krelay.yaml: nowhere",
        "krelay.yaml:2: earlier",
        "krelay.yaml:7:3: later",
        "  hint: do this",
        "error: krelay.yaml: 3 problems",
    ]


def test_problems_of_other_files_follow_under_their_own_paths(
    capsys: pytest.CaptureFixture[str],
) -> None:
    problems = [
        Problem(1, 1, "of another", path="b.yaml"),
        Problem(2, 1, "second", path="a.yaml"),
        Problem(1, 9, "first", path="a.yaml"),
        Problem(9, 1, "late", path="krelay.yaml"),
        Problem(8, 1, "its own"),
    ]
    print_error(ConfigError("krelay.yaml", problems))
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


def test_an_error_is_an_event_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(-2, json=True)
    print_error(ConfigError("k.yaml", [Problem(3, 1, "wrong", "right it")]))
    (event,) = events(capsys)
    assert event["level"] == "error"
    assert event["message"] == "k.yaml:3:1: wrong\n  hint: right it\nk.yaml: 1 problem"


def test_an_event_names_its_target_tunnel_and_stream(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(0, json=True)
    about(LOG, target="web").info("ready")
    about(LOG, tunnel="p1t1", stream="p1t1#3", target="web\n").warning("reset: %s", "x")
    LOG.info("%s: %d streams are cut", "p1", 2)
    web, stream, nothing = events(capsys)
    assert (web["message"], web["target"]) == ("web: ready", "web")
    assert not {"tunnel", "stream"} & web.keys()
    assert stream["message"] == "p1t1#3: reset: x"
    assert (stream["target"], stream["tunnel"], stream["stream"]) == ("web", "p1t1", "p1t1#3")
    assert not {"target", "tunnel", "stream"} & nothing.keys()


def test_a_python_warning_is_an_event(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up_logging(0, json=True)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging._showwarning("old \x1b[31mways", DeprecationWarning, "x.py", 1)  # type: ignore[attr-defined]
    (event,) = events(capsys)
    assert event["logger"] == "py.warnings"
    assert "DeprecationWarning: old ways" in event["message"]


def test_an_error_of_a_thread_or_a_finalizer_is_an_event(
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_up_logging(0, json=True)
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()

    class Odd:
        def __del__(self) -> None:
            raise KeyError("odd")

    Odd()
    thrown, unraisable = events(capsys)
    assert thrown["message"] == "uncaught exception in a thread"
    assert thrown["exception"].endswith("ZeroDivisionError: division by zero")
    assert unraisable["exception"].endswith("KeyError: 'odd'")


def test_json_is_valid_whatever_the_encoding_of_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="backslashreplace")
    monkeypatch.setattr(sys, "stderr", stream)
    set_up_logging(0, json=True)
    LOG.info("zwölf ●")
    stream.flush()
    assert json.loads(raw.getvalue())["message"] == "zwölf ●"


@pytest.mark.parametrize("for_programs", [False, True])
def test_a_record_that_cannot_be_formatted_is_reported(
    for_programs: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_logging(0, json=for_programs)
    LOG.info("%d", "no number")
    err = capsys.readouterr().err
    assert "cannot format a log record: %d: TypeError" in err
    assert err.count("\n") == 1
    assert err.startswith("{") is for_programs


def test_notes_and_data_about_a_target_are_events(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(0, json=True)
    note("3 connections get 30 s")
    echo_event("web: 127.0.0.1:80 -> svc/web:80 (tcp)", "web")
    out, err = capsys.readouterr()
    said, noted = json.loads(out), json.loads(err)
    assert noted["message"] == "3 connections get 30 s"
    assert (said["message"], said["target"]) == ("web: 127.0.0.1:80 -> svc/web:80 (tcp)", "web")
    assert (said["level"], said["logger"]) == ("info", "krelay.cli")


# -- what others wrote ---------------------------------------------------------------------------

EVIL = "\x1b]0;owned\x07\x1b[2J\x1b[31mforged\n12:00:00 all is well\u2028\u202e\x9b1m\ud800\x7f[/x]"
CLEAN = "forged 12:00:00 all is well \ufffd[/x]"


@pytest.mark.parametrize("for_programs", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        KrelayError(EVIL, hint=EVIL),
        NotReadyError("not ready", [EVIL]),
        ConfigError(f"{EVIL}.yaml", [Problem(1, 1, EVIL, EVIL, EVIL), Problem(2, 1, EVIL)]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_printed_error_is_clean(
    error: KrelayError, for_programs: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if for_programs:
        set_up_logging(0, json=True)
    print_error(error)
    out, err = capsys.readouterr()
    assert out == ""
    assert CLEAN in err
    told = [json.loads(line)["message"] for line in err.splitlines()] if for_programs else [err]
    for line in "\n".join(told).splitlines():
        assert line.isprintable()
        assert not line.startswith("12:")


@pytest.mark.parametrize("for_programs", [False, True])
def test_a_log_record_is_clean(for_programs: bool, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(0, json=for_programs)
    LOG.warning("%s: %s", EVIL, ValueError(EVIL), extra={"target": EVIL})
    try:
        raise ValueError(EVIL)
    except ValueError:
        LOG.exception("%s", EVIL)
    err = capsys.readouterr().err
    for line in err.splitlines():
        assert line.isprintable()
        if for_programs:
            event = json.loads(line)
            assert all(part.isprintable() for text in event.values() for part in text.split("\n"))
        else:
            assert line.startswith("  ") or re.match(
                r"\d\d:\d\d:\d\d (warning|error): forged", line
            )


def test_echoed_lines_and_notes_are_clean(capsys: pytest.CaptureFixture[str]) -> None:
    echo(EVIL)
    note(EVIL)
    out, err = capsys.readouterr()
    assert err == CLEAN + "\n"
    assert out == CLEAN.replace("forged ", "forged\n").replace("well ", "well\n") + "\n"


def test_a_usage_error_and_a_bug_are_clean(capsys: pytest.CaptureFixture[str]) -> None:
    print_usage_error(click.UsageError(EVIL))
    try:
        raise ValueError(EVIL)
    except ValueError as exc:
        print_bug(exc)
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" in err
    assert all(line.isprintable() for line in err.splitlines())
    set_up_logging(0, json=True)
    print_usage_error(click.UsageError(EVIL))
    try:
        raise ValueError(EVIL)
    except ValueError as exc:
        print_bug(exc)
    usage, bug = events(capsys)
    assert usage["message"] == CLEAN.replace("forged ", "forged\n").replace("well ", "well\n")
    assert bug["exception"].startswith("Traceback")


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


def test_a_character_that_stdout_cannot_encode_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1"))
    open_output()
    echo("\u25cf ready")
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
            "error: cannot write to stdout: No space left on device\n",
        ),
    ],
)
@pytest.mark.process
def test_output_that_cannot_be_written_is_an_orderly_error(
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
    told = "krelay is not running for krelay.yaml; `krelay up` would start this:\n"
    expected = "" if "2>&-" in redirected else told + err
    assert (done.returncode, done.stderr) == (code, expected)
