"""Overlay: what a command line says over a file, or with targets of its own instead of one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from krelay.config.grammar import parse_listen, parse_port
from krelay.config.load import parse_target
from krelay.config.parse_error import Flaw
from krelay.config.serving import unguarded, unguarded_message
from krelay.errors import UsageError
from krelay.model import (
    LOOPBACK,
    PROXY_PORT,
    AgentConfig,
    Check,
    CheckKind,
    Config,
    Patch,
    Target,
    proxy_target,
)


@dataclass(frozen=True, slots=True)
class Overlay:
    """Options of the command line; what is None or empty leaves the file's.

    `namespace` is that of targets which name none of their own. `listens` are addresses for the
    targets that listen where they do by default; each of several gets its own listener.
    `insecure`: proxies may be open to other machines without a password.
    """

    context: str | None = None
    namespace: str | None = None
    listens: tuple[str, ...] = ()
    image: str | None = None
    patches: tuple[Patch, ...] = field(default=(), repr=False)
    insecure: bool = False

    def over(self, config: Config) -> Config:
        """The config with these options over it.

        Raises:
            UsageError: a proxy would be open to other machines.
        """
        config = dataclasses.replace(
            config,
            context=self.context or config.context,
            agent=self._agent(config.agent),
            targets=tuple(at for target in config.targets for at in self._targets(target)),
        )
        for target in filter(unguarded, config.targets):
            hint = "`krelay proxy --username` asks for them; `--insecure` lets everyone in"
            raise UsageError(f"{target.name}: {unguarded_message(target)}", hint=hint)
        return config

    def _agent(self, agent: AgentConfig) -> AgentConfig:
        image = self.image or agent.image
        return dataclasses.replace(agent, image=image, patches=(*agent.patches, *self.patches))

    def _targets(self, target: Target) -> list[Target]:
        target = dataclasses.replace(
            target,
            namespace=target.namespace or self.namespace,
            context=self.context or target.context,
            insecure=self.insecure or target.insecure,
        )
        listens = self.listens if target.listen == LOOPBACK and self.listens else (target.listen,)
        return [
            dataclasses.replace(
                target,
                listen=listen,
                name=target.name if len(listens) == 1 else f"{target.name} -l {listen}",
            )
            for listen in listens
        ]


@dataclass(frozen=True, slots=True)
class Words:
    """The target of a command line, in the place of a file's."""

    words: tuple[str, ...]
    overlay: Overlay = Overlay()

    @property
    def file(self) -> None:
        """There is none."""

    def load(self) -> Config:
        """What they say. It is not probed: kubectl's own command opens no connection that nobody
        asked for, and nobody asks what state this one is in.

        Raises:
            UsageError: they name no target, or no ports of it.
        """
        target = dataclasses.replace(parse_target(self.words), check=Check(CheckKind.NONE))
        return self.overlay.over(Config((target,), path="the command line"))


@dataclass(frozen=True, slots=True)
class Proxy:
    """The proxy of a command line, in the place of a file's. `listen` is `ADDRESS:PORT`, or one
    of the two."""

    listen: str = f"{LOOPBACK}:{PROXY_PORT}"
    credentials: tuple[str, str] | None = field(default=None, repr=False)
    embedded: bool = False
    overlay: Overlay = Overlay()

    @property
    def file(self) -> None:
        """There is none."""

    def load(self) -> Config:
        """What they say.

        Raises:
            UsageError: that cannot be listened on, or not without a password.
        """
        address, colon, port = self.listen.rpartition(":")
        if not colon and not port.isdigit():
            address, port = port, str(PROXY_PORT)
        try:
            number = int(parse_port(f"{port}:1").local or 0)
            listen = parse_listen(address) if address else LOOPBACK
        except Flaw as flaw:
            raise UsageError(flaw.message, hint="for example `127.0.0.1:1080`") from flaw
        target = proxy_target("proxy", number, listen=listen, credentials=self.credentials)
        agent = AgentConfig(embedded=self.embedded)
        return self.overlay.over(Config((target,), agent=agent, path="the command line"))
