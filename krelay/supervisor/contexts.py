"""Contexts: one API client for each kubeconfig context in use, and the watches that it shares."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from krelay.supervisor.target_watcher import Failures

if TYPE_CHECKING:
    from krelay.cluster.api import Api
    from krelay.cluster.auth.kubeconfig import Overrides
    from krelay.cluster.informers import Informers


class Contexts:
    """Clients by context, each made when it is first asked for; `close` ends them."""

    def __init__(self, kubeconfig: str | None = None, overrides: Overrides | None = None) -> None:
        """`kubeconfig` is a path, None for the environment's; `overrides` win over it."""
        self._options: dict[str, Any] = {"kubeconfig": kubeconfig}
        if overrides is not None:
            self._options["overrides"] = overrides
        self._apis: dict[str | None, Api] = {}
        self._informers: dict[Api, Informers] = {}
        self.failures = Failures()
        """What keeps the targets of all contexts from being followed."""
        self._connecting = asyncio.Lock()

    async def api(self, context: str | None) -> Api:
        """The client of a context; None is kubeconfig's current one.

        Raises:
            CredentialsError: there is no such context, or no kubeconfig.
        """
        from krelay.cluster.api import Api

        async with self._connecting:
            if context not in self._apis:
                self._apis[context] = await Api.connect(context=context, **self._options)
            return self._apis[context]

    async def informers(self, context: str | None) -> Informers:
        """The shared watches of a context.

        Raises:
            CredentialsError: as `api`.
        """
        from krelay.cluster.informers import Informers

        api = await self.api(context)
        if api not in self._informers:
            self._informers[api] = Informers(api)
        return self._informers[api]

    async def close(self) -> None:
        """End every watch and every client."""
        while self._informers:
            await self._informers.popitem()[1].close()
        while self._apis:
            await self._apis.popitem()[1].aclose()
