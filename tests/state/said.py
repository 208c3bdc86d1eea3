"""A public event with any text, for tests of what carries events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from krelay.state.events import PublicEvent


@dataclass(frozen=True, slots=True)
class Said(PublicEvent):
    kind: str  # type: ignore[misc]
    line: str
    target: str | None = None
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def about(self) -> str | None:
        return self.target

    @property
    def text(self) -> str:
        return self.line

    @property
    def details(self) -> dict[str, Any]:
        return self.values


def said(kind: str, line: str, *, target: str | None = None, **values: Any) -> Said:
    """Return an event with these details."""
    return Said(kind, line, target, values)
