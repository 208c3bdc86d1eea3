"""Encode an error for the command that asked a running krelay, and decode it there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from krelay.errors import ConfigError, KrelayError, NotReadyError, Problem


def to_json(error: KrelayError) -> dict[str, Any]:
    """Return the error as JSON: that of a file with its `problems`, that of forwards which are not
    ready with the `unready` ones."""
    found: dict[str, Any] = {
        "message": error.message,
        "hint": error.hint,
        "exitCode": error.exit_code,
    }
    if isinstance(error, ConfigError):
        found["path"] = error.path
        found["problems"] = [dataclasses.asdict(problem) for problem in error.problems]
    if isinstance(error, NotReadyError):
        found["unready"] = list(error.unready)
    return found


def from_json(found: Mapping[str, Any]) -> KrelayError:
    """Return an error with the texts and the exit code of the encoded one."""
    error: KrelayError
    if "problems" in found:
        problems = [Problem(**problem) for problem in found["problems"]]
        error = ConfigError(found["path"], problems, hint=found.get("hint"))
    elif "unready" in found:
        error = NotReadyError(found["message"], found["unready"], hint=found.get("hint"))
    else:
        error = KrelayError(str(found.get("message", "it failed")), hint=found.get("hint"))
    error.exit_code = int(found.get("exitCode", 1))
    return error
