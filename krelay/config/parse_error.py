"""What a parser of one text dislikes in it, before anyone says where in a file the text stands."""

from __future__ import annotations

from krelay.errors import Problem


class Flaw(ValueError):
    """One thing wrong in one text; `offset` counts characters from the text's start, from 0."""

    def __init__(self, message: str, *, hint: str | None = None, offset: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.offset = offset

    def moved(self, by: int) -> Flaw:
        """The same flaw in a longer text that holds this one `by` characters further in."""
        return Flaw(self.message, hint=self.hint, offset=self.offset + by)

    def at(self, line: int, column: int) -> Problem:
        """The flaw as a problem of a file; `column` (from 1) is where the text starts."""
        return Problem(line, column + self.offset, self.message, self.hint)


def quote(value: object, limit: int = 60) -> str:
    """A user's own value for a message: in backticks, on one line, shortened."""
    shown = str(value)[: limit + 1]
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)
    if not text:
        return '`""`'
    mark = "'" if "`" in text else "`"
    return f"{mark}{text[:limit]}{'…' if len(text) > limit else ''}{mark}"
