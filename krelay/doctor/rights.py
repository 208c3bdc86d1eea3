"""Rights: ask the API server whether this user may do exactly what the file needs."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from krelay.cluster.objects import nested
from krelay.config.diff import group_of, groups
from krelay.doctor.finding import Finding, Status, failed, ok, skipped, warning
from krelay.errors import AccessDeniedError, ClusterError, UnreachableError
from krelay.model import Config, Kind, Port, Target, Via
from krelay.supervisor.explain import rbac_command
from krelay.tasks import TaskGroup
from krelay.threads import in_thread

if TYPE_CHECKING:
    from krelay.cluster.api import Api

_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_AT_ONCE = 8
_MOST = 200
"""Rights to single objects that are asked for."""
_NAMED = 4
"""Missing rights that a finding names."""


@dataclass(frozen=True, slots=True)
class Right:
    """One verb on one resource (`pods/portforward`), or on the object `name` of it."""

    namespace: str
    group: str
    resource: str
    verb: str
    name: str = ""

    def __str__(self) -> str:
        return _summary([self])

    @property
    def what(self) -> str:
        """The resource as kubectl names it: `jobs.batch`, `pods/proxy`."""
        resource, slash, subresource = self.resource.partition("/")
        return (f"{resource}.{self.group}" if self.group else resource) + slash + subresource

    def as_review(self) -> dict[str, Any]:
        """Return the SelfSubjectAccessReview that asks for it."""
        resource, _, subresource = self.resource.partition("/")
        attributes = {
            "namespace": self.namespace,
            "group": self.group,
            "resource": resource,
            "subresource": subresource,
            "verb": self.verb,
            "name": self.name,
        }
        return {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {k: v for k, v in attributes.items() if v}},
        }


async def rights(api: Api, config: Config, context: str | None, user: str | None) -> list[Finding]:
    """Judge the rights of this user in the cluster of a context.

    Raises:
        ClusterError: the API server does not answer.
    """
    asked = _Answers(api)
    try:
        needed = await _rights_of(config, context, api.namespace)
        lacking = await asked.lacking(needed)
        if not lacking:
            return [await _complete(asked, config, context, needed)]
        agent: set[Right] = set()
        elsewhere, direct = "", False
        if context in groups(config):
            agent = set(await _rights_of(_agent_only(config, context), context, api.namespace))
        if not agent.isdisjoint(lacking):
            elsewhere = await _elsewhere(asked, config, context)
            direct = not elsewhere and await _goes_direct(asked, config, context)
    except AccessDeniedError:
        return [skipped("rights", "this user may not ask the server for its rights")]
    if elsewhere:
        absent = _summary([right for right in lacking if right in agent])
        text = f'the agent runs in the namespace "{elsewhere}": {absent} missing'
        lacking = [right for right in lacking if right not in agent]
        if not lacking:
            return [ok("rights", text, agent_namespace=elsewhere)]
    found = _missing(config, context, api.namespace, user, lacking, agent)
    if direct:
        text = "no agent: targets are reached directly, without UDP and resumption"
        text = f"{text}; {found.text}"
        found = dataclasses.replace(found, status=Status.WARNING, text=text, exit_code=0)
    return [found]


async def _complete(
    asked: _Answers, config: Config, context: str | None, needed: list[Right]
) -> Finding:
    """Return what to say of a user who has all rights that the file needs."""
    more = await _rights_of(config, context, asked.api.namespace, optional=True)
    absent = await asked.absent([right for right in more if right not in needed])
    reduced = [right for right in await asked.absent(needed) if right not in absent]
    text = f"all {len(needed)} that the file needs"
    if reduced:
        hint = "krelay works around them: it lists instead of watching, or takes another carrier"
        return warning("rights", f"without {_summary(reduced)}", hint)
    if absent:
        text += f"; without the optional {_summary(absent)}"
    return ok("rights", text, missing=[str(right) for right in absent])


def _missing(
    config: Config,
    context: str | None,
    namespace: str,
    user: str | None,
    lacking: list[Right],
    agent: set[Right],
) -> Finding:
    place = next((right.namespace for right in lacking if right in agent), "")
    error = AccessDeniedError("", user=user or "", agent_namespace=place)
    command = None
    hint = "ask an administrator for them; `krelay rbac` prints the Roles"
    if config.origin.words:
        hint = "an administrator gives all rights that the file needs with"
        command = f"{rbac_command(config, context, namespace, error)} | kubectl apply -f -"
    text = f"missing: {_summary(lacking)}"
    return failed(
        "rights",
        text,
        hint,
        command=command,
        exit_code=ClusterError.exit_code,
        missing=[str(right) for right in lacking],
    )


async def _elsewhere(asked: _Answers, config: Config, context: str | None) -> str:
    """Return the first other namespace in which the agent may run; empty if there is none."""
    group = groups(config).get(context)
    for place in group.fallbacks if group else ():
        agent = dataclasses.replace(config.agent, namespace=place)
        only = _agent_only(dataclasses.replace(config, agent=agent), context)
        if not await asked.lacking(await _rights_of(only, context, asked.api.namespace)):
            return place
    return ""


async def _goes_direct(asked: _Answers, config: Config, context: str | None) -> bool:
    """Return whether all targets of a context may be reached without an agent, by these rights."""
    targets = [target for target in config.targets if group_of(config, target) == context]
    if not all(target.may_go_direct for target in targets):
        return False
    ways = tuple(dataclasses.replace(target, via=Via.DIRECT) for target in targets)
    direct = dataclasses.replace(config, targets=ways)
    return not await asked.lacking(await _rights_of(direct, context, asked.api.namespace))


async def _rights_of(
    config: Config, context: str | None, namespace: str, *, optional: bool = False
) -> list[Right]:
    """Return `rights_of` from a thread: it reads the agent's source."""
    found = functools.partial(rights_of, config, context, namespace, optional=optional)
    return await in_thread(lambda: list(found()), UnreachableError)


def rights_of(
    config: Config, context: str | None, namespace: str, *, optional: bool = False
) -> Iterator[Right]:
    """Yield the rights that the file needs in the cluster of a context, without repeats.

    `namespace` is the context's own.
    """
    from krelay.cluster.rbac import roles

    seen = set()
    for role in roles(config, lambda _: namespace, optional=optional).get(context, ()):
        for rule in role["rules"]:
            for name in rule.get("resourceNames", ("",)):
                for verb in rule["verbs"]:
                    right = Right(
                        role["metadata"]["namespace"],
                        rule["apiGroups"][0],
                        rule["resources"][0],
                        verb,
                        name,
                    )
                    if right not in seen:
                        seen.add(right)
                        yield right


def _agent_only(config: Config, context: str | None) -> Config:
    """Return a config that needs the agent's rights in a context, and no others."""
    target = Target("agent", Kind.HOST, "agent", (Port(1),), context=context)
    return dataclasses.replace(config, targets=(target,))


class _Answers:
    """The API server's answers, each asked for once. They raise ClusterError."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self._known: dict[Right, bool] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def absent(self, wanted: Sequence[Right]) -> list[Right]:
        """Return the rights that this user does not have."""
        await self._ask([dataclasses.replace(right, name="") for right in wanted])
        await self._ask([right for right in wanted if not self._has(right)][:_MOST])
        return [right for right in wanted if right in self._known and not self._has(right)]

    async def lacking(self, needed: Sequence[Right]) -> list[Right]:
        """Return the absent rights without which krelay does not work.

        It lists what it may not watch, reads an object that it may not list, does without
        EndpointSlices, and needs but one of the two verbs of a port-forward.
        """
        absent = await self.absent(needed)
        named = [right for right in absent if right.verb == "list" and right.name]
        await self._ask([dataclasses.replace(right, verb="get") for right in named])
        return [right for right in absent if not self._is_avoidable(right)]

    def _is_avoidable(self, right: Right) -> bool:
        if right.resource == "endpointslices":
            return True
        if right.resource == "pods/portforward":
            other = "create" if right.verb == "get" else "get"
            return self._has(dataclasses.replace(right, verb=other))
        if right.verb == "watch":
            return any(self._has(dataclasses.replace(right, verb=verb)) for verb in _READ)
        return right.verb == "list" and self._has(dataclasses.replace(right, verb="get"))

    def _has(self, right: Right) -> bool:
        whole = dataclasses.replace(right, name="")
        return self._known.get(right, False) or self._known.get(whole, False)

    async def _ask(self, wanted: Sequence[Right]) -> None:
        async with TaskGroup() as tasks:
            for right in dict.fromkeys(wanted):
                if right not in self._known:
                    tasks.create_task(self._ask_one(right))

    async def _ask_one(self, right: Right) -> None:
        async with self._turns:
            answer = await self.api.create(_REVIEWS, right.as_review())
        self._known[right] = nested(answer, "status", "allowed") is True


_READ = ("list", "get")


def _summary(absent: Collection[Right]) -> str:
    """Return rights in words, their verbs joined: `create,delete jobs.batch in "shop"`."""
    joined: dict[tuple[str, str, str], list[str]] = {}
    for right in absent:
        verbs = joined.setdefault((right.namespace, right.what, right.name), [])
        verbs.append(right.verb)
    shown = [
        f'{",".join(verbs)} {what}{f" {name}" if name else ""} in "{namespace}"'
        for (namespace, what, name), verbs in joined.items()
    ]
    more = f" and {len(shown) - _NAMED} more" if len(shown) > _NAMED else ""
    return ", ".join(shown[:_NAMED]) + more
