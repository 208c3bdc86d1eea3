"""One entry of `agent.patches` -> a Patch: written in its place, or in a file of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from krelay.config import validation, yaml_reader
from krelay.config.files import Files, decode
from krelay.config.parse_error import Flaw
from krelay.config.yaml_reader import Node
from krelay.errors import ConfigError, Problem
from krelay.model import Patch


def read(entry: Mapping[str, Node], path: str, files: Files) -> tuple[Patch | None, list[Problem]]:
    """The patch of an entry in the file at `path`, or None, and every problem.

    A problem has a path of its own where it is one of the patch's own file.
    """
    words = {key: entry[key].plain() for key in ("type", "target") if key in entry}
    if "patch" in entry:
        return _patch(entry["patch"], words)
    if "file" not in entry:
        return None, []
    name = entry["file"]
    try:
        path, data = files.named(name.plain(), path)
    except Flaw as flaw:
        return None, [name.problem(flaw)]
    body, problems = _body(data, path, files)
    patch = None
    if body is not None:
        patch, more = _patch(body, words)
        problems += more
    return patch, [dataclasses.replace(problem, path=path) for problem in problems]


def parse(data: bytes, path: str, environ: Mapping[str, str], *, kind: str | None = None) -> Patch:
    """The patch in JSON or YAML; `kind` is its type, None: json for a list, else strategic.

    Raises:
        ConfigError: it is none; carries every problem.
    """
    patch = None
    body, problems = _body(data, path, Files(environ))
    if body is not None:
        words = {"type": kind or ("json" if isinstance(body.value, list) else "strategic")}
        patch, more = _patch(body, words)
        problems += more
    if patch is None or problems:
        raise ConfigError(path, problems)
    return patch


def _body(data: bytes, path: str, files: Files) -> tuple[Node | None, list[Problem]]:
    """What a file holds, without what the schema's rules for `patch` forbid."""
    try:
        root, problems = yaml_reader.read(decode(data, path), files.environ)
    except ConfigError as exc:
        return None, exc.problems
    if root is None:
        return None, problems or [Problem(1, 1, "the file is empty", "it holds the patch itself")]
    body, more = validation.check(root, *validation.PATCH)
    return body, problems + more


def _patch(body: Node, words: dict[str, str]) -> tuple[Patch | None, list[Problem]]:
    is_list = isinstance(body.value, list)
    patch = Patch(tuple(body.plain()) if is_list else body.plain(), **words)
    if is_list == (patch.type == "json"):
        return patch, []
    if is_list:
        message, hint = "a list is a patch of type json", "write `type: json` beside it"
    else:
        message, hint = "a patch of type json is a list", "write `- {op: ..., path: ...}`"
    return None, [Problem(body.line, body.column, message, hint)]
