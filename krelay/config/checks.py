"""How a target is probed, as a file says it: `dial`, `none`, `dns NAME` or
`http [METHOD] /PATH [-> STATUS]`, or the last two in parts. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from krelay.config.parse_error import Flaw, quote
from krelay.model import Check, CheckKind

_METHOD = re.compile(r"[A-Z]{1,20}")
_PATH = re.compile(r"/[!-~]{0,2000}")
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_MAX_NAME = 253
_HINT = "`dial`, `http GET /healthz -> 200`, `dns example.com` or `none`"


def parse_check(text: str) -> Check:
    """A check from its text.

    Raises:
        Flaw: it is none.
    """
    words = text.split()
    kind = words[0].lower() if words else ""
    if len(words) == 1 and kind in (CheckKind.DIAL, CheckKind.NONE):
        return Check(CheckKind(kind))
    if kind == CheckKind.HTTP:
        found = _request(words[1:])
        if found is None:
            raise Flaw(f"{quote(text)} is not a check", hint="for example `http GET /healthz`")
        return _http(*found)
    if kind == CheckKind.DNS and len(words) == 2:
        return _dns(words[1])
    raise Flaw(f"{quote(text)} is not a check", hint=_HINT)


def _request(words: list[str]) -> tuple[str, str, str | None] | None:
    """Method, path and status of `[METHOD] /PATH [-> STATUS]`; None where it is no such thing."""
    method = "GET"
    if len(words) > 1 and words[0].isascii() and words[0].isalpha() and words[1][:2] != "->":
        method, *words = words
    match words:
        case [path]:
            return method, path, None
        case [path, "->", status]:
            return method, path, status
        case [path, arrow] if arrow.startswith("->") and len(arrow) > 2:
            return method, path, arrow[2:]
        case [path, status] if path.endswith("->") and len(path) > 2:
            return method, path[:-2], status
        case _:
            return None


def read_check(parts: Mapping[str, Any]) -> Check:
    """A check from a mapping as the schema has it.

    Raises:
        Flaw: a part cannot be what it is.
    """
    if len(parts) > 1:
        raise Flaw("has both `http` and `dns`", hint="a target is probed in one way: remove one")
    if not parts:
        return Check()  # what was there is told already
    if parts.get("dns") is not None:
        return _dns(parts["dns"])
    given = parts.get("http") or {}
    status = given.get("status")
    return _http(
        given.get("method") or "GET",
        given.get("path") or "/",
        None if status is None else str(int(status)),
    )


def _http(method: str, path: str, status: str | None) -> Check:
    method = method.upper()
    if not _METHOD.fullmatch(method):
        raise Flaw(f"{quote(method)} is not an HTTP method", hint="for example `GET` or `HEAD`")
    if not _PATH.fullmatch(path):
        raise Flaw(
            f"{quote(path)} is not a path", hint="it starts with `/`, for example `/healthz`"
        )
    if status is not None and not re.fullmatch("[1-5][0-9][0-9]", status, re.ASCII):
        raise Flaw(f"{quote(status)} is not an HTTP status", hint="100 to 599, for example `200`")
    return Check(CheckKind.HTTP, method, path, int(status) if status else None)


def _dns(name: str) -> Check:
    labels = name.removesuffix(".").split(".")
    if len(name) > _MAX_NAME or not all(map(_LABEL.fullmatch, labels)):
        raise Flaw(f"{quote(name)} is not a DNS name", hint="for example `example.com`")
    return Check(CheckKind.DNS, name=name)
