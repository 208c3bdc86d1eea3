"""Fuzz `krelay.config`: any bytes are a Config or a UsageError that a person can read."""

from __future__ import annotations

import json
from unittest.mock import patch

from krelay.config.changes import changes
from krelay.config.diff import diff
from krelay.config.load import load, parse_target
from krelay.config.parsed_file import MAX_FORWARDS
from krelay.config.schema import load_schema
from krelay.config.yaml_reader import Node, read
from krelay.errors import ConfigError, UsageError
from krelay.model import Config

ENVIRON = {"HOME": "/home/me", "PORT": "8080", "EMPTY": "", "TEXT": "a: b", "BYTES": "\udcff"}
SEPARATOR = b"\0"
"""Separates the files of one input."""

_LONG = 8
"""Length from which a text is not in an error by chance."""
_WORDS = (json.dumps(load_schema()), *ENVIRON)

_files: dict[str, bytes] = {}


def _read(path: str, *, within: float = 0.0) -> bytes:
    """Return a file of the input; no file of this machine is read."""
    try:
        return _files[path.rpartition("/")[2]]
    except KeyError:
        raise UsageError(f"cannot read {path!r}: no such file", hint="name a file") from None


def config_yaml(data: bytes) -> None:
    """Load a krelay.yaml, and two files that it may name: `a.yaml` and `b.txt`."""
    main, *others = data.split(SEPARATOR, 2)
    _files.clear()
    _files.update(zip(("a.yaml", "b.txt"), others, strict=False))
    _load("krelay.yaml", main)


def config_txt(data: bytes) -> None:
    """Load a targets.txt, and parse its first line as a command line."""
    _files.clear()
    _load("targets.txt", data)
    words = data.partition(b"\n")[0].decode(errors="replace").split()
    try:
        parse_target(words)
    except UsageError as exc:
        _readable(exc)


def _load(path: str, data: bytes) -> None:
    try:
        with patch("krelay.config.files.read", _read):
            config = load(path, environ=ENVIRON, text=data)
    except ConfigError as exc:
        assert exc.problems
        _readable(exc)
        _secretive(exc, data)
        return
    assert isinstance(config, Config)
    assert config.targets
    assert len({target.name for target in config.targets}) == len(config.targets)
    assert all(0 <= (port.local or 0) < 65_536 for t in config.targets for port in t.ports)
    plan = diff(None, config)
    assert len(plan.pairs) == sum(len(target.ports) for target in config.targets)
    assert len(plan.pairs) <= MAX_FORWARDS
    assert list(changes(plan, live=lambda _: 0, carried=lambda _: 0, drain=0.0))
    assert not diff(config, config)


def _secretive(exc: ConfigError, data: bytes) -> None:
    """Check that an error shows no text that only secrets have."""
    root, _ = read(data.decode(errors="replace"), ENVIRON)
    secret, shown = _texts(root) if root else (set(), set())
    said = "\n".join(exc.report())
    for text in secret:
        if len(text) >= _LONG and not any(text in other for other in shown):
            assert text not in said, text


def _texts(node: Node) -> tuple[set[str], set[str]]:
    """Return the texts of secret values, and those of other values and keys."""
    secret: set[str] = set()
    shown: set[str] = set(_WORDS)
    left = [node]
    while left:
        node = left.pop()
        if isinstance(node.value, dict):
            shown.update(node.value)
            left += node.value.values()
        elif isinstance(node.value, list):
            left += node.value
        else:
            (secret if node.secret else shown).add(str(node.value))
    return secret, shown


def _readable(exc: UsageError | ConfigError) -> None:
    """Check that each line of an error fits on a terminal, without control characters."""
    for line in exc.report():
        assert len(line) < 2_000, len(line)
        assert line.isprintable(), repr(line)
