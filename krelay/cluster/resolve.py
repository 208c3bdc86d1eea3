"""Resolve: what a target means, kept true by watches for as long as anyone wants to know.

The object itself is watched by its name, and while it is there, what it selects: a Service's
EndpointSlices, a workload's pods. An object that is replaced is followed like any other change.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import aclosing
from typing import Any, ParamSpec, TypeVar

from krelay.cluster.api import collection
from krelay.cluster.endpoints import choose, resolve_port, resolve_service, why_none
from krelay.cluster.informers import Informers
from krelay.cluster.selectors import Selector
from krelay.errors import AccessDeniedError, ClusterError
from krelay.model import Kind, Protocol, Resolution, Target
from krelay.tasks import TaskGroup

logger = logging.getLogger("krelay.resolve")

P = ParamSpec("P")
T = TypeVar("T")

Publish = Callable[[tuple[Resolution, ...]], None]
Object = Mapping[str, Any]

_WORKLOADS = {
    Kind.DEPLOYMENT: ("apps/v1", "deployments", "deployment"),
    Kind.STATEFULSET: ("apps/v1", "statefulsets", "statefulset"),
    Kind.DAEMONSET: ("apps/v1", "daemonsets", "daemonset"),
    Kind.REPLICASET: ("apps/v1", "replicasets", "replicaset"),
    Kind.JOB: ("batch/v1", "jobs", "job"),
}


async def follow_target(
    informers: Informers, target: Target, namespace: str, publish: Publish
) -> None:
    """Call `publish` with what each port of `target` means, in order, whenever that changes.

    Runs until it is cancelled; returns only for a host or an address, which never change.

    Raises:
        AccessDeniedError: the target may not be watched.
        ClusterError: it cannot be.
    """
    if not target.kind.in_cluster:
        publish(tuple(Resolution.as_given(target, port) for port in target.ports))
        return
    following = _Following(informers, target, namespace, publish)
    if target.kind is Kind.SERVICE:
        await following.service()
    elif target.kind is Kind.POD:
        await following.pod()
    else:
        await following.workload()


class _Following:
    """One target's share of the watches."""

    def __init__(
        self, informers: Informers, target: Target, namespace: str, publish: Publish
    ) -> None:
        self._informers = informers
        self._target = target
        self._namespace = namespace
        self._publish = publish
        self._last: tuple[Resolution, ...] = ()
        self._present: str | None = None

    async def pod(self) -> None:
        """A pod by its name; one that is made anew is the same to us."""
        async for pods in self._watch("v1", "pods", Selector(self._target.resource)):
            if pods:
                self._tell_pod(pods.values())
            else:
                self._tell_missing("pod")

    async def workload(self) -> None:
        """The pods that a workload selects."""
        version, resource, word = _WORKLOADS[self._target.kind]

        async def pods(selector: Selector) -> None:
            if selector.empty:
                # As a selector it would be every pod of the namespace.
                self._tell_none(f"{self._target} selects no pods")
                return
            async for found in self._watch("v1", "pods", selector):
                self._tell_pod(found.values())

        await self._while_there(version, resource, word, _selector, pods)

    async def service(self) -> None:
        """A Service, and its endpoints while it has any."""

        async def endpoints(service: Object) -> None:
            if service["spec"].get("type") == "ExternalName":
                self._tell_service(service, None)
                return
            of_service = Selector.of_label("kubernetes.io/service-name", self._target.resource)
            try:
                async for slices in self._watch(
                    "discovery.k8s.io/v1", "endpointslices", of_service
                ):
                    self._tell_service(service, slices.values())
            except AccessDeniedError as exc:
                if service["spec"].get("clusterIP") in (None, "", "None"):
                    raise
                logger.info("%s: %s; its clusterIP is trusted", self._target.name, exc)
                self._tell_service(service, None)

        await self._while_there("v1", "services", "service", _what_matters, endpoints)

    # -- watching ------------------------------------------------------------------------------

    async def _while_there(
        self,
        version: str,
        resource: str,
        word: str,
        part: Callable[[Object], Any],
        inner: Callable[[Any], Any],
    ) -> None:
        """Run `inner` with the `part` of the object that matters, anew whenever that changes."""
        running: asyncio.Task[None] | None = None
        matters: Any = None
        async with TaskGroup() as tasks:
            async for found in self._watch(version, resource, Selector(self._target.resource)):
                item = next(iter(found.values()), None)
                now = None if item is None else self._read(part, item)
                if now == matters and running is not None:
                    continue
                if running is not None:
                    running.cancel()
                    running = None
                matters = now
                if item is None:
                    self._tell_missing(word)
                else:
                    running = tasks.create_task(inner(now), name=self._target.name)

    async def _watch(
        self, version: str, resource: str, selector: Selector
    ) -> AsyncIterator[Mapping[str, dict[str, Any]]]:
        path = collection(version, resource, self._namespace)
        watch = self._informers.watch(path, selector)
        async with aclosing(watch) as sets:  # type: ignore[type-var]
            async for found in sets:
                yield found

    # -- telling -------------------------------------------------------------------------------

    def _read(self, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Read objects: one of an odd shape is an error of this target, in words."""
        try:
            return read(*args, **kwargs)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as exc:
            raise ClusterError(
                f"{self._target}: the API server describes it in an unknown form ({exc!r})"
            ) from exc

    def _tell(self, resolutions: tuple[Resolution, ...]) -> None:
        if resolutions != self._last:
            self._last = resolutions
            self._publish(resolutions)

    def _tell_pod(self, pods: Collection[Object]) -> None:
        pod = self._read(choose, pods, self._present)
        if pod is None:
            self._tell_none(f"{self._target}: {self._read(why_none, pods)}")
            return
        self._present = str(pod["metadata"].get("uid"))
        self._tell(tuple(self._read(resolve_port, pod, port) for port in self._target.ports))

    def _tell_service(self, service: Object, slices: Collection[Object] | None) -> None:
        self._tell(
            tuple(
                self._read(resolve_service, service, port, slices, self._host(index))
                for index, port in enumerate(self._target.ports)
            )
        )

    def _host(self, index: int) -> str | None:
        """The address that this port led to last."""
        endpoint = self._last[index].endpoint if self._last else None
        return endpoint.host if endpoint else None

    def _tell_missing(self, word: str) -> None:
        name, namespace = self._target.resource, self._namespace
        reason = f'{word} "{name}" not found in namespace "{namespace}"'
        self._tell_none(reason, missing=True)

    def _tell_none(self, reason: str, *, missing: bool = False) -> None:
        self._tell(
            tuple(
                Resolution(port.protocol or Protocol.TCP, reason=reason, missing=missing)
                for port in self._target.ports
            )
        )


def _what_matters(service: Object) -> Object:
    """A Service without what changes and says nothing of where it leads (status, annotations)."""
    spec = service["spec"]
    if not isinstance(spec, Mapping):
        raise TypeError("spec")
    return {"metadata": {"name": service["metadata"]["name"]}, "spec": spec}


def _selector(workload: Object) -> Selector:
    return Selector.of_workload(workload["spec"].get("selector"))
