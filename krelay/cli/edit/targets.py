"""Add a target to the file, and remove one from it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from krelay.cli.edit.ports import look_up
from krelay.cli.edit.write import ChangedError, create, replace
from krelay.cli.options import Cluster
from krelay.cli.output import note
from krelay.config import edit, files, parse
from krelay.config.grammar import Line, ParseError, Word, parse_line, parse_resource, quote
from krelay.errors import ConfigError, NotReadyError, UsageError
from krelay.model import Config, Kind, Target

T = TypeVar("T")

_APPLY_DEADLINE = 600.0
_ATTEMPTS = 20
"""Attempts to edit a file that others edit at the same time."""
_NO_NAME = re.compile(r"[^a-z0-9._-]+")
_MOST = 63


def add(
    path: str | None, words: Sequence[str], name: str | None, cluster: Cluster, *, timeout: float
) -> int:
    """Write a target into the file, and wait until a running krelay relays it.

    `words` are TYPE/NAME and its ports; without ports, the object in the cluster says which.

    Raises:
        UsageError: the target or its name cannot be added; the file is as it was.
        ConfigError: the file is invalid.
        NotReadyError: it is added, and not ready within `timeout` seconds.
    """
    result, file = _again_if_changed(lambda: _add(path, words, name, cluster))
    note(f"{file}: added {result.shown}")
    return _apply(file, result.target.name, path, timeout)


def _add(
    path: str | None, words: Sequence[str], name: str | None, cluster: Cluster
) -> tuple[_Added, str]:
    """Write a target into the file; return it, and the path of the file."""
    file = _File.open(path, cluster)
    addition = _Addition(file, name, cluster)
    try:
        kind, resource = parse_resource(words[0])
    except ParseError as error:
        raise UsageError(error.message, hint=error.hint) from error
    ports = list(words[1:])
    if not ports:
        command = " ".join(["krelay add", *([f"-f {shlex.quote(path)}"] if path else []), words[0]])
        if not kind.in_cluster:
            raise UsageError(f"`{words[0]}` has no port", hint=f"for example `{command} 8080:80`")
        # As it would be relayed, with the context and the namespace of the file.
        trial = addition.make(kind, resource, [":1"])
        ports = look_up(trial.target, trial.config, command, cluster.kubeconfig)
    result = addition.make(kind, resource, ports)
    file.write(result.text)
    return result, file.path


def _again_if_changed(edit: Callable[[], T]) -> T:
    """Return the result of `edit`, from the start if another program has edited the file meanwhile.

    Raises:
        ChangedError: that happened each time.
    """
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(ChangedError):
            return edit()
    return edit()


def remove(path: str | None, name: str) -> int:
    """Remove a target from the file, and from a running krelay.

    Raises:
        UsageError: the file has no such target, or needs it.
        ConfigError: the file is invalid.
    """
    from krelay.status.client import NotRunningError, ask

    file = _again_if_changed(lambda: _remove(path, name))
    note(f"{file}: removed {name}")
    with contextlib.suppress(NotRunningError):
        ask(file, "POST", "/v1/reload", timeout=_APPLY_DEADLINE)
    return 0


def _remove(path: str | None, name: str) -> str:
    """Remove a target from the file; return the path of the file."""
    from krelay.config.sources import Selection

    file = _File.open(path, None)
    config = file.config
    if config is None or name not in {target.name for target in config.targets}:
        Selection(file.path, (name,), environ=os.environ).load()
    assert config is not None
    text = edit.remove(file.text, name)
    try:
        after = parse(text, file.path, os.environ)
    except ConfigError as exc:
        hint = "a file needs one: `krelay down` stops krelay"
        raise UsageError(f"{quote(name)} is the only target of {file.path}", hint=hint) from exc
    kept = tuple(target for target in config.targets if target.name != name)
    if after != dataclasses.replace(config, targets=kept):
        raise UsageError(f"krelay cannot remove {quote(name)} from {file.path}")
    file.write(text)
    return file.path


@dataclasses.dataclass(frozen=True, slots=True)
class _File:
    """The file before the edit. `config` is None if it has no targets; then `error` says so, and
    whatever else is wrong with a file that exists."""

    path: str
    text: str
    content: bytes | None
    config: Config | None = None
    error: ConfigError | None = None

    @classmethod
    def open(cls, path: str | None, cluster: Cluster | None) -> _File:
        """Read the file. With `cluster`, a file that does not exist starts with comments only."""
        from krelay.importers import starter

        if path == files.STDIN or files.read_once(path) is not None:
            raise UsageError("only a file can be edited", hint="`-f` names one")
        if cluster is not None:
            found = next(filter(os.path.exists, files.NAMES), files.NAMES[0])
            path = found if path is None else path
            if not os.path.lexists(path):
                lines = path.endswith(".txt")
                text = "" if lines else starter(None, context=cluster.context).text
                return cls(path, text, None)
        path = files.find(path)
        content = files.read(path)
        clean = files.decode(content, path)
        try:
            return cls(path, content.decode(), content, parse(clean, path, os.environ))
        except ConfigError as exc:
            if cluster is None or not edit.lacks_targets(clean):
                raise
            return cls(path, content.decode(), content, error=exc)

    @property
    def is_targets_txt(self) -> bool:
        """Whether each line is a target."""
        return files.is_targets_txt(files.clean(self.text, self.path), self.path)

    def write(self, text: str) -> None:
        """Write the file; beside a new krelay.yaml, also the schema that it names."""
        if self.content is not None:
            replace(self.path, self.content, text.encode())
            return
        create(self.path, text.encode())
        if not self.is_targets_txt:
            from krelay.config import schema_text
            from krelay.config.schema import FILE

            schema = Path(self.path).parent / FILE
            if not schema.exists():
                with contextlib.suppress(ChangedError):  # another `krelay add` did it
                    create(str(schema), schema_text().encode())


@dataclasses.dataclass(frozen=True, slots=True)
class _Added:
    """The file after the edit; `shown` is the target as it is written."""

    text: str
    config: Config
    target: Target
    shown: str


@dataclasses.dataclass(frozen=True, slots=True)
class _Addition:
    file: _File
    name: str | None
    cluster: Cluster

    def make(self, kind: Kind, resource: str, ports: Sequence[str]) -> _Added:
        """Return the file with the target. Raises UsageError."""
        line, errors = parse_line([Word(word) for word in (f"{kind}/{resource}", *ports)])
        if line is None:
            raise UsageError(errors[0].message, hint=errors[0].hint)
        if self.file.is_targets_txt:
            return self._line(line)
        name = self.name or _name(kind, resource)
        before = self.file.config
        if before is not None and any(target.name == name for target in before.targets):
            hint = f"give it another with `--name`, or edit {self.file.path}"
            raise UsageError(f"{self.file.path} has a target {quote(name)} already", hint=hint)
        value = self._value(line)
        text = edit.insert(self.file.text, name, value)
        shown = f"{name}: {value if isinstance(value, str) else str(line)}"
        return self._checked(text, name, line, shown)

    def _line(self, line: Line) -> _Added:
        if self.name or self.cluster.context:
            raise UsageError(
                f"a line of {self.file.path} has no name and no context",
                hint=f"`krelay import {shlex.quote(self.file.path)}` makes a krelay.yaml of it",
            )
        line = dataclasses.replace(line, namespace=self.cluster.namespace)
        before = self.file.config
        if before is not None and any(target.name == str(line) for target in before.targets):
            raise UsageError(f"{self.file.path} has the line `{line}` already")
        return self._checked(
            edit.append_line(self.file.text, str(line)), str(line), line, str(line)
        )

    def _value(self, line: Line) -> edit.Value:
        """Return the target as the file writes it: a line, unless it has its own context."""
        namespace, context = self.cluster.namespace, self.cluster.context
        if self.file.content is None:
            context = None  # the new file names it
        config = self.file.config
        if config is not None and context == config.context:
            context = None
        ports = [str(port) for port in line.ports]
        if context is None:
            scope = ["-n", namespace] if namespace else []
            return " ".join([*scope, f"{line.kind}/{line.resource}", *ports])
        more = {"namespace": namespace} if namespace else {}
        return {
            "target": f"{line.kind}/{line.resource}",
            "ports": [int(port) if port.isdigit() else port for port in ports],
            **more,
            "context": context,
        }

    def _checked(self, text: str, name: str, line: Line, shown: str) -> _Added:
        """Return the edit, if it adds this target and nothing else."""
        before = self.file.config
        try:
            after = parse(text, self.file.path, os.environ)
        except ConfigError as exc:
            if self.file.error is not None:
                raise self.file.error from exc
            problem = exc.problems[0]
            hint = problem.hint
            if hint and hint.startswith("give one of them another local port"):
                hint = f"take another local port, or a free one: `:{line.ports[0].remote}`"
            raise UsageError(problem.message, hint=hint) from exc
        targets = {target.name: target for target in after.targets}
        target = targets.pop(name, None)
        if (
            target is None
            or (target.kind, target.resource, target.ports)
            != (line.kind, line.resource, line.ports)
            or (before is not None and not _same(before, after, targets))
        ):
            raise UsageError(
                f"krelay cannot edit {self.file.path}", hint=f"add {quote(shown, 200)}"
            )
        return _Added(text, after, target, shown)


def _same(before: Config, after: Config, kept: Mapping[str, Target]) -> bool:
    """Return whether `after` says what `before` says, with the targets `kept`."""
    return before.targets == tuple(kept.values()) and before == dataclasses.replace(
        after, targets=before.targets
    )


def _name(kind: Kind, resource: str) -> str:
    """Return a name for a target: its object's, the first label of a host, or the address."""
    text = resource.partition(".")[0] if kind is Kind.HOST else resource
    return _NO_NAME.sub("-", text.lower())[:_MOST].strip("-._") or "target"


# -- a running krelay ------------------------------------------------------------------------------


def _apply(file: str, name: str, path: str | None, timeout: float) -> int:
    """Have the running krelay relay the target, and print its addresses once it is ready."""
    from krelay.cli.client_commands import ask_snapshot, print_routes, wait_ready
    from krelay.status.client import NotRunningError, ask

    try:
        ask(file, "POST", "/v1/reload", timeout=_APPLY_DEADLINE)
    except NotRunningError:
        command = f"krelay up -f {shlex.quote(path)}" if path else "krelay up"
        note(f"krelay is not running for {file}: `{command}` relays it")
        return 0
    if not ask_snapshot(file, [name])["forwards"]:
        note(f"krelay relays only some targets of {file}, without {name}")
        return 0
    try:
        print_routes(wait_ready(file, [name], timeout=timeout), [name])
    except NotReadyError as exc:
        print_routes(ask_snapshot(file), [name])
        message = f"added, but not ready after {timeout:g} s"
        raise NotReadyError(message, exc.unready) from exc
    return 0
