"""Resolve: what a target's ports mean, kept current by watches.

The object itself is watched by its name. While it exists, the objects that it selects are watched
too: a Service's EndpointSlices, a workload's pods. A replaced object is a change like any other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from krelay.cluster.api import collection
from krelay.cluster.endpoints import (
    choose_pod,
    choose_running,
    has_ended,
    is_ending,
    is_headless,
    owners,
    phase,
    pods_behind,
    resolve_pod,
    resolve_service,
    why_not_ready,
)
from krelay.cluster.informers import Informers
from krelay.cluster.objects import RESOURCES
from krelay.cluster.selectors import Selector
from krelay.errors import AccessDeniedError, ClusterError
from krelay.model import Affinity, Kind, Protocol, Resolution, Target
from krelay.mux.log import about
from krelay.tasks import TaskGroup

logger = logging.getLogger("krelay.resolve")

Publish = Callable[[tuple[Resolution, ...]], None]
Object = Mapping[str, Any]


async def follow_target(
    informers: Informers, target: Target, namespace: str, publish: Publish
) -> None:
    """Call `publish` with what each port of `target` means, in order, whenever that changes.

    Runs until it is cancelled; returns only for a host or an address, which never change.

    Raises:
        AccessDeniedError: the user may not watch the target.
        ClusterError: the target cannot be watched.
    """
    if not target.kind.in_cluster:
        publish(tuple(Resolution.as_given(target, port) for port in target.ports))
        return
    resolver = _Resolver(informers, target, namespace, publish)
    if target.kind is Kind.SERVICE:
        await resolver.follow_service()
    elif target.kind is Kind.POD:
        await resolver.follow_pod()
    else:
        await resolver.follow_workload()


async def resolve_now(
    informers: Informers, target: Target, namespace: str
) -> tuple[Resolution, ...]:
    """Return what each port of `target` means now. The caller sets the deadline.

    Raises:
        AccessDeniedError: the user may not see the target.
        ClusterError: the API server does not answer.
    """
    found: asyncio.Future[tuple[Resolution, ...]] = asyncio.get_running_loop().create_future()

    def publish(resolutions: tuple[Resolution, ...]) -> None:
        if not found.done():
            found.set_result(resolutions)

    async with TaskGroup() as tasks:
        following = tasks.create_task(follow_target(informers, target, namespace, publish))
        await asyncio.wait((found, following), return_when=asyncio.FIRST_COMPLETED)
        following.cancel()
    return found.result()


class _Resolver:
    """The watches of one target, and its last resolutions."""

    def __init__(
        self, informers: Informers, target: Target, namespace: str, publish: Publish
    ) -> None:
        self._informers = informers
        self._target = target
        self._namespace = namespace
        self._publish = publish
        self._last: tuple[Resolution, ...] = ()
        self._pod_uid: str | None = None
        # Of a Service; its pods are known only while a port has no ready endpoint.
        self._slices: Collection[Object] | None = None
        self._pods: Collection[Object] | None = None

    async def follow_pod(self) -> None:
        """Follow a pod by its name; a new pod of that name replaces it."""
        pod: Object | None = None
        async for pods in self._watch_target():
            former, pod = pod, next(iter(pods.values()), None)
            if pod is not None:
                ended = phase(pod) if has_ended(pod) and not _returns(pod) else ""
                self._resolve_pods([pod], ended)
            else:
                self._report_missing(ended=former is not None and not _returns(former))

    async def follow_workload(self) -> None:
        """Follow the pods that a workload selects."""

        async def follow_pods(part: tuple[Object | None, str]) -> None:
            label_selector, finished = part
            selector = Selector.of_workload(label_selector)
            if selector.empty:
                # As a selector it would mean every pod of the namespace.
                self._report_none(f"{self._target} selects no pods")
                return
            async for pods in self._watch("v1", "pods", selector):
                self._resolve_pods(pods.values(), finished)

        await self._while_it_exists(
            lambda item: (item["spec"].get("selector"), _finished(item)), follow_pods
        )

    async def follow_service(self) -> None:
        """Follow a Service, and its endpoints if it has any."""

        async def follow_endpoints(service: Object) -> None:
            if service["spec"].get("type") == "ExternalName":
                self._pods = None
                self._update(self._of_service(service, None))
                return
            try:
                await self._follow_endpoints(service)
            except AccessDeniedError as exc:
                await follow_selected(service, exc)

        async def follow_selected(service: Object, denied: AccessDeniedError) -> None:
            """Follow the pods that the Service selects, as kubectl does, or else its clusterIP."""
            terms = service["spec"].get("selector")
            selector = Selector.of_workload({"matchLabels": terms} if terms else None)
            try:
                if selector.empty:
                    raise denied
                async for pods in self._watch("v1", "pods", selector):
                    self._pods = pods.values()
                    self._update(self._of_service(service, None))
            except AccessDeniedError:
                if is_headless(service):
                    raise denied from None
                about(logger, target=self._target.name).info("%s; using the clusterIP", denied)
                self._pods = None
                self._update(self._of_service(service, None))

        def addressing(service: Object) -> Object:
            """Drop the metadata that does not change where the Service leads."""
            return {"metadata": {"name": service["metadata"]["name"]}, "spec": service["spec"]}

        await self._while_it_exists(addressing, follow_endpoints)

    async def _follow_endpoints(self, service: Object) -> None:
        """Follow the endpoints of a Service. While a port has none, follow the Service's pods too:
        they say why, and may run."""
        selector = Selector.of_label("kubernetes.io/service-name", self._target.resource)
        looking: asyncio.Task[None] | None = None
        self._pods = None
        async with TaskGroup() as tasks:
            async for slices in self._watch("discovery.k8s.io/v1", "endpointslices", selector):
                self._slices = slices.values()
                found = self._of_service(service, self._slices)
                lacking = any(one.endpoint is None and not one.missing for one in found)
                if not lacking and looking is not None:
                    looking.cancel()
                    looking, self._pods = None, None
                elif lacking and looking is None and service["spec"].get("selector"):
                    looking = tasks.create_task(self._look_at_pods(service))
                if self._last or looking is None or self._pods is not None:
                    self._update(found)

    async def _look_at_pods(self, service: Object) -> None:
        """Follow the pods of a Service that has no ready endpoint."""
        try:
            selector = Selector.of_workload({"matchLabels": service["spec"]["selector"]})
            async for pods in self._watch("v1", "pods", selector):
                self._pods = pods.values()
                self._update(self._of_service(service, self._slices))
        except ClusterError as exc:
            about(logger, target=self._target.name).debug("its pods are not followed: %s", exc)
            self._pods = ()
            self._update(self._of_service(service, self._slices))

    async def _while_it_exists(
        self,
        relevant: Callable[[Object], Any],
        follow: Callable[[Any], Coroutine[Any, Any, None]],
    ) -> None:
        """Run `follow` with the `relevant` part of the object; restart it when that changes."""
        following: asyncio.Task[None] | None = None
        part: Any = None
        async with TaskGroup() as tasks:
            async for found in self._watch_target():
                item = next(iter(found.values()), None)
                before, part = part, None if item is None else relevant(item)
                if following is not None:
                    if part == before and item is not None:
                        continue
                    following.cancel()
                    following = None
                if item is None:
                    self._report_missing()
                else:
                    following = tasks.create_task(follow(part), name=self._target.name)

    def _watch_target(self) -> AsyncGenerator[Mapping[str, Object]]:
        return self._watch(*RESOURCES[self._target.kind], Selector(self._target.resource))

    async def _watch(
        self, version: str, resource: str, selector: Selector
    ) -> AsyncGenerator[Mapping[str, Object]]:
        path = collection(version, resource, self._namespace)
        async with aclosing(self._informers.watch(path, selector)) as sets:
            async for found in sets:
                yield found

    def _resolve_pods(self, pods: Collection[Object], ended: str) -> None:
        """Resolve to the best of `pods`. `ended` is the phase in which all have ended if no other
        will come."""
        ports = self._target.ports
        pod = choose_pod(pods, self._pod_uid)
        running = choose_running(pods, self._pod_uid)
        if running is not None and self._target.kind is Kind.POD and not is_ending(running):
            pod = running  # the user named this pod, ready or not
        if pod is not None:
            self._pod_uid = pod["metadata"].get("uid")
            found = [resolve_pod(pod, port) for port in ports]
            self._update(
                tuple(
                    replace(one, pods=pods_behind(pods, port, self._pod_uid) or one.pods)
                    for one, port in zip(found, ports, strict=True)
                )
            )
            return
        why, last = why_not_ready(pods)
        if not why:
            why = f"{self._target} has ended: {ended}" if ended else f"{self._target} has no pod"
        self._report_none(
            why,
            [resolve_pod(running, port) if running else None for port in ports],
            phase=last or ended,
            ended=bool(ended) and running is None,
        )

    def _of_service(
        self, service: Object, slices: Collection[Object] | None
    ) -> tuple[Resolution, ...]:
        target = self._target
        last = [resolution.endpoint for resolution in self._last] or [None] * len(target.ports)
        return tuple(
            resolve_service(
                service,
                port,
                slices,
                endpoint.host if endpoint else None,
                self._pods,
                affinity=target.affinity is Affinity.CLIENT,
            )
            for port, endpoint in zip(target.ports, last, strict=True)
        )

    def _report_missing(self, *, ended: bool = False) -> None:
        version, resource = RESOURCES[self._target.kind]
        group = version.rpartition("/")[0]
        what = f'{resource}{group and f".{group}"} "{self._target.resource}"'
        reason = f'{what} not found in namespace "{self._namespace}"'
        self._report_none(reason, missing=True, ended=ended)

    def _report_none(
        self, reason: str, fallbacks: Sequence[Resolution | None] = (), **fields: Any
    ) -> None:
        """Report that no port has an endpoint; each may have a fallback."""
        self._update(
            tuple(
                Resolution(
                    port.protocol or Protocol.TCP,
                    reason=reason,
                    fallback=fallback if fallback and fallback.endpoint else None,
                    **fields,
                )
                for port, fallback in zip_longest(self._target.ports, fallbacks)
            )
        )

    def _update(self, resolutions: tuple[Resolution, ...]) -> None:
        if not self._target.ready:
            resolutions = tuple(map(self._without_waiting, resolutions))
        if resolutions != self._last:
            self._last = resolutions
            self._publish(resolutions)

    def _without_waiting(self, resolution: Resolution) -> Resolution:
        """Return a resolution that leads to a pod that runs, if there is one.

        In a rollout the next pod is worth a wait; a pod that the user named is not replaced.
        """
        found = resolution.fallback
        if found is None or (found.ending and self._target.kind is not Kind.POD):
            return resolution
        return found


def _returns(pod: Object) -> bool:
    """Return whether a pod that is gone comes back under its name, as a StatefulSet's does."""
    return not owners(pod) <= {"ReplicaSet", "ReplicationController", "DaemonSet", "Job"}


def _finished(workload: Object) -> str:
    """Return the phase in which a Job that makes no more pods has ended; else nothing."""
    phases = {"Complete": "Succeeded", "Failed": "Failed"}
    for condition in workload.get("status", {}).get("conditions", ()):
        if condition.get("type") in phases and condition.get("status") == "True":
            return phases[condition["type"]]
    return ""
