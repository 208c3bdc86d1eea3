"""Sources of a Config: a file, a command line or lines of a program, each under its options.

Each source has `file`, the path to watch or None, and `load()`, which returns its Config or raises
UsageError or ConfigError.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from krelay.config import files
from krelay.config.build import exposure
from krelay.config.grammar import (
    ParseError,
    parse_line,
    parse_listen,
    parse_namespace,
    parse_port,
    quote,
    split,
    target_of,
)
from krelay.config.load import load, parse_target
from krelay.config.parsed_file import ListenAddress, conflicts, not_direct, unreachable
from krelay.config.validation import MAX_PROBLEMS
from krelay.errors import ConfigError, Problem, UsageError
from krelay.model import (
    LOOPBACK,
    PROXY_PORT,
    AgentConfig,
    Check,
    CheckKind,
    Config,
    Kind,
    Origin,
    Patch,
    Protocol,
    Target,
    Via,
    proxy_target,
)

PROXY_WORD = "proxy"
"""What a command line says instead of a target to run a proxy."""

_SHOWN = 20
"""Targets that an error names."""


@dataclass(frozen=True, slots=True)
class Overlay:
    """Options of the command line; None or empty leaves what the file says.

    `namespace` is for targets without one, and `agent_namespace` for the agent. `listens` replaces
    the default address of targets, each of which listens on all of them. `insecure` lets proxies be
    open to other machines without a password. `via` replaces the way of every target. `flags` says
    whether the command has flags for the agent's image and patches.
    """

    context: str | None = None
    namespace: str | None = None
    listens: tuple[str, ...] = ()
    image: str | None = None
    agent_namespace: str | None = None
    idle_timeout: float | None = None
    patches: tuple[Patch, ...] = field(default=(), repr=False)
    insecure: bool = False
    via: Via | None = None
    flags: bool = False

    def over(self, config: Config, words: tuple[str, ...] = ()) -> Config:
        """Return the config with these options applied; `words` are those of its `origin`.

        Raises:
            UsageError: a proxy would be open to other machines.
        """
        agent = dataclasses.replace(
            config.agent,
            namespace=self.agent_namespace or config.agent.namespace,
            image=self.image or config.agent.image,
            idle_timeout=self.idle_timeout or config.agent.idle_timeout,
            patches=(*config.agent.patches, *self.patches),
        )
        config = dataclasses.replace(
            config,
            context=self.context or config.context,
            agent=agent,
            targets=tuple(map(self._target, config.targets)),
            origin=Origin(
                (*words, *(("--via", self.via.value) if self.via else ())),
                self.namespace,
                self.flags,
            ),
        )
        for target in config.targets:
            if message := exposure(target):
                hint = "`krelay proxy --username` sets them; `--insecure` allows it without"
                raise UsageError(f"{target.name}: {message}", hint=hint)
        if self.via is Via.DIRECT:
            for problem in not_direct(config.targets):
                raise UsageError(problem.message, hint="leave out `--via direct`")
        return config

    def _target(self, target: Target) -> Target:
        replaced = self.listens and target.listen == LOOPBACK
        return dataclasses.replace(
            target,
            namespace=target.namespace or self.namespace,
            context=self.context or target.context,
            listen=",".join(self.listens) if replaced else target.listen,
            insecure=self.insecure or target.insecure,
            via=self.via or target.via,
        )


@dataclass(frozen=True, slots=True)
class Selection:
    """A file, or some of its targets, under `overlay`.

    `path` is None for the file of this directory. `text` is its content if it can be read only
    once. `names` selects targets; empty selects all. `embedded` runs the agent on this machine.
    `listen` is the address of lines of a targets.txt that name none. `context` and `namespace`
    replace those of the file and its `defaults`, not those of a target or an included file.
    """

    path: str | None
    names: tuple[str, ...] = ()
    embedded: bool = False
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    text: bytes | None = field(default=None, repr=False)
    overlay: Overlay = Overlay()
    listen: str = LOOPBACK
    context: str | None = None
    namespace: str | None = None

    @property
    def file(self) -> str | None:
        """The path of the file; None for standard input or a pipe, which is read once."""
        if self.path == files.STDIN or self.text is not None:
            return None
        return files.find(self.path)

    def load(self) -> Config:
        """Return what the file says now. Blocks.

        Raises:
            UsageError: the file cannot be read, or has no such target, or `namespace` is no name.
            ConfigError: the file is invalid; carries every problem.
        """
        try:
            namespace = parse_namespace(self.namespace) if self.namespace else None
        except ParseError as error:
            raise UsageError(error.message, hint=error.hint) from error
        given = {"context": self.context, "namespace": namespace}
        config = load(
            self.path,
            environ=self.environ,
            text=self.text,
            listen=self.listen,
            general={field: value for field, value in given.items() if value},
        )
        if self.names:
            config = dataclasses.replace(config, targets=_chosen(config, self.names))
        if self.embedded:
            agent = dataclasses.replace(config.agent, embedded=True)
            config = dataclasses.replace(config, agent=agent)
            _check_embedded(config)
        config = self.overlay.over(config, ("-f", self.file or files.STDIN, *self.names))
        if namespace is None:
            return config
        return dataclasses.replace(
            config, origin=dataclasses.replace(config.origin, namespace=namespace)
        )


@dataclass(frozen=True, slots=True)
class Words:
    """The target of a command line."""

    words: tuple[str, ...]
    overlay: Overlay = Overlay()

    file: ClassVar[None] = None

    def load(self) -> Config:
        """Return the target, named by itself and used as by `kubectl port-forward`: no check opens
        a connection that no client asked for, and a pod need not be ready. What kubectl reaches in
        a pod is reached directly, as by kubectl.
        """
        target = parse_target(self.words)
        tcp = all(port.protocol is not Protocol.UDP for port in target.ports)
        target = dataclasses.replace(
            target,
            name=str(target),
            check=Check(CheckKind.NONE),
            ready=False,
            via=Via.DIRECT if target.kind is Kind.POD and tcp else Via.AUTO,
        )
        return self.overlay.over(Config((target,), path="the command line"), self.words)


@dataclass(frozen=True, slots=True)
class Proxy:
    """The proxy of a command line. `listen` is `ADDRESS:PORT`, or one of the two."""

    listen: str = f"{LOOPBACK}:{PROXY_PORT}"
    credentials: tuple[str, str] | None = field(default=None, repr=False)
    embedded: bool = False
    overlay: Overlay = Overlay()

    file: ClassVar[None] = None

    def load(self) -> Config:
        """Return the proxy."""
        address, colon, port = self.listen.rpartition(":")
        if not colon and not port.isdigit():
            address, port = port, str(PROXY_PORT)
        try:
            number = int(parse_port(f"{port}:1").local or 0)
            listen = parse_listen(address) if address else LOOPBACK
        except ParseError as error:
            raise UsageError(error.message, hint="for example `127.0.0.1:1080`") from error
        target = proxy_target("proxy", number, listen=listen, credentials=self.credentials)
        agent = AgentConfig(embedded=self.embedded)
        return self.overlay.over(
            Config((target,), agent=agent, path="the command line"), (PROXY_WORD,)
        )


@dataclass(frozen=True, slots=True)
class Lines:
    """Targets that a program names: `targets` has names and lines of targets.txt.

    The other fields are what a file would say under the same keys. `path` replaces a file's path
    in messages.
    """

    targets: tuple[tuple[str, str], ...]
    context: str | None = None
    namespace: str | None = None
    embedded: bool = False
    path: str = "<lines>"

    file: ClassVar[None] = None

    def load(self) -> Config:
        """Return the targets."""
        targets: dict[str, Target] = {}
        addresses: list[ListenAddress] = []
        problems: list[Problem] = []
        for name, text in self.targets:
            line, errors = parse_line(split(text))
            problems += [_problem(name, error.message, error.hint) for error in errors]
            if name in targets:
                problems.append(_problem(name, "defined twice", "give one another name"))
            elif line is not None:
                target = targets[name] = target_of(line, name=name, file=self.path)
                addresses += [ListenAddress(target, port, 0, 0) for port in target.ports]
        for earlier, later in conflicts(addresses):
            message = f"`{later}` is taken by {quote(earlier.target.name)}"
            hint = "leave the local port empty (`:80`) for a free one"
            problems.append(_problem(later.target.name, message, hint))
        if not self.targets:
            hint = 'name one: `"svc/nginx 8080:80"` or `web="svc/nginx :80"`'
            problems.append(Problem(0, 0, "no targets", hint))
        if problems:
            raise ConfigError(self.path, problems)
        config = Config(
            tuple(targets.values()),
            context=self.context,
            namespace=self.namespace,
            agent=AgentConfig(embedded=self.embedded),
            path=self.path,
            origin=self._origin(targets),
        )
        if self.embedded:
            _check_embedded(config)
        return config

    def _origin(self, targets: Mapping[str, Target]) -> Origin:
        """Return the only target as words; `krelay rbac` takes no more than one."""
        if len(targets) != 1:
            return Origin()
        (target,) = targets.values()
        return Origin((str(target), *map(str, target.ports)), target.namespace or self.namespace)


def named(texts: Iterable[str], by_name: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return names and lines for `Lines`.

    A line of `texts` is its own name, without comments and with single spaces; `by_name` has names.
    """
    found: list[tuple[str, str]] = []
    for text in texts:
        lines = (" ".join(word.text for word in split(line)) for line in text.splitlines())
        found += [(line, line) for line in lines if line]
    return (*found, *by_name.items())


def _problem(name: str, message: str, hint: str | None) -> Problem:
    return Problem(0, 0, f"{quote(name)}: {message}", hint)


def _chosen(config: Config, names: tuple[str, ...]) -> tuple[Target, ...]:
    """Return the targets with these names, in the file's order."""
    known = [target.name for target in config.targets]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            some = ", ".join(map(quote, known[:_SHOWN])) + ", …" * (len(known) > _SHOWN)
            hint = f"did you mean {quote(near[0])}?" if near else f"it has: {some}"
            raise UsageError(f"{config.path} has no target {quote(name)}", hint=hint)
    return tuple(target for target in config.targets if target.name in names)


def _check_embedded(config: Config) -> None:
    """Check that an embedded agent, which runs on this machine, can reach every target."""
    if problems := list(unreachable(config.targets)):
        raise ConfigError(config.path, problems[:MAX_PROBLEMS], files=config.files)
