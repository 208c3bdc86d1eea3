"""An error on its way from a running krelay to the command that asked it, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from krelay.errors import ConfigError, KrelayError, Problem


def to_json(error: KrelayError) -> dict[str, Any]:
    """The error as JSON; `problems` are there for a file's."""
    found: dict[str, Any] = {
        "message": error.message,
        "hint": error.hint,
        "exitCode": error.exit_code,
    }
    if isinstance(error, ConfigError):
        found["path"] = error.path
        found["problems"] = [dataclasses.asdict(problem) for problem in error.problems]
    return found


def from_json(found: Mapping[str, Any]) -> KrelayError:
    """The error again, as far as a person and a shell can tell."""
    error: KrelayError
    if "problems" in found:
        problems = [Problem(**problem) for problem in found["problems"]]
        error = ConfigError(found["path"], problems, hint=found.get("hint"))
    else:
        error = KrelayError(str(found.get("message", "it failed")), hint=found.get("hint"))
    error.exit_code = int(found.get("exitCode", 1))
    return error
