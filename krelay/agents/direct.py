"""DirectGroup: the way into the pods of one context without an agent."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from krelay.agents.base import Renewals, drain
from krelay.datapath.direct import Connection, DirectPool
from krelay.errors import AccessDeniedError, KrelayError
from krelay.model import DirectSpec, PodPort
from krelay.tasks import TaskGroup, keep

if TYPE_CHECKING:
    from krelay.cluster.api import Api
    from krelay.transport.upgrade import Carrier

logger = logging.getLogger("krelay.supervisor")

_NUMBERS = itertools.count(1)
_START_DEADLINE = 10.0


class DirectGroup:
    """The connections to the pods of a context, of one DirectSpec.

    `start` makes it usable; `drain` or `stop` ends it.
    """

    def __init__(
        self,
        spec: DirectSpec,
        api: Api,
        *,
        explain: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        """The caller closes `api`. `explain` is called with each missing right before it is
        raised."""
        self.spec = spec
        self._pods = _Pods(api, spec, explain)
        self.pool = DirectPool(f"d{next(_NUMBERS)}", self._pods)
        self._running: asyncio.Task[None] | None = None

    def start(self, tasks: TaskGroup) -> None:
        """Begin to dial pods; `reached` logs those that are not. `tasks` gets the pool's tasks."""
        name = self.pool.name
        self.pool.quiet = True
        self._running = tasks.create_task(keep(self.pool.run, name), name=name)

    async def reached(self) -> None:
        """Wait a while until each route reaches one of its pods.

        Raises:
            ClusterError: the cluster refuses port-forwards, and no pod is reached; it is not in
                the log.
        """
        self.pool.quiet = True
        try:
            async with asyncio.timeout(_START_DEADLINE):
                while self.pool.wanted:
                    failure = self.pool.failure
                    fails = isinstance(failure, KrelayError) and failure.fails_start
                    idle = not self.pool.connections and not self.pool.dialling
                    if failure is not None and fails and idle:
                        raise failure
                    await self.pool.wait_change()
        except TimeoutError:
            pass  # the states of the forwards say why
        finally:
            self.pool.quiet = False
        self.pool.report()

    def access_changed(self, *, moved: bool) -> None:
        """Dial again at once: with other credentials, or, if requests have `moved`, by another
        server."""
        self._pods.access_changed()
        self.pool.network_changed(broken=moved)

    async def drain(self, timeout: float) -> None:
        """Let streams finish within `timeout` seconds, then `stop`."""
        await drain(self.pool, timeout, "way", self.stop)

    async def stop(self) -> None:
        """Close the connections, and cut their streams."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            await asyncio.wait([running])


class _Pods:
    """Dials pods through the API server."""

    def __init__(self, api: Api, spec: DirectSpec, explain: Callable[[Exception], None]) -> None:
        self._api = api
        self._explain = explain
        self._spec = spec
        self._renewals = Renewals(api)

    def access_changed(self) -> None:
        """Have other credentials renewed at once if they are refused."""
        self._renewals.reset()

    async def dial(
        self, pod: PodPort, on_change: Callable[[], None], on_refused: Callable[[int], None]
    ) -> Connection:
        from krelay.transport.pod_connection import PodConnection
        from krelay.transport.portforward import open_upgraded, transport_from_env
        from krelay.transport.upgrade import UnauthorizedError

        def make(carrier: Carrier) -> PodConnection:
            name = f"{pod.namespace}/{pod.name}"
            return PodConnection(carrier, name, on_change=on_change, on_refused=on_refused)

        access = await self._api.access()
        try:
            connection = await open_upgraded(
                access,
                make,
                namespace=pod.namespace,
                pod=pod.name,
                transport=transport_from_env(self._spec.transport, os.environ),
            )
        except AccessDeniedError as exc:
            self._explain(exc)
            raise
        except UnauthorizedError:
            self._renewals.refused(access)
            raise
        connection.expires = access.expires
        return connection
