"""Restarts: begin anew with some targets, or with everything, without an edit of the file."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace

from krelay.config.diff import GroupChange, diff, group_of, groups
from krelay.config.grammar import quote
from krelay.errors import KrelayError, UsageError
from krelay.supervisor.active import ActiveConfig
from krelay.supervisor.contexts import Contexts

logger = logging.getLogger("krelay.supervisor")

ENDING = "krelay is stopping"
"""Why a request fails that comes too late."""


@dataclass(frozen=True, slots=True)
class Restarted:
    """What a restart did: to which targets, how many connections it reset, how many groups of
    agents it replaced."""

    targets: tuple[str, ...]
    connections: int
    agents: int


class Restarts:
    """Carries out the requested restarts."""

    def __init__(
        self,
        active: ActiveConfig,
        contexts: Contexts,
        *,
        changing: asyncio.Lock,
        newer: asyncio.Event,
    ) -> None:
        """Change `active` only while holding `changing`. A restart that is warming begins anew once
        `newer` is set: an edit goes first."""
        self._active = active
        self._contexts = contexts
        self._changing = changing
        self._newer = newer
        self._requests: asyncio.Queue[tuple[frozenset[str], asyncio.Future[Restarted]]] = (
            asyncio.Queue()
        )

    async def request(self, names: frozenset[str]) -> Restarted:
        """Return what the restart did, once `run` has carried it out. Raises its error."""
        answer: asyncio.Future[Restarted] = asyncio.get_running_loop().create_future()
        self._requests.put_nowait((names, answer))
        return await answer

    def refuse_waiting(self) -> None:
        """Refuse the restarts that have not begun: krelay ends."""
        while not self._requests.empty():
            _fail(self._requests.get_nowait()[1], KrelayError(ENDING))

    async def run(self) -> None:
        """Carry out restarts, one after the other, until cancelled."""
        while True:
            names, answer = await self._requests.get()
            done: Restarted | None = None
            try:
                while done is None:
                    done = await self._restart(names)
            except KrelayError as exc:
                _fail(answer, exc)
            except asyncio.CancelledError:
                _fail(answer, KrelayError(ENDING))
                raise
            except Exception as exc:
                logger.exception("not restarted")
                _fail(answer, KrelayError(f"internal error: {type(exc).__name__}"))
            else:
                if not answer.done():
                    answer.set_result(done)

    async def _restart(self, names: frozenset[str]) -> Restarted | None:
        """Restart targets, or everything; None if an edit came first, or another kubeconfig."""
        async with self._changing:
            config = self._active.config
            assert config is not None
            known = {target.name: target for target in config.targets}
            if unknown := sorted(names - known.keys()):
                raise UsageError(f"no target {quote(unknown[0])} is relayed")
            chosen = {name: target for name, target in known.items() if not names or name in names}
            plan = diff(config, config)
            if not names:
                plan = replace(
                    plan, groups=tuple(GroupChange(spec, spec) for spec in groups(config).values())
                )
            self._contexts.relist({group_of(config, target) for target in chosen.values()})
            warm = self._active.warming(config, plan, restarted=chosen)
            if not await warm.warm_up(unless=self._newer):
                return None
            count = self._active.commit(warm)
            return Restarted(tuple(chosen), count, len(warm.groups))


def _fail(answer: asyncio.Future[Restarted], error: KrelayError) -> None:
    if not answer.done():
        answer.set_exception(error)
