"""Errors of the agent."""

from __future__ import annotations

from krelay.wire.errors import ErrorCode


class DialError(Exception):
    """The target was not reached; `code` says why."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
