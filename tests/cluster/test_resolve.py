"""The resolutions of a target as the watched sets change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from krelay.cluster import resolve
from krelay.cluster.selectors import Selector
from krelay.errors import AccessDeniedError, ClusterError
from krelay.model import Endpoint, Kind, Port, Protocol, Resolution, Target
from tests.cluster.test_endpoints import LEAVING, UNREADY, endpoint, part, pod, service

Objects = Mapping[str, dict[str, Any]]
Published = tuple[Resolution, ...]


class Sets:
    """A fake `Informers`: each selector yields the sets that the test puts there."""

    def __init__(self) -> None:
        self.queues: dict[tuple[str, str], asyncio.Queue[Objects | Exception]] = {}
        self.open: list[tuple[str, str]] = []

    def __getitem__(self, key: tuple[str, str]) -> asyncio.Queue[Objects | Exception]:
        return self.queues.setdefault(key, asyncio.Queue())

    def put(self, resource: str, selector: str, *items: dict[str, Any]) -> None:
        self[resource, selector].put_nowait({i["metadata"]["name"]: i for i in items})

    async def watch(self, path: str, selector: Selector) -> AsyncIterator[Objects]:
        key = (path.rpartition("/")[2], selector.field_selector or selector.label_selector)
        self.open.append(key)
        try:
            while True:
                item = await self[key].get()
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.open.remove(key)


class Following:
    """`follow_target` as a task, and its resolutions."""

    def __init__(self, sets: Any, target: Target) -> None:
        self.published: asyncio.Queue[Published] = asyncio.Queue()
        self.work = resolve.follow_target(sets, target, "shop", self.published.put_nowait)

    async def __aenter__(self) -> Following:
        self.task = asyncio.get_running_loop().create_task(self.work)
        return self

    async def next(self) -> Resolution:
        async with asyncio.timeout(5):
            return (await self.published.get())[0]

    async def error(self) -> BaseException:
        async with asyncio.timeout(5):
            await asyncio.wait([self.task])
        error = self.task.exception()
        assert error is not None
        return error

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])
        assert self.published.empty()


@pytest.fixture
def sets() -> Sets:
    return Sets()


def target(kind: Kind, name: str = "web", *ports: Port) -> Target:
    return Target(name, kind, name, ports or (Port(8080),))


NAME = "metadata.name=web"
SLICES = "kubernetes.io/service-name=web"


def workload(selector: dict[str, Any] | None) -> dict[str, Any]:
    return {"metadata": {"name": "web"}, "spec": {"selector": selector}}


async def test_a_host_is_published_once_as_given() -> None:
    published: list[Published] = []
    wanted = Target("h", Kind.HOST, "db.example.test", (Port(5432, 1), Port(53, 2, Protocol.UDP)))
    await resolve.follow_target(None, wanted, "", published.append)  # type: ignore[arg-type]
    assert published == [
        (
            Resolution(Protocol.TCP, Endpoint("db.example.test", 5432), via="as given"),
            Resolution(Protocol.UDP, Endpoint("db.example.test", 53), via="as given"),
        )
    ]


async def test_a_pod_that_comes_and_goes_is_published(sets: Sets) -> None:
    async with Following(sets, target(Kind.POD)) as following:
        sets.put("pods", NAME)
        assert (await following.next()).reason == 'pods "web" not found in namespace "shop"'
        sets.put("pods", NAME, pod("web", status={"phase": "Pending", "conditions": []}))
        pending = await following.next()
        assert (pending.reason, pending.phase) == ("pod web is not running: Pending", "Pending")
        sets.put("pods", NAME, pod("web"))
        assert (await following.next()).endpoint == Endpoint("10.1.0.1", 8080)
        sets.put("pods", NAME, pod("web", spec={"nodeName": "n"}))  # nothing new for us
        sets.put("pods", NAME, pod("web", **LEAVING))
        leaving = await following.next()
        assert (leaving.endpoint, leaving.reason) == (None, "pod web is being deleted")
        assert leaving.fallback is not None
        assert leaving.fallback.ending
    assert sets.open == []


async def test_a_pod_that_runs_is_used_ready_or_not(sets: Sets) -> None:
    async with Following(sets, target(Kind.POD)) as following:
        sets.put("pods", NAME, pod("web", **UNREADY))
        found = await following.next()
        assert (found.endpoint, found.unready) == (Endpoint("10.1.0.1", 8080), True)


@pytest.mark.parametrize(
    ("owner", "returns"), [(None, False), ("ReplicaSet", False), ("StatefulSet", True)]
)
async def test_only_the_pod_of_a_stateful_set_comes_back(
    sets: Sets, owner: str | None, returns: bool
) -> None:
    owned: dict[str, Any] = {"metadata": {"ownerReferences": owner and [{"kind": owner}]}}
    async with Following(sets, target(Kind.POD)) as following:
        sets.put("pods", NAME)
        assert not (await following.next()).ended, "it may still come"
        sets.put("pods", NAME, pod("web", **owned, status={"phase": "Failed"}))
        found = await following.next()
        assert (found.ended, found.phase) == (not returns, "Failed")
        assert found.reason == "pod web is not running: Failed"
        sets.put("pods", NAME)
        gone = await following.next()
        assert (gone.ended, gone.missing) == (not returns, True)


async def test_a_workload_s_pods_are_followed(sets: Sets) -> None:
    async with Following(sets, target(Kind.DEPLOYMENT)) as following:
        sets.put("deployments", NAME)
        missing = await following.next()
        assert missing.reason == 'deployments.apps "web" not found in namespace "shop"'
        sets.put("deployments", NAME, workload({"matchLabels": {"app": "web"}}))
        sets.put("pods", "app=web", pod("a"))
        assert (await following.next()).via == "pod a"
        sets.put("pods", "app=web", pod("a"), pod("b", status={"podIP": "10.1.0.2"}))
        both = await following.next()
        assert (both.via, [found.name for found in both.pods]) == ("pod a", ["a", "b"])
        sets.put("pods", "app=web", pod("a", **LEAVING), pod("b", status={"podIP": "10.1.0.2"}))
        assert (await following.next()).endpoint == Endpoint("10.1.0.2", 8080)


async def test_a_recreated_workload_is_followed_by_its_new_selector(sets: Sets) -> None:
    async with Following(sets, target(Kind.STATEFULSET)) as following:
        sets.put("statefulsets", NAME, workload({"matchLabels": {"app": "old"}}))
        sets.put("pods", "app=old", pod("old"))
        assert (await following.next()).via == "pod old"
        sets.put("statefulsets", NAME, workload({"matchLabels": {"app": "new"}}))
        sets.put("pods", "app=new", pod("new"))
        assert (await following.next()).via == "pod new"
        assert ("pods", "app=old") not in sets.open


@pytest.mark.parametrize("ready", [True, False])
async def test_a_workload_without_a_ready_pod_falls_back_to_one_that_runs(
    sets: Sets, ready: bool
) -> None:
    wanted = replace(target(Kind.DEPLOYMENT), ready=ready)
    async with Following(sets, wanted) as following:
        sets.put("deployments", NAME, workload({"matchLabels": {"app": "web"}}))
        sets.put("pods", "app=web", pod("a", **UNREADY))
        found = await following.next()
        if ready:
            assert (found.endpoint, found.reason) == (None, "pod a is not ready")
            assert found.fallback is not None
            found = found.fallback
        assert (found.endpoint, found.unready) == (Endpoint("10.1.0.1", 8080), True)
        sets.put("pods", "app=web", pod("a", **UNREADY, **LEAVING))
        leaving = await following.next()
        assert leaving.endpoint is None, "the next pod is worth a wait"
        assert leaving.fallback is not None


@pytest.mark.parametrize("condition", ["Complete", "Failed", "Suspended"])
async def test_a_finished_job_has_ended(sets: Sets, condition: str) -> None:
    job = workload({"matchLabels": {"app": "web"}})
    over = {**job, "status": {"conditions": [{"type": condition, "status": "True"}]}}
    phase = {"Complete": "Succeeded", "Failed": "Failed"}.get(condition, "")
    async with Following(sets, target(Kind.JOB)) as following:
        sets.put("jobs", NAME, job)
        sets.put("pods", "app=web", pod("a", status={"phase": "Failed"}))
        assert not (await following.next()).ended, "a Job may try again"
        sets.put("jobs", NAME, over)
        sets.put("pods", "app=web")
        found = await following.next()
        assert (found.ended, found.phase) == (bool(phase), phase)
        expected = f"job/web has ended: {phase}" if phase else "job/web has no pod"
        assert found.reason == expected


async def test_an_empty_selector_selects_no_pods(sets: Sets) -> None:
    async with Following(sets, target(Kind.JOB)) as following:
        sets.put("jobs", NAME, workload(None))
        assert (await following.next()).reason == "job/web selects no pods"
        assert ("pods", "") not in sets.open


async def test_a_service_without_endpoints_is_unresolved_until_it_has_some(sets: Sets) -> None:
    async with Following(sets, target(Kind.SERVICE, "web", Port(80))) as following:
        sets.put("services", NAME, service())
        sets.put("endpointslices", SLICES, part_named(endpoint()))
        assert (await following.next()).endpoint == Endpoint("10.96.0.9", 80)
        sets.put("endpointslices", SLICES, part_named())
        assert (await following.next()).reason == 'service "web" has no ready endpoint'
        sets.put("pods", "app=web", pod("a", **UNREADY))
        found = await following.next()
        assert found.reason == 'service "web" has no ready endpoint: pod a is not ready'
        sets.put("endpointslices", SLICES, part_named(endpoint("10.1.0.7")))
        assert (await following.next()).endpoint == Endpoint("10.96.0.9", 80)
        changed = service(clusterIP="10.96.0.77")
        sets.put("services", NAME, changed)
        sets.put("endpointslices", SLICES, part_named(endpoint()))
        assert (await following.next()).endpoint == Endpoint("10.96.0.77", 80)
        labelled = {**changed, "metadata": {"name": "web", "labels": {"a": "b"}}}
        sets.put("services", NAME, labelled)  # says nothing of where it leads
        sets.put("services", NAME)
        assert "not found" in (await following.next()).reason


def part_named(*endpoints: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"name": "web-1"}, **part(*endpoints)}


async def test_a_headless_service_stays_with_its_endpoint(sets: Sets) -> None:
    async with Following(sets, target(Kind.SERVICE, "web", Port("http"))) as following:
        sets.put("services", NAME, service(clusterIP="None"))
        sets.put("endpointslices", SLICES, part_named(endpoint("10.1.0.5")))
        assert (await following.next()).endpoint == Endpoint("10.1.0.5", 8080)
        sets.put("endpointslices", SLICES, part_named(endpoint("10.1.0.1"), endpoint("10.1.0.5")))
        sets.put("endpointslices", SLICES, part_named(endpoint("10.1.0.1")))
        assert (await following.next()).endpoint == Endpoint("10.1.0.1", 8080)


async def test_an_external_name_needs_no_endpoints(sets: Sets) -> None:
    async with Following(sets, target(Kind.SERVICE, "web", Port(80))) as following:
        sets.put("services", NAME, service(type="ExternalName", externalName="a.example.test"))
        assert (await following.next()).endpoint == Endpoint("a.example.test", 80)


@pytest.mark.parametrize("answer", ["pods", "denied"])
async def test_a_service_without_endpoints_is_first_published_with_what_its_pods_say(
    sets: Sets, answer: str
) -> None:
    wanted = replace(target(Kind.SERVICE, "web", Port(53, protocol=Protocol.UDP)), ready=False)
    async with Following(sets, wanted) as following:
        sets.put("services", NAME, service())
        sets.put("endpointslices", SLICES, part_named())
        sets.put("endpointslices", SLICES, part_named(endpoint(ready=False, serving=False)))
        if answer == "pods":
            sets.put("pods", "app=web", pod("a", **UNREADY))
            assert (await following.next()).endpoint == Endpoint("10.1.0.1", 53)
        else:
            sets["pods", "app=web"].put_nowait(DENIED)
            assert (await following.next()).reason == 'service "web" has no ready endpoint'
        sets.put("endpointslices", SLICES, part_named(endpoint("10.1.0.7")))
        assert (await following.next()).endpoint == Endpoint("10.96.0.9", 53)
        assert ("pods", "app=web") not in sets.open


DENIED = AccessDeniedError("cannot list endpointslices.discovery.k8s.io")


async def test_a_cluster_ip_is_used_without_the_right_to_endpoints(sets: Sets) -> None:
    async with Following(sets, target(Kind.SERVICE, "web", Port(80))) as following:
        sets["endpointslices", SLICES].put_nowait(DENIED)
        sets["pods", "app=web"].put_nowait(DENIED)
        sets.put("services", NAME, service())
        assert (await following.next()).endpoint == Endpoint("10.96.0.9", 80)


async def test_without_the_right_to_endpoints_the_selected_pods_are_followed(sets: Sets) -> None:
    async with Following(sets, target(Kind.SERVICE, "web", Port(53))) as following:
        sets["endpointslices", SLICES].put_nowait(DENIED)
        sets.put("services", NAME, service(clusterIP="None"))
        sets.put("pods", "app=web", pod("a"))
        assert (await following.next()).endpoint == Endpoint("10.1.0.1", 53)
        sets.put("pods", "app=web")
        assert (await following.next()).pods == ()


async def test_a_headless_service_without_the_right_to_endpoints_is_denied(sets: Sets) -> None:
    async with Following(sets, target(Kind.SERVICE, "web", Port(80))) as following:
        sets["endpointslices", SLICES].put_nowait(DENIED)
        sets["pods", "app=web"].put_nowait(DENIED)
        sets.put("services", NAME, service(clusterIP="None"))
        assert await following.error() is DENIED


@pytest.mark.parametrize("kind", [Kind.POD, Kind.DEPLOYMENT, Kind.SERVICE])
async def test_an_error_of_a_watch_is_raised_unchanged(sets: Sets, kind: Kind) -> None:
    resource = {Kind.POD: "pods", Kind.DEPLOYMENT: "deployments", Kind.SERVICE: "services"}[kind]
    error = ClusterError("no such collection")
    async with Following(sets, target(kind)) as following:
        sets[resource, NAME].put_nowait(error)
        assert await following.error() is error


async def test_an_error_of_an_inner_watch_is_raised_unchanged(sets: Sets) -> None:
    async with Following(sets, target(Kind.DEPLOYMENT)) as following:
        sets["pods", "app=web"].put_nowait(DENIED)
        sets.put("deployments", NAME, workload({"matchLabels": {"app": "web"}}))
        assert await following.error() is DENIED
    assert sets.open == []


async def test_an_unknown_operator_of_a_selector_is_an_error(sets: Sets) -> None:
    async with Following(sets, target(Kind.DEPLOYMENT)) as following:
        selector = {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}
        sets.put("deployments", NAME, workload(selector))
        assert isinstance(await following.error(), ClusterError)
