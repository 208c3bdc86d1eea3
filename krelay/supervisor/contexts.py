"""Contexts: the API client and the watches of each kubeconfig context that a run uses.

A run keeps the contexts that it started with. `None`, the context of targets without one, is
kubeconfig's current context at the start, whatever that file says later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from krelay.config.diff import group_of
from krelay.errors import KrelayError
from krelay.model import Config, Target
from krelay.mux.log import about
from krelay.state.states import ContextState
from krelay.supervisor.explain import explain_error
from krelay.supervisor.target_watcher import Failures, Follow, Publish

if TYPE_CHECKING:
    from krelay.cluster.api import Api
    from krelay.cluster.auth.kubeconfig import Overrides
    from krelay.cluster.informers import Informers

logger = logging.getLogger("krelay.supervisor")


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
        self.on_resolved: Callable[[ContextState], None] = lambda state: None
        """Called with each context, once it is known where it leads."""
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
                self._report(_state(api))
            self._apis[context] = api
            return api

    def state(self, context: str | None) -> ContextState | None:
        """Return where a context leads; None if it is not in use yet."""
        api = self._apis.get(context)
        return _state(api) if api is not None else None

    def states(self) -> tuple[ContextState, ...]:
        """Return where each context in use leads."""
        return tuple(map(_state, dict.fromkeys(self._apis.values())))

    async def informers(self, context: str | None) -> Informers:
        """Return the shared watches of a context. Raises as `api` does."""
        from krelay.cluster.informers import Informers

        api = await self.api(context)
        if api not in self._informers:
            self._informers[api] = Informers(api)
        return self._informers[api]

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

    def _report(self, state: ContextState) -> None:
        log = about(logger, name=f"context {state.name}" if state.name else "in the cluster")
        log.info("%s, namespace %s", state.server, state.namespace)
        self.on_resolved(state)


def _state(api: Api) -> ContextState:
    login = api.login
    return ContextState(login.context, login.address, login.namespace)
