"""The cluster of one context: the checks from kubeconfig to the agent, and what they share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from krelay.config.diff import group_of, groups
from krelay.doctor import admission, login, server
from krelay.doctor.carriers import CARRIERS, START_DEADLINE, LiveAgent
from krelay.doctor.finding import Finding, Status, skipped
from krelay.doctor.rights import rights
from krelay.doctor.runner import Check, run_checks
from krelay.doctor.targets import DEADLINE as TARGETS_DEADLINE
from krelay.doctor.targets import targets
from krelay.errors import AccessDeniedError, ClusterError, KrelayError, UnreachableError
from krelay.model import Config, GroupSpec, Kind, Origin, Port, Target
from krelay.supervisor.explain import explain_error
from krelay.tasks import shield_cleanup
from krelay.threads import in_thread

if TYPE_CHECKING:
    from krelay.cluster.api import Api
    from krelay.doctor.server import Reached
    from krelay.net.api_access import ApiAccess

LOGIN_DEADLINE = 60.0
"""Seconds for a credential plugin, which may wait for a person in a browser."""
SERVER_DEADLINE = 6.0
ANSWER_DEADLINE = 10.0


def of_context(context: str | None, namespace: str | None = None) -> Config:
    """Return a config that needs an agent in a context, and nothing else: that of a proxy."""
    target = Target("agent", Kind.PROXY, "agent", (Port(1),))
    origin = Origin(("proxy",), namespace)
    return Config((target,), context=context, namespace=namespace, origin=origin)


class Cluster:
    """The checks of one context of `config`; `examine` makes them."""

    def __init__(
        self,
        config: Config,
        context: str | None,
        *,
        quick: bool = False,
        kubeconfig: str | None = None,
        only: Collection[str] | None = None,
        turn: asyncio.Semaphore | None = None,
    ) -> None:
        """With `quick`, create nothing; `only` names the checks to make, instead of all.

        An agent of the doctor's is there only while it has the `turn`.
        """
        self._only = only
        self._config = config
        self._context = context
        self._quick = quick
        self._kubeconfig_path = kubeconfig
        self._spec: GroupSpec | None = groups(config).get(context)
        self._connected: Api | None = None
        self._access: ApiAccess | None = None
        self._reached: Reached | None = None
        self._user: str | None = None
        self._lacks_rights = False
        self._refused = False
        """Whether admission refuses an agent that no target insists on."""
        self._agent: LiveAgent | None = None
        self._turn = turn or asyncio.Semaphore()

    async def examine(self) -> AsyncGenerator[Finding]:
        """Yield the findings; at the end nothing of the doctor's is left in the cluster."""
        try:
            async with aclosing(run_checks(self._checks())) as found:
                async for finding in found:
                    yield finding
        finally:
            await shield_cleanup(self._close())

    async def _close(self) -> None:
        try:
            if self._agent is not None:
                await self._agent.remove()
                self._turn.release()
        finally:
            if self._connected is not None:
                await self._connected.aclose()

    def _checks(self) -> list[Check]:
        answers = partial(Check, exit_code=ClusterError.exit_code, deadline=ANSWER_DEADLINE)
        known = ("kubeconfig",)
        checks = [
            answers("kubeconfig", self._kubeconfig),
            answers("expiry", self._expiry, known),
            answers("http-proxy", self._proxy, known),
            answers("credentials", self._credentials, known, deadline=LOGIN_DEADLINE),
            answers("server", self._server, known, ("credentials",), deadline=SERVER_DEADLINE),
            answers("version", self._version, ("server",)),
            answers("clock", self._clock, ("server",)),
            answers("user", self._who, ("server", "credentials")),
            answers("rights", self._rights, ("user",)),
        ]
        if self._spec is not None:
            checks += [
                answers("admission", self._admission, ("user",), ("rights",)),
                answers("image", self._image, ("user",)),
            ]
        if any(target.kind is not Kind.PROXY for target in self._config.targets):
            late = TARGETS_DEADLINE + 1.0
            checks.append(answers("targets", self._targets, ("user",), deadline=late))
        if self._spec is not None and not self._quick:
            # One after the other, and after all else: they would share the network.
            contexts = {target.context for target in self._config.targets}
            checks.append(
                answers(
                    "agent",
                    self._start_agent,
                    ("rights", "admission"),
                    ("image", "targets"),
                    deadline=(START_DEADLINE + ANSWER_DEADLINE) * len(contexts),
                )
            )
            before = "agent"
            for carrier in CARRIERS:
                measure = partial(self._measure, carrier)
                checks.append(answers(carrier, measure, ("agent",), (before,), deadline=30.0))
                before = carrier
            checks.append(answers("tunnels", self._verdict, ("agent",), CARRIERS))
        return [check for check in checks if self._only is None or check.name in self._only]

    @property
    def _may_go_direct(self) -> bool:
        """Whether all targets may be reached without an agent."""
        config, context = self._config, self._context
        targets = [target for target in config.targets if group_of(config, target) == context]
        return all(target.may_go_direct for target in targets)

    @property
    def _api(self) -> Api:
        assert self._connected is not None
        return self._connected

    # -- kubeconfig and the server -----------------------------------------------------------------

    async def _kubeconfig(self) -> Sequence[Finding]:
        from krelay.cluster.api import Api

        self._connected = await Api.connect(context=self._context, kubeconfig=self._kubeconfig_path)
        return login.kubeconfig(self._api.login)

    async def _expiry(self) -> Sequence[Finding]:
        return await in_thread(partial(login.expiry, self._api.login), UnreachableError)

    async def _proxy(self) -> Finding:
        return login.proxy(self._api.login)

    async def _credentials(self) -> Finding:
        access = await self._api.access()
        access.require_private()
        self._access = access
        return login.credentials(self._api.login, access.expires)

    async def _server(self) -> Finding:
        # A server can be reached even where the credentials cannot be had.
        access = self._access
        if access is None:
            without = partial(server.anonymous, self._api.login)
            access = await in_thread(without, UnreachableError)
        self._reached = await server.reach(access)
        return server.speed(self._reached)

    async def _version(self) -> Finding:
        assert self._reached is not None
        return server.version(self._reached)

    async def _clock(self) -> Finding:
        assert self._reached is not None
        return server.clock(self._reached.skew)

    async def _who(self) -> Finding:
        self._user = await server.who(self._api)
        return server.user(self._user)

    # -- what the file needs -----------------------------------------------------------------------

    async def _rights(self) -> Sequence[Finding]:
        found = await rights(self._api, self._config, self._context, self._user)
        lacking = (Status.FAILED, Status.WARNING)
        self._lacks_rights = any(one.status in lacking for one in found)
        return found

    async def _admission(self) -> Sequence[Finding]:
        assert self._spec is not None
        try:
            found = await admission.admission(self._api, self._spec)
            if found[0].status is Status.FAILED and self._may_go_direct:
                self._refused = True
                text = f"{found[0].text}; targets are reached directly, without UDP and resumption"
                found[0] = replace(found[0], status=Status.WARNING, text=text, exit_code=0)
            return found
        except AccessDeniedError as exc:
            if self._lacks_rights:
                return [skipped("admission", str(exc))]
            raise self._explained(exc) from exc

    async def _image(self) -> Finding:
        assert self._spec is not None
        return await admission.image(self._api, self._spec.agent.image)

    async def _targets(self) -> Sequence[Finding]:
        return await targets(self._api, self._config, self._context)

    # -- through an agent --------------------------------------------------------------------------

    async def _start_agent(self) -> Finding:
        assert self._spec is not None
        if self._refused:
            return skipped("agent", "the cluster refuses it")
        await self._turn.acquire()
        self._agent = LiveAgent(self._api, self._spec)
        try:
            return await self._agent.start()
        except KrelayError as exc:
            raise self._explained(exc) from exc

    async def _measure(self, carrier: str) -> Finding:
        assert self._agent is not None
        return await self._agent.measure(carrier)

    async def _verdict(self) -> Finding:
        assert self._agent is not None
        return await self._agent.verdict()

    def _explained(self, error: KrelayError) -> KrelayError:
        explain_error(error, config=self._config, context=self._context, api=self._api)
        return error
