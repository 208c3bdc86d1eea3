"""Contexts: the API client and the watches of each kubeconfig context that a run uses.

A run keeps the contexts that it started with. `None`, the context of targets without one, is
kubeconfig's current context at the start, whatever that file says later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from krelay.config.changes import Change
from krelay.config.diff import group_of
from krelay.config.watch import Mode, watch
from krelay.errors import KrelayError
from krelay.model import Config, Target
from krelay.state.states import ContextState
from krelay.supervisor.explain import explain_error
from krelay.supervisor.target_watcher import Failures, Follow, Publish
from krelay.tasks import TaskGroup

if TYPE_CHECKING:
    from krelay.cluster.api import Api
    from krelay.cluster.auth.credentials import LoginChange
    from krelay.cluster.auth.kubeconfig import Login, Overrides
    from krelay.cluster.informers import Informers


@dataclass(frozen=True, slots=True)
class ContextUpdate:
    """What another kubeconfig changes for a context, which targets know by `keys`.

    `moved`: requests take another way, maybe to another cluster.
    """

    keys: frozenset[str | None]
    state: ContextState
    words: tuple[str, ...]
    moved: bool


class Contexts:
    """The API client and the shared watches of each kubeconfig context, made at first use."""

    def __init__(self, kubeconfig: str | None = None, overrides: Overrides | None = None) -> None:
        """Read the kubeconfig at this path, or the environment's; `overrides` take precedence."""
        self._options: dict[str, Any] = {"kubeconfig": kubeconfig}
        if overrides is not None:
            self._options["overrides"] = overrides
        self._current: str | None = None
        self._apis: dict[str | None, Api] = {}
        self._informers: dict[Api, Informers] = {}
        self._connecting = asyncio.Lock()
        self._in_use = asyncio.Event()
        self.on_resolved: Callable[[ContextState], None] = lambda state: None
        """Called with each context, once it is known where it leads."""
        self.on_change: Callable[[ContextUpdate], None] = lambda update: None
        """Called when another kubeconfig of a context was adopted."""
        self.failures = Failures()
        """Logs the failures of the watchers of all contexts."""

    async def api(self, context: str | None) -> Api:
        """Return the client of a context; None is kubeconfig's current one at the first call.

        Raises:
            CredentialsError: kubeconfig is missing or has no such context.
        """
        from krelay.cluster.api import Api

        async with self._connecting:
            if context in self._apis:
                return self._apis[context]
            named = context or self._current
            known = (api for api in self._apis.values() if api.login.context == named)
            api = next(known, None) if named else None
            if api is None:
                api = await Api.connect(context=named, **self._options)
                if not self._apis:
                    self._current = api.login.current
                api.on_change = partial(self._changed, api)
                self.on_resolved(_state(api))
            self._apis[context] = api
            self._in_use.set()
            return api

    def state(self, context: str | None) -> ContextState | None:
        """Return where a context leads; None if it is not in use yet."""
        api = self._apis.get(context)
        return _state(api) if api is not None else None

    def states(self) -> tuple[ContextState, ...]:
        """Return where each context in use leads."""
        return tuple(map(_state, dict.fromkeys(self._apis.values())))

    def namespaces(self, state: ContextState, config: Config) -> tuple[str, ...]:
        """Return the namespaces in which `config` has targets of this context."""
        found = (
            target.namespace or config.namespace or state.namespace
            for target in config.targets
            if target.kind.in_cluster and (group_of(config, target) or self._current) == state.name
        )
        return tuple(dict.fromkeys(found))

    def logins(self) -> list[Login]:
        """Return the login of each context in use."""
        return [api.login for api in dict.fromkeys(self._apis.values())]

    def dates(self) -> list[tuple[str, float]]:
        """Return the Date of the latest answer of each API server, and when it came."""
        return [api.date for api in dict.fromkeys(self._apis.values()) if api.date is not None]

    async def watch(self, mode: Mode) -> None:
        """Read kubeconfig again whenever it, or a file that it names, changes, until cancelled."""
        await self._in_use.wait()
        async for _ in watch(self._files, mode):
            await self.reread()

    async def reread(self) -> list[Change]:
        """Read kubeconfig again, and adopt what it says of the contexts in use; return what has
        changed. What cannot be used changes nothing."""
        # At once: the files of one context may be where no file system answers.
        async with TaskGroup() as tasks:
            apis = dict.fromkeys(self._apis.values())
            readings = {api: tasks.create_task(api.reread()) for api in apis}
        return [
            Change("set", _state(api).title, after=str(change))
            for api, reading in readings.items()
            if (change := reading.result()) is not None
        ]

    def _files(self) -> list[str]:
        from krelay.cluster.auth.kubeconfig import files

        return files(self._options["kubeconfig"], self.logins())

    async def informers(self, context: str | None) -> Informers:
        """Return the shared watches of a context. Raises as `api` does."""
        from krelay.cluster.informers import Informers

        api = await self.api(context)
        if api not in self._informers:
            self._informers[api] = Informers(api)
        return self._informers[api]

    def relist(self, contexts: Collection[str | None]) -> None:
        """List and watch anew what targets of these contexts need."""
        apis = {self._apis[context] for context in contexts if context in self._apis}
        for api in apis & self._informers.keys():
            self._informers[api].relist()

    async def follow(self, config: Config, target: Target) -> Follow:
        """Return how to follow a target of `config` in the cluster. Raises as `api` does."""
        from krelay.cluster.resolve import follow_target

        context = group_of(config, target)
        informers = await self.informers(context)
        api = await self.api(context)
        namespace = target.namespace or config.namespace or api.namespace

        async def follow(target: Target, publish: Publish) -> None:
            try:
                await follow_target(informers, target, namespace, publish)
            except KrelayError as exc:
                explain_error(exc, config=config, context=context, api=api)
                raise

        return follow

    async def close(self) -> None:
        """End all watches and clients."""
        while self._informers:
            await self._informers.popitem()[1].close()
        apis, self._apis = set(self._apis.values()), {}
        for api in apis:
            await api.aclose()

    def _changed(self, api: Api, change: LoginChange) -> None:
        keys = frozenset(key for key, known in self._apis.items() if known is api)
        self.on_change(ContextUpdate(keys, _state(api), change.words, change.moved))


def _state(api: Api) -> ContextState:
    login = api.login
    return ContextState(login.context, login.address, login.namespace)
