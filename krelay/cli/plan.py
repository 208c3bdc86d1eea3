"""`krelay plan` and `krelay reload`: what an edit would change, or has changed, in a krelay that
runs."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Any

from krelay.cli.output import note, say
from krelay.config.changes import changes
from krelay.config.diff import diff
from krelay.config.selection import Selection
from krelay.errors import UsageError
from krelay.status.client import NotRunningError, ask

_PLAN_DEADLINE = 30.0
# A new agent may have to be pulled and started first.
_RELOAD_DEADLINE = 600.0


def run(selection: Selection, candidate: Selection | None, *, json: bool) -> bool:
    """Say what `candidate`, or the file as it is now, would change; whether that is anything.

    Raises:
        UsageError: a file cannot be read.
        ConfigError: it is wrong.
        KrelayError: the krelay that runs gave no answer.
    """
    file = _running(selection)
    body = {}
    if candidate is not None:
        if candidate.text is not None:
            body = {"text": candidate.text.decode(errors="surrogateescape")}
        elif candidate.path is not None:
            body = {"path": str(Path(candidate.path).absolute())}
    try:
        found = ask(file, "POST", "/v1/plan", body, timeout=_PLAN_DEADLINE)["changes"]
    except NotRunningError:
        config = (candidate or selection).load()
        found = [change.as_json() for change in changes(diff(None, config))]
        note(f"no krelay runs {file}; this is what `krelay up` would start:")
    _show(found, "nothing would change", json=json)
    return bool(found)


def reload(selection: Selection, *, json: bool) -> None:
    """Have the file carried out, and say what changed.

    Raises:
        UsageError: the file cannot be read.
        ConfigError: it is wrong.
        KrelayError: it could not be carried out, or no krelay runs it.
    """
    found = ask(_running(selection), "POST", "/v1/reload", timeout=_RELOAD_DEADLINE)["changes"]
    _show(found, "nothing changed", json=json)


def _running(selection: Selection) -> str:
    if selection.file is None:
        hint = "standard input and pipes are none: write `krelay plan -`"
        raise UsageError("`-f` names the file that a krelay runs", hint=hint)
    return selection.file


def _show(found: list[dict[str, Any]], nothing: str, *, json: bool) -> None:
    if json:
        say(dumps({"changes": found}, indent=2))
        return
    for change in found:
        say(f"{change['sign']} {change['text']}")
    if not found:
        say(nothing)
