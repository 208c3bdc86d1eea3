"""Finding: what a check has found out, and the hint that mends it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from krelay.errors import KrelayError
from krelay.text import one_line


class Status(StrEnum):
    """The verdict of a check. SKIPPED: something that the check needs is missing."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report.

    `check` names the check, `context` the kubeconfig context that it examined (None for this
    machine, and for the only context). `hint` says what to do, and `command` is a command line
    that does it. `details` are values for programs. `exit_code` is that of a failure, as in
    `krelay.errors`.
    """

    check: str
    status: Status
    text: str
    hint: str | None = None
    command: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    context: str | None = None
    exit_code: int = 0

    def __post_init__(self) -> None:
        for name in ("text", "hint", "command", "context"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else one_line(value))

    def as_json(self) -> dict[str, Any]:
        """Return the JSON form, without empty values."""
        found = {**dataclasses.asdict(self), "status": self.status.value}
        return {key: value for key, value in found.items() if value or key == "text"}


def ok(check: str, text: str, **details: Any) -> Finding:
    """Return a finding that needs no action."""
    return Finding(check, Status.OK, text, details=details)


def warning(
    check: str, text: str, hint: str | None = None, *, command: str | None = None, **details: Any
) -> Finding:
    """Return a finding with which krelay works, but not as it could, or not for long."""
    return Finding(check, Status.WARNING, text, hint, command, details)


def failed(
    check: str,
    text: str,
    hint: str | None = None,
    *,
    command: str | None = None,
    exit_code: int = KrelayError.exit_code,
    **details: Any,
) -> Finding:
    """Return a finding with which krelay does not work."""
    return Finding(check, Status.FAILED, text, hint, command, details, exit_code=exit_code)


def skipped(check: str, text: str, **details: Any) -> Finding:
    """Return a finding of a check that could not be made."""
    return Finding(check, Status.SKIPPED, text, details=details)


def failure(check: str, error: KrelayError, **details: Any) -> Finding:
    """Return an error of krelay as a finding."""
    return failed(check, error.message, error.hint, exit_code=error.exit_code, **details)


def exit_code(findings: list[Finding]) -> int:
    """Return the exit code of the first failure in a report; 0 if nothing failed."""
    return next((one.exit_code for one in findings if one.status is Status.FAILED), 0)
