"""Resolve: what a target's ports mean, kept current by watches.

The object itself is watched by its name. While it exists, the objects that it selects are watched
too: a Service's EndpointSlices, a workload's pods. A replaced object is a change like any other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from krelay.cluster.api import collection
from krelay.cluster.endpoints import (
    choose_pod,
    is_headless,
    pods_behind,
    resolve_pod,
    resolve_service,
    why_no_pod,
)
from krelay.cluster.informers import Informers
from krelay.cluster.objects import RESOURCES
from krelay.cluster.selectors import Selector
from krelay.errors import AccessDeniedError
from krelay.model import Kind, Protocol, Resolution, Target
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

    async def follow_pod(self) -> None:
        """Follow a pod by its name; a new pod of that name replaces it."""
        async for pods in self._watch_target():
            if pods:
                self._resolve_pods(pods.values())
            else:
                self._report_missing()

    async def follow_workload(self) -> None:
        """Follow the pods that a workload selects."""

        async def follow_pods(label_selector: Object | None) -> None:
            selector = Selector.of_workload(label_selector)
            if selector.empty:
                # As a selector it would mean every pod of the namespace.
                self._report_none(f"{self._target} selects no pods")
                return
            async for pods in self._watch("v1", "pods", selector):
                self._resolve_pods(pods.values())

        await self._while_it_exists(lambda item: item["spec"].get("selector"), follow_pods)

    async def follow_service(self) -> None:
        """Follow a Service, and its endpoints if it has any."""

        async def follow_endpoints(service: Object) -> None:
            if service["spec"].get("type") == "ExternalName":
                self._resolve_service(service, None)
                return
            selector = Selector.of_label("kubernetes.io/service-name", self._target.resource)
            try:
                async for slices in self._watch("discovery.k8s.io/v1", "endpointslices", selector):
                    self._resolve_service(service, slices.values())
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
                    self._resolve_service(service, None, pods.values())
            except AccessDeniedError:
                if is_headless(service):
                    raise denied from None
                about(logger, target=self._target.name).info("%s; using the clusterIP", denied)
                self._resolve_service(service, None)

        def addressing(service: Object) -> Object:
            """Drop the metadata that does not change where the Service leads."""
            return {"metadata": {"name": service["metadata"]["name"]}, "spec": service["spec"]}

        await self._while_it_exists(addressing, follow_endpoints)

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

    def _resolve_pods(self, pods: Collection[Object]) -> None:
        pod = choose_pod(pods, self._pod_uid)
        if pod is None:
            self._report_none(f"{self._target}: {why_no_pod(pods)}")
            return
        self._pod_uid = pod["metadata"].get("uid")
        self._update(
            tuple(
                replace(resolve_pod(pod, port), pods=pods_behind(pods, port, self._pod_uid))
                for port in self._target.ports
            )
        )

    def _resolve_service(
        self,
        service: Object,
        slices: Collection[Object] | None,
        selected: Collection[Object] | None = None,
    ) -> None:
        ports = self._target.ports
        last = [resolution.endpoint for resolution in self._last] or [None] * len(ports)
        self._update(
            tuple(
                resolve_service(
                    service, port, slices, endpoint.host if endpoint else None, selected
                )
                for port, endpoint in zip(ports, last, strict=True)
            )
        )

    def _report_missing(self) -> None:
        _, resource = RESOURCES[self._target.kind]
        what = f'{resource.removesuffix("s")} "{self._target.resource}"'
        self._report_none(f'{what} not found in namespace "{self._namespace}"', missing=True)

    def _report_none(self, reason: str, *, missing: bool = False) -> None:
        self._update(
            tuple(
                Resolution(port.protocol or Protocol.TCP, reason=reason, missing=missing)
                for port in self._target.ports
            )
        )

    def _update(self, resolutions: tuple[Resolution, ...]) -> None:
        if resolutions != self._last:
            self._last = resolutions
            self._publish(resolutions)
