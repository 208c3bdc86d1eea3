"""`${VAR}` and `${VAR:-default}` in a value; `$$` is a dollar, and any other `$` is itself.

A scalar is expanded after YAML has been parsed, so what a variable holds is a value whatever
it looks like: it never adds a key, an item or a line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from krelay.config.parse_error import Flaw, quote

MAX_TEXT = 1 << 20
"""Characters that one text may have with its variables filled in."""
MAX_FLAWS = 100
_REFERENCE = re.compile(r"\$\$|\$\{([^{}]*)(\}?)")
_INSIDE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


def expand(
    text: str, environ: Mapping[str, str], *, hidden: bool = False
) -> tuple[str, list[Flaw]]:
    """The text with its variables filled in, and every reference that cannot be.

    As in a shell, `${VAR:-default}` is the default where VAR is unset or empty. The first
    MAX_FLAWS are found. `hidden`: the text is secret, and no flaw shows a part of it other than a
    variable's name.
    """
    flaws: list[Flaw] = []
    length = len(text)

    def value(match: re.Match[str]) -> str:
        nonlocal length
        if match[0] == "$$":
            return "$"
        if len(flaws) >= MAX_FLAWS or length > MAX_TEXT:
            return ""
        try:
            found = _lookup(match[1], bool(match[2]), environ, hidden=hidden)
            length += len(found)
            if length > MAX_TEXT:
                raise Flaw("a text of more than 1 MiB", hint="its variables are long")
        except Flaw as flaw:
            flaws.append(flaw.moved(match.start()))
            return ""
        return found

    return (_REFERENCE.sub(value, text) if "$" in text else text), flaws


def _lookup(inside: str, closed: bool, environ: Mapping[str, str], *, hidden: bool) -> str:
    if not closed:
        shown = "`${`" if hidden else quote("${" + inside)
        raise Flaw(
            f"{shown} is not closed by `}}`, or holds another brace",
            hint="write `$${` for the characters themselves; variables do not nest",
        )
    match = _INSIDE.fullmatch(inside)
    if match is None:
        shown = "`${…}`" if hidden else quote("${" + inside + "}")
        raise Flaw(
            f"{shown} is not a variable",
            hint="write `${NAME}` or `${NAME:-default}`, and `$$` for a dollar",
        )
    name, default = match[1], match[2]
    found = environ.get(name)
    if default is not None:
        return found or default
    if found is None:
        raise Flaw(
            f"the variable {quote(name)} is not set",
            hint=f"set it, or write `${{{name}:-default}}`",
        )
    return found
