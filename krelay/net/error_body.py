"""Answer: the words in the body of an HTTP error, a Kubernetes Status or a web page. Pure.

The body may be anything, so each step takes time linear in its size: a tag ends at the next `<`,
and no expression can match the same text from many places.
"""

from __future__ import annotations

import re

from krelay.typed import Message, Mismatch, Shape, parse

MAX_BODY = 64 << 10
"""Bytes of an error's body that are looked at."""

_MAX_VALUES = 10_000
_TAG = re.compile("<[^<>]*>")
_STATUS = Shape({"kind": Message(64), "message": Message(MAX_BODY)})


def status_message(body: bytes, *, kind: bool = False) -> str | None:
    """The message of the Status in `body`, None if there is none. `kind`: only of an object that
    calls itself a Status."""
    try:
        status = _STATUS.read(parse(body[:MAX_BODY], values=_MAX_VALUES))
    except Mismatch:
        return None
    if kind and status.get("kind") != "Status":
        return None
    message: str | None = status.get("message")
    return message


def words(text: str, most: int) -> str:
    """The text on one line, cut after `most` characters."""
    return " ".join(text[:MAX_BODY].split())[:most]


def page_words(body: bytes, most: int) -> str:
    """The text of a web page, or of anything else, on one line."""
    return words(_TAG.sub(" ", body[:MAX_BODY].decode("utf-8", "replace")), most)
