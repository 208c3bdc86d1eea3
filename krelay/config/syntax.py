"""What a YAML parser complains about, in words for the person who wrote the file.

The two parsers of PyYAML (its own and libyaml's) word the same complaint differently; the
phrases looked for here are in both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from krelay.config.parse_error import quote
from krelay.config.schema import secret_keys
from krelay.errors import Problem

if TYPE_CHECKING:
    import yaml

_IN_BRACKETS = "quote `${...}` inside of `[ ]` and `{ }`: the braces mean something there"
_INDENT = "keys of one mapping, and items of one list, start in the same column"


def explain(error: yaml.YAMLError, text: str) -> Problem:
    """The problem that a syntax error is. Where something was left open, it points at that."""
    mark, start = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    line, column = (mark.line, mark.column) if mark else (0, 0)
    lines = text.split("\n")
    here = lines[line] if line < len(lines) else ""
    char = here[column : column + 1]
    # It may be a character of a secret.
    shown = "a character" if any(key in here.lower() for key in secret_keys()) else quote(char)
    what, context = getattr(error, "problem", None) or "", getattr(error, "context", None) or ""

    def problem(message: str, hint: str | None = None, *, opened: bool = False) -> Problem:
        at = (start.line, start.column) if opened and start else (line, column)
        return Problem(at[0] + 1, at[1] + 1, message, hint)

    if "cannot start any token" in what:
        if char == "\t":
            return problem("a tab indents this line", "YAML indents with spaces only")
        return problem(f"{shown} cannot start a value", "put the value in quotes")
    if "mapping values are not allowed" in what:
        return problem(
            "unexpected `:`",
            "quote a value with `: ` in it or `:` at its end, or mend the indentation",
        )
    if "end of stream" in what and "quoted scalar" in context:
        return problem("the quote that opens here is never closed", opened=True)
    if "escape" in what:
        return problem(
            "an escape that YAML does not know", "in single quotes `\\` is itself", opened=True
        )
    if "parsing a flow" in context and "node" not in context:
        hint = _IN_BRACKETS if "${" in here else "a `,` or the closing bracket is missing"
        if not char:
            return problem("the bracket that opens here is never closed", opened=True)
        return problem(f"{shown} is unexpected", hint)
    if "could not find expected ':'" in what:
        return problem("neither `key: value` nor a list item", "add the `:`", opened=True)
    if "parsing a block" in context and "node" not in context:
        return problem(f"{shown} is unexpected" if char else "wrong indentation", _INDENT)
    if "node" in context and char:
        return problem(f"{shown} is unexpected", "a value that starts with it needs quotes")
    if "anchor" in context or "alias" in context:
        return problem(
            "a name must follow `&` and `*`", "a value that starts with one needs quotes"
        )
    if "sequence entries" in what:
        return problem("a list cannot start here", "start it on a line of its own")
    if "directive" in context or "document start" in what:
        return problem("text outside of the document", "no `%` or `...` lines; " + _INDENT)
    return problem("not YAML" + (f": {what.lower()}" if what else ""))
