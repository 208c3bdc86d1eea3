"""Error body: the text of an HTTP error's body, which is a Kubernetes Status or a web page.

The body may hold anything, so each step takes time linear in its size: a tag ends at the next `<`,
and no expression can match the same text from many places.
"""

from __future__ import annotations

import re

from krelay.typed import Message, Mismatch, Shape, parse

MAX_BODY = 64 << 10  # bytes of an error's body that are read

_MAX_VALUES = 10_000
_TAG = re.compile("<[^<>]*>")
_STATUS = Shape({"kind": Message(64), "message": Message(MAX_BODY)})


def status_message(body: bytes, *, kind: bool = False) -> str | None:
    """Return the message of the Status in `body`, or None.

    With `kind`, the object has to be declared a Status.
    """
    try:
        status = _STATUS.read(parse(body[:MAX_BODY], values=_MAX_VALUES))
    except Mismatch:
        return None
    if kind and status.get("kind") != "Status":
        return None
    message: str | None = status.get("message")
    return message


def error_text(body: bytes, most: int, *, kind: bool = False) -> str:
    """Return the message of the Status in `body` (as `status_message`), else the text of `body`."""
    message = status_message(body, kind=kind)
    return page_words(body, most) if message is None else words(message, most)


def words(text: str, most: int) -> str:
    """Return `text` on one line, cut after `most` characters."""
    return " ".join(text[:MAX_BODY].split())[:most]


def page_words(body: bytes, most: int) -> str:
    """Return the text of a web page, or of any other body, on one line."""
    return words(_TAG.sub(" ", body[:MAX_BODY].decode("utf-8", "replace")), most)
