"""A file -> Config: read, parse, check; every problem at once, and nothing but these two ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

from krelay.config import build, document, source, targets_txt, validation
from krelay.config.conflicts import Claim, conflicts
from krelay.config.flaw import quote
from krelay.config.line import Word, parse_line
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
        ConfigError: the file is wrong; carries every problem.
    """
    path = source.find(path)
    data = source.read(path) if text is None else text
    shown = "<stdin>" if path == source.STDIN else path
    return parse(source.decode(data, shown), shown, environ)


def parse(text: str, path: str, environ: Mapping[str, str]) -> Config:
    """The config that the text says; `path` is for messages, and for a draw in what it is.

    Raises:
        ConfigError: the text is wrong; carries every problem.
    """
    text = source.clean(text, path)
    if source.is_targets_txt(text, path):
        config, claims, problems = targets_txt.read(text, path)
    else:
        config, claims, problems = _read_yaml(text, path, environ)
    overlaps = islice(conflicts(claims), MAX_PROBLEMS + 1)
    problems += [_conflict(earlier, later) for earlier, later in overlaps]
    if problems:
        raise _error(path, problems)
    return config


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


def _read_yaml(
    text: str, path: str, environ: Mapping[str, str]
) -> tuple[Config, list[Claim], list[Problem]]:
    root, problems = document.read(text, environ)
    if root is None:
        empty = Problem(
            1, 1, "the file is empty", "krelay.yaml.example is a tour of what it can say"
        )
        raise _error(path, problems or [empty])
    if not isinstance(root.value, dict):
        message = "neither a krelay.yaml nor a targets.txt"
        hint = "start with `apiVersion: krelay/v1`, or write lines such as `svc/nginx 8080:80`"
        raise _error(path, [*problems, Problem(root.line, root.column, message, hint)])
    left, more = validation.check(root)
    if left is None:
        raise _error(path, [*problems, *more])
    config, claims, rest = build.build(left, path)
    return config, claims, [*problems, *more, *rest]


def _error(path: str, problems: list[Problem]) -> ConfigError:
    """The problems in their order; what an alias repeats is one, and there is an end to them."""
    found = ConfigError(path, list(dict.fromkeys(problems))).problems
    if len(found) > MAX_PROBLEMS:
        first = found[MAX_PROBLEMS]
        message = f"more problems from here on; the first {MAX_PROBLEMS} are told"
        found[MAX_PROBLEMS:] = [Problem(first.line, first.column, message)]
    return ConfigError(path, found)


def _conflict(earlier: Claim, later: Claim) -> Problem:
    place = f"target {quote(earlier.target.name)}, line {earlier.line}"
    if str(earlier) == str(later):
        message = f"`{later}` is taken by {place}"
    else:
        message = f"`{later}` overlaps `{earlier}` of {place}"
    hint = "give one of them another local port"
    if earlier.port.protocol is None or later.port.protocol is None:
        hint += ", or say `/udp` if one of them is"
    return Problem(later.line, later.column, message, hint)
