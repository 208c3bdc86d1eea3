"""Text: clean text from outside before it is shown. It is the only filter for that.

An API server's message, an Event, an agent's last output, a file, a path or a header may hold
anything: escapes that a terminal obeys, a line break with a forged log line behind it, characters
that change the direction of text, or a megabyte. All output passes here, at the latest where it is
written: `KrelayError`, the log's formatters, the commands' printers, the event bus.
"""

from __future__ import annotations

import re
from unicodedata import category

LIMIT = 2_000  # characters of a line
LINES = 500  # lines of a text

# A sequence is removed as a whole: without its escape, `[31m` would be left. Each part stops where
# the next sequence begins, so that the time is linear for any text.
_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # CSI: colours, cursor, erasing
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x80-\x9f]*(?:\x07|\x1b\\|\x9c)"  # OSC, DCS
    r"|\x1b[ -/]*[0-~]?"  # the others: a reset, another character set
)
_BREAKS = re.compile("[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+")
_LINE_ENDS = re.compile("\r\n|[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")
_MORE = " …"


def one_line(text: object, limit: int = LIMIT) -> str:
    """Return `text` as one line of at most `limit` characters that no terminal or browser obeys.

    Terminal sequences and invisible characters (formats, directions) are removed. A line break or a
    tab becomes a space, an invalid character U+FFFD.
    """
    found = str(text)
    if found.isascii() and found.isprintable() and len(found) <= limit:
        return found
    # A sequence that is cut in two here is cleaned like any other text.
    cut = len(found) > 4 * limit
    found = _SEQUENCES.sub("", found[: 4 * limit])
    found = _BREAKS.sub(" ", found.strip("\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029"))
    if not found.isprintable():
        found = "".join(map(_shown, found))
    return found[:limit] + _MORE if len(found) > limit or cut else found


def many_lines(text: object, *, most: int = LINES, limit: int = LIMIT) -> list[str]:
    """Return the lines of `text`, each cleaned by `one_line`, at most `most` and a final `…`.

    An empty text has one empty line.
    """
    whole = str(text)
    found = _LINE_ENDS.split(whole[: most * limit].rstrip("\r\n"), maxsplit=most)
    lines = [one_line(line.expandtabs(4) if "\t" in line else line, limit) for line in found[:most]]
    if len(found) > most or len(whole) > most * limit:
        lines.append("…")
    return lines


def indented(text: object, *, most: int = LINES) -> str:
    """Return `text` with all lines but the first indented, so that none of them can pass for a line
    of krelay's log."""
    first, *others = many_lines(text, most=most)
    return "\n".join([first, *(f"  {line}" for line in others)])


def _shown(char: str) -> str:
    if char.isprintable():
        return char
    if char.isspace():
        return " "
    # Controls and formats (directions, zero width, tags) are invisible anyway.
    return "" if category(char) in ("Cc", "Cf") else "\ufffd"
