"""A file -> Config: read, parse, check; every problem at once, and nothing but these two ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from krelay.config import include, targets_txt
from krelay.config.conflicts import Claim, conflicts
from krelay.config.files import STDIN, Files, find
from krelay.config.line import Word, parse_line
from krelay.config.part import join
from krelay.config.validation import MAX_PROBLEMS
from krelay.errors import ConfigError, Problem, UsageError
from krelay.model import LOOPBACK, Config, Target


def load(path: str | None, *, environ: Mapping[str, str], text: bytes | None = None) -> Config:
    """The config at `path`; at ./krelay.yaml or ./krelay.yml where that is None. Blocks.

    Args:
        path: a file in either format, or `-` for `text`.
        environ: what `${VAR}` is looked up in.
        text: the content, where it has been read already (standard input).

    Raises:
        UsageError: there is no such file, or it cannot be read.
        ConfigError: the file is wrong, or one that it names; carries every problem.
    """
    path = find(path)
    files = Files(environ)
    data = files.main(path, text)
    return _config(data, "<stdin>" if path == STDIN else path, files)


def parse(text: str, path: str, environ: Mapping[str, str]) -> Config:
    """The config that the text says, and the files that it names: this blocks as well.

    `path` is for messages, for the directory of those files, and for a draw in what it is.

    Raises:
        ConfigError: the text is wrong, or a file that it names; carries every problem.
    """
    return _config(text, path, Files(environ))


def parse_target(
    words: Sequence[str],
    *,
    namespace: str | None = None,
    context: str | None = None,
    listen: str = LOOPBACK,
) -> Target:
    """The target of a command line: `TYPE/NAME PORT...`, with `-n` and `-l` anywhere in it.

    Raises:
        UsageError: it is not one; says the first thing that is wrong.
    """
    line, flaws = parse_line([Word(word) for word in words])
    if line is None:
        raise UsageError(flaws[0].message, hint=flaws[0].hint)
    target = targets_txt.target_of(line, namespace=namespace, context=context, listen=listen)
    claims = [Claim(target, port, 0, 0) for port in target.ports]
    for _, later in conflicts(claims):
        raise UsageError(f"`{later}` is there twice", hint="give one of them another local port")
    return target


def _config(content: bytes | str, path: str, files: Files) -> Config:
    config, problems = join(include.read(content, path, files))
    if problems:
        raise _error(path, problems, files.paths)
    return dataclasses.replace(config, files=files.paths)


def _error(path: str, problems: list[Problem], files: tuple[str, ...]) -> ConfigError:
    """The problems in their order; what an alias repeats is one, and there is an end to them."""
    own = (dataclasses.replace(p, path=None) if p.path == path else p for p in problems)
    found = ConfigError(path, list(dict.fromkeys(own))).problems
    if len(found) > MAX_PROBLEMS:
        message = f"more problems from here on; the first {MAX_PROBLEMS} are told"
        found[MAX_PROBLEMS:] = [
            dataclasses.replace(found[MAX_PROBLEMS], message=message, hint=None)
        ]
    return ConfigError(path, found, files=files)
