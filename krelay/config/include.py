"""A file, and those that it includes, and those that they include -> a Part for each of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

from krelay.config import build, schema, targets_txt, validation, yaml_reader
from krelay.config.files import Files, clean, decode, is_targets_txt
from krelay.config.parse_error import Flaw, quote
from krelay.config.part import Part
from krelay.config.yaml_reader import Node
from krelay.errors import ConfigError, Problem
from krelay.model import Config

# What a file says of its own targets. All else is about the program, which is one for all files.
_OF_TARGETS = {"apiVersion", "context", "namespace", "defaults", "include", "targets"}


def read(content: bytes | str, path: str, files: Files) -> list[Part]:
    """The part of each file, in the order of their targets: a file's own come first."""
    return list(_Reader(path, files).parts(content, path))


class _Reader:
    def __init__(self, main: str, files: Files) -> None:
        self._files = files
        self._known = {os.path.realpath(main): "everything starts from it"}

    def parts(self, content: bytes | str, path: str, by: Part | None = None) -> Iterator[Part]:
        """The part of a file, then those of the files that it includes; `by` includes it."""
        part = self._part(content, path, by)
        yield part
        for entry in part.include:
            try:
                named, data = self._open(entry, path)
            except Flaw as flaw:
                part.problems.append(entry.problem(flaw))
            else:
                yield from self.parts(data, named, part)

    def _open(self, entry: Node, by: str) -> tuple[str, bytes]:
        path, data = self._files.named(entry.plain(), by)
        real = os.path.realpath(path)
        if real in self._known:
            message = f"{quote(entry.plain())} is included a second time"
            raise Flaw(message, hint=f"{self._known[real]}; remove this entry")
        self._known[real] = f"{by} includes it on line {entry.line}"
        return path, data

    def _part(self, content: bytes | str, path: str, by: Part | None) -> Part:
        try:
            text = decode(content, path) if isinstance(content, bytes) else clean(content, path)
        except ConfigError as exc:
            return Part(Config((), path=path), problems=exc.problems)
        if is_targets_txt(text, path):
            return targets_txt.read(text, path, **(by.everyone if by else {}))
        return self._yaml(text, path, included=by is not None)

    def _yaml(self, text: str, path: str, *, included: bool) -> Part:
        root, problems = yaml_reader.read(text, self._files.environ)
        nothing = Part(Config((), path=path), problems=problems)
        if root is None:
            hint = "krelay.yaml.example is a tour of what it can say"
            if not problems:
                problems.append(Problem(1, 1, "the file is empty", hint))
            return nothing
        if not isinstance(root.value, dict):
            message = "neither a krelay.yaml nor a targets.txt"
            hint = "start with `apiVersion: krelay/v1`, or write lines such as `svc/nginx 8080:80`"
            problems.append(Problem(root.line, root.column, message, hint))
            return nothing
        if included:
            root = _own(root, problems)
        left, more = validation.check(root)
        problems += more
        if left is None:
            return nothing
        part = build.build(left, path, self._files)
        part.problems[:0] = problems
        return part


def _own(root: Node, problems: list[Problem]) -> Node:
    """An included file without what is not for it to say, which are problems."""
    assert isinstance(root.value, dict)
    foreign = (schema.schema()["properties"].keys() - _OF_TARGETS) & root.value.keys()
    for key in foreign:
        message = f"{quote(key)} belongs in the file that includes this one"
        problems.append(Problem(*root.keys[key], message, "it is about krelay: move it there"))
    if "include" in root.value and "targets" not in root.value:
        message = "an included file has no `targets`"
        hint = "add some, or include its files in its place"
        problems.append(Problem(root.line, root.column, message, hint))
    kept = {key: node for key, node in root.value.items() if key not in foreign}
    return dataclasses.replace(root, value=kept)
