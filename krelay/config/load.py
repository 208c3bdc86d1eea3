"""Load a file and those that it includes: a Config, or every problem of all of them."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from krelay.config import build, validation, yaml_reader
from krelay.config.files import STDIN, Files, clean, decode, find, is_targets_txt
from krelay.config.grammar import ParseError, Word, parse_line, quote, split, target_of
from krelay.config.parsed_file import MAX_FORWARDS, ListenAddress, ParsedFile, conflicts, join
from krelay.config.schema import load_schema
from krelay.config.validation import MAX_PROBLEMS
from krelay.config.yaml_reader import Node
from krelay.errors import ConfigError, Problem, UsageError
from krelay.model import LOOPBACK, Config, Target
from krelay.text import one_line

logger = logging.getLogger("krelay.config")

# The keys of an included file; the others configure krelay as a whole.
_OF_TARGETS = {"apiVersion", "context", "namespace", "defaults", "include", "targets"}

_warned: set[tuple[str, str]] = set()
"""Files and their old keys that this process has warned about."""


def load(
    path: str | None,
    *,
    environ: Mapping[str, str],
    text: bytes | None = None,
    listen: str = LOOPBACK,
    general: Mapping[str, str] | None = None,
) -> Config:
    """Load the config at `path`, by default ./krelay.yaml or ./krelay.yml. Blocks.

    Args:
        path: a krelay.yaml, a targets.txt, or `-` for `text`.
        environ: the values of `${VAR}`.
        text: the content, if it has been read already (standard input, a pipe).
        listen: the address of lines of a targets.txt that name none.
        general: a `context` and a `namespace`, instead of those of the file and its `defaults`.

    Raises:
        UsageError: the file does not exist, or cannot be read.
        ConfigError: the file or one that it names is invalid; carries every problem.
    """
    path = find(path)
    files = Files(environ)
    data = files.main(path, text)
    return _config(data, "<stdin>" if path == STDIN else path, files, listen, general)


def parse(text: str, path: str, environ: Mapping[str, str]) -> Config:
    """Parse the text of a config, and the files that it names. Blocks.

    `path` appears in messages, locates those files, and decides between the two formats if the
    content does not.

    Raises:
        ConfigError: the text or a file that it names is invalid; carries every problem.
    """
    return _config(text, path, Files(environ))


def parse_target(
    words: Sequence[str],
    *,
    namespace: str | None = None,
    context: str | None = None,
    listen: str = LOOPBACK,
) -> Target:
    """Parse the target of a command line: `TYPE/NAME PORT...`, with `-n` and `-l` anywhere in it.

    Raises:
        UsageError: the words are not a target; names the first problem.
    """
    line, errors = parse_line([Word(word) for word in words])
    if line is None:
        raise UsageError(errors[0].message, hint=errors[0].hint)
    target = target_of(line, namespace=namespace, context=context, listen=listen)
    for _, later in conflicts(ListenAddress(target, port, 0, 0) for port in target.ports):
        raise UsageError(f"`{later}` is used twice", hint="give one of them another local port")
    return target


def _config(
    content: bytes | str,
    path: str,
    files: Files,
    listen: str = LOOPBACK,
    general: Mapping[str, str] | None = None,
) -> Config:
    general = general or {}
    config, problems = join(list(_Reader(path, files, listen, general).files(content, path)))
    if problems:
        raise _error(path, problems, files.paths)
    return dataclasses.replace(
        config,
        files=files.paths,
        context=general.get("context", config.context),
        namespace=general.get("namespace", config.namespace),
    )


def _error(path: str, problems: list[Problem], files: tuple[str, ...]) -> ConfigError:
    """Return the problems in order, at most MAX_PROBLEMS, and those of a YAML alias only once."""
    own = (dataclasses.replace(p, path=None) if p.path == path else p for p in problems)
    found = ConfigError(path, list(dict.fromkeys(own))).problems
    if len(found) > MAX_PROBLEMS:
        message = f"more problems from here on; only the first {MAX_PROBLEMS} are shown"
        found[MAX_PROBLEMS:] = [
            dataclasses.replace(found[MAX_PROBLEMS], message=message, hint=None)
        ]
    return ConfigError(path, found, files=files)


class _Reader:
    def __init__(self, main: str, files: Files, listen: str, general: Mapping[str, str]) -> None:
        self._files = files
        self._general = general
        self._defaults = {"listen": listen, **general}
        self._known = {os.path.realpath(main): "it is the first file"}

    def files(
        self, content: bytes | str, path: str, by: ParsedFile | None = None
    ) -> Iterator[ParsedFile]:
        """Yield a file, then those that it includes; `by` is the file that includes it."""
        file = self._parse(content, path, by)
        yield file
        for entry in file.include:
            try:
                named, data = self._open(entry, path)
            except ParseError as error:
                file.problems.append(entry.problem(error))
            else:
                yield from self.files(data, named, file)

    def _open(self, entry: Node, by: str) -> tuple[str, bytes]:
        path, data = self._files.named(entry.plain(), by)
        real = os.path.realpath(path)
        if real in self._known:
            message = f"{quote(entry.plain())} is included a second time"
            raise ParseError(message, hint=f"{self._known[real]}; remove this entry")
        self._known[real] = f"{by} includes it on line {entry.line}"
        return path, data

    def _parse(self, content: bytes | str, path: str, by: ParsedFile | None) -> ParsedFile:
        try:
            text = decode(content, path) if isinstance(content, bytes) else clean(content, path)
        except ConfigError as exc:
            return ParsedFile(Config((), path=path), problems=exc.problems)
        if is_targets_txt(text, path):
            return read_lines(text, path, **(by.defaults if by else self._defaults))
        return self._yaml(text, path, included=by is not None)

    def _yaml(self, text: str, path: str, *, included: bool) -> ParsedFile:
        root, problems = yaml_reader.read(text, self._files.environ)
        invalid = ParsedFile(Config((), path=path), problems=problems)
        if root is None:
            if not problems:
                hint = "`krelay init --force` writes an example"
                problems.append(Problem(1, 1, "the file is empty", hint))
            return invalid
        if not isinstance(root.value, dict):
            message = "neither a krelay.yaml nor a targets.txt"
            hint = "start with `apiVersion: krelay/v1`, or write lines such as `svc/nginx 8080:80`"
            problems.append(Problem(root.line, root.column, message, hint))
            return invalid
        if included:
            root = _own(root, problems)
        root, renamed = validation.rename_keys(root, problems)
        for line, old, new in renamed:
            if (path, old) not in _warned:
                _warned.add((path, old))
                logger.warning(
                    "%s:%d: `%s` is now called `%s`; rename it, the old name still works",
                    *(one_line(path), line, old, new),
                )
        valid, more = validation.check(root)
        problems += more
        if valid is None:
            return invalid
        file = build.build(valid, path, self._files, {} if included else self._general)
        file.problems[:0] = problems
        return file


def _own(root: Node, problems: list[Problem]) -> Node:
    """Return an included file without the keys that only the first file may have."""
    assert isinstance(root.value, dict)
    foreign = (load_schema()["properties"].keys() - _OF_TARGETS) & root.value.keys()
    for key in foreign:
        message = f"{quote(key)} belongs in the file that includes this one"
        hint = "it configures krelay as a whole: move it there"
        problems.append(Problem(*root.keys[key], message, hint))
    if "include" in root.value and "targets" not in root.value:
        message = "an included file has no `targets`"
        hint = "add some, or include its files directly"
        problems.append(Problem(root.line, root.column, message, hint))
    kept = {key: node for key, node in root.value.items() if key not in foreign}
    return dataclasses.replace(root, value=kept)


def read_lines(text: str, path: str, **defaults: Any) -> ParsedFile:
    """Read a targets.txt, the Go krelay's file: one target a line, named by its line.

    `defaults` are keyword arguments of `target_of`.
    """
    problems: list[Problem] = []
    addresses: list[ListenAddress] = []
    targets: dict[str, Target] = {}
    for number, content in enumerate(text.split("\n"), start=1):
        if len(problems) > MAX_PROBLEMS:
            break  # a file can have half a million more
        words = split(content)
        if not words:
            continue
        line, errors = parse_line(words)
        problems += [error.at(number, 1) for error in errors]
        if line is None:
            continue
        column = words[0].offset + 1
        target = target_of(line, place=(number, column), file=path, **defaults)
        if target.name in targets:
            hint = f"line {targets[target.name].line} says the same; keep one of them"
            problems.append(Problem(number, column, f"{quote(target.name)} is defined twice", hint))
            continue
        targets[target.name] = target
        addresses += [
            ListenAddress(target, port, number, offset + 1)
            for port, offset in zip(line.ports, line.offsets, strict=True)
        ]
        if len(addresses) > MAX_FORWARDS:
            break  # `join` reports it
    if not targets and not problems:
        problems.append(Problem(1, 1, "no targets", "write a line such as `svc/nginx 8080:80`"))
    return ParsedFile(Config(tuple(targets.values()), path=path), addresses, problems)
