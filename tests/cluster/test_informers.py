"""Shared watches, against an API server that keeps collections and counts requests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import pytest
from aiohttp import web

from krelay.cluster import informers as module
from krelay.cluster.api import Api
from krelay.cluster.informers import FEW, Informers
from krelay.cluster.resolve import follow_target
from krelay.cluster.selectors import Selector
from krelay.errors import AccessDeniedError, ClusterError, CredentialsError
from krelay.model import Kind, Port, Resolution, Target
from tests import rig
from tests.cluster.collections import Collections, Object
from tests.cluster.test_endpoints import endpoint, part, pod, service

SHOP = "/api/v1/namespaces/shop"
PODS, SERVICES = f"{SHOP}/pods", f"{SHOP}/services"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices"
DEPLOYMENTS = "/apis/apps/v1/namespaces/shop/deployments"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every pause zero; the tests check order, not time."""
    monkeypatch.setattr("krelay.cluster.reflector.random.uniform", lambda low, high: 0.0)
    monkeypatch.setattr("krelay.cluster.api.random.uniform", lambda low, high: 0.0)
    monkeypatch.setattr(module, "ERROR_TTL", 0.0)


@pytest.fixture
def server(kube: Any) -> Iterator[Collections]:
    found = Collections(kube)
    yield found
    found.cut()


@pytest.fixture
async def informers(kube: Any, server: Collections) -> AsyncIterator[Informers]:
    async with await Api.connect(kubeconfig=kube.kubeconfig({"token": "t"})) as api:
        made = Informers(api)
        yield made
        await made.close()
        await rig.until(lambda: not server.open)


class Consumer:
    """Subscribes from its creation to `leave`; keeps the newest set."""

    def __init__(self, informers: Informers, path: str, selector: Selector) -> None:
        self.names: list[str] | None = None
        self.items: list[Any] = []
        self.sets = 0
        self.error: ClusterError | None = None
        self._task = asyncio.get_running_loop().create_task(self._run(informers, path, selector))

    async def _run(self, informers: Informers, path: str, selector: Selector) -> None:
        try:
            async with contextlib.aclosing(informers.watch(path, selector)) as sets:
                async for found in sets:
                    self._take(found)
        except ClusterError as exc:
            self.error = exc

    def _take(self, found: Mapping[str, Any]) -> None:
        self.sets += 1
        self.items = list(found.values())
        self.names = sorted(item["metadata"]["name"] for item in self.items)

    async def fails(self) -> None:
        await rig.until(lambda: self.error)

    async def leave(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


Consume = Callable[[str, Selector], Consumer]


@pytest.fixture
async def consume(informers: Informers) -> AsyncIterator[Consume]:
    """Create consumers, which leave at the end."""
    made: list[Consumer] = []

    def make(path: str, selector: Selector) -> Consumer:
        made.append(Consumer(informers, path, selector))
        return made[-1]

    yield make
    for consumer in made:
        await consumer.leave()


def labelled(name: str, **labels: str) -> Object:
    return {"metadata": {"name": name, "labels": labels}, "spec": {"x": 1}}


async def sees(consumer: Consumer, *names: str) -> None:
    await rig.until(lambda: consumer.names == list(names))


async def test_subscribers_of_one_object_share_one_watch(
    consume: Consume, server: Collections
) -> None:
    server.put(SERVICES, labelled("web"))
    consumers = [consume(SERVICES, Selector("web")) for _ in range(20)]
    for consumer in consumers:
        await sees(consumer, "web")
    late = consume(SERVICES, Selector("web"))
    await sees(late, "web")
    server.remove(SERVICES, "web")
    for consumer in [*consumers, late]:
        await sees(consumer)
    assert server.lists("services") == ["metadata.name=web"]
    assert server.watches("services") == ["metadata.name=web"]


async def test_the_last_subscriber_ends_the_watch(consume: Consume, server: Collections) -> None:
    server.put(SERVICES, labelled("web"))
    first, second = (consume(SERVICES, Selector("web")) for _ in range(2))
    await sees(second, "web")
    await rig.until(lambda: server.open)
    await first.leave()
    server.remove(SERVICES, "web")
    await sees(second)
    assert server.watches("services") == ["metadata.name=web"]
    await second.leave()
    await rig.until(lambda: not server.open)
    again = consume(SERVICES, Selector("web"))
    await sees(again)
    assert len(server.lists("services")) == 2


@pytest.mark.parametrize("count", [1, FEW + 1])
async def test_watches_are_listed_anew_on_request(
    count: int, consume: Consume, informers: Informers, server: Collections
) -> None:
    names = [f"s{number}" for number in range(count)]
    server.put(SERVICES, *map(labelled, names))
    consumers = [consume(SERVICES, Selector(name)) for name in names]
    for name, consumer in zip(names, consumers, strict=True):
        await sees(consumer, name)
    await rig.until(lambda: server.open)
    before = len(server.lists("services"))
    informers.relist()
    await rig.until(lambda: len(server.lists("services")) == 2 * before)
    server.remove(SERVICES, names[0])
    await sees(consumers[0])
    assert all(consumer.sets == 1 for consumer in consumers[1:])


async def test_a_few_objects_are_watched_one_by_one(consume: Consume, server: Collections) -> None:
    names = [f"s{number}" for number in range(FEW)]
    server.put(SERVICES, *map(labelled, names))
    for name in names:
        await sees(consume(SERVICES, Selector(name)), name)
    await rig.until(lambda: len(server.open) == FEW)
    assert server.watches("services") == [f"metadata.name={name}" for name in names]


async def test_many_objects_are_watched_as_one_collection(
    consume: Consume, server: Collections
) -> None:
    names = [f"s{number:02}" for number in range(40)]
    server.put(SERVICES, *map(labelled, names), labelled("unwanted"))
    consumers = {name: consume(SERVICES, Selector(name)) for name in names}
    for name, consumer in consumers.items():
        await sees(consumer, name)
    await rig.until(lambda: server.open)
    assert server.lists("services") == [""]
    assert server.watches("services") == [""]
    server.put(SERVICES, labelled("unwanted", a="b"), labelled("s07", a="b"))
    server.remove(SERVICES, "s08")
    await sees(consumers["s08"])
    assert consumers["s07"].items[0]["metadata"]["labels"] == {"a": "b"}
    assert consumers["s09"].sets == 1, "the change of another object is no news"


async def test_more_objects_join_one_by_one_until_they_are_many_again(
    consume: Consume, server: Collections
) -> None:
    names = [f"s{number:02}" for number in range(2 * FEW + 2)]
    server.put(SERVICES, *map(labelled, names))
    for name in names[: FEW + 1]:
        consume(SERVICES, Selector(name))
    await rig.until(lambda: server.watches("services") == [""])
    late = [consume(SERVICES, Selector(name)) for name in names[FEW + 1 : -1]]
    for consumer, name in zip(late, names[FEW + 1 :], strict=False):
        await sees(consumer, name)
    await rig.until(lambda: len(server.open) == 1 + FEW)
    last = consume(SERVICES, Selector(names[-1]))
    await sees(last, names[-1])
    await rig.until(lambda: server.watches("services") == [""])
    server.remove(SERVICES, names[FEW + 1])
    await sees(late[0])


async def test_a_collection_ends_with_its_last_subscriber(
    consume: Consume, server: Collections
) -> None:
    consumers = [consume(SERVICES, Selector(f"s{n}")) for n in range(FEW + 5)]
    await rig.until(lambda: server.watches("services") == [""])
    for consumer in consumers[1:]:
        await consumer.leave()
    server.put(SERVICES, labelled("s0"))
    await sees(consumers[0], "s0")
    await consumers[0].leave()
    await rig.until(lambda: not server.open)


def only_by_name(verb: str, path: str, query: dict[str, str]) -> bool:
    return "fieldSelector" in query


def only_by_name_or_label(verb: str, path: str, query: dict[str, str]) -> bool:
    return "fieldSelector" in query or "labelSelector" in query


async def test_without_the_right_to_a_collection_each_object_is_watched(
    consume: Consume, server: Collections, caplog: pytest.LogCaptureFixture
) -> None:
    server.allows = only_by_name
    names = [f"s{number}" for number in range(FEW + 5)]
    server.put(SERVICES, *map(labelled, names))
    for name in names:
        await sees(consume(SERVICES, Selector(name)), name)
    await rig.until(lambda: len(server.open) == len(names))
    await sees(consume(SERVICES, Selector("another")))
    assert server.lists("services").count("") == 1, "a denied list is not repeated for each object"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_collection_that_cannot_be_watched_falls_back_to_single_watches(
    consume: Consume, server: Collections
) -> None:
    server.allows = lambda verb, path, query: verb == "list" or "fieldSelector" in query
    names = [f"s{number}" for number in range(FEW + 1)]
    server.put(SERVICES, *map(labelled, names))
    consumers = [consume(SERVICES, Selector(name)) for name in names]
    await rig.until(lambda: len(server.open) == len(names))
    for consumer, name in zip(consumers, names, strict=True):
        await sees(consumer, name)
        assert consumer.error is None


async def test_a_lost_right_to_the_collection_falls_back_to_single_watches(
    consume: Consume, server: Collections
) -> None:
    names = [f"s{number}" for number in range(FEW + 1)]
    server.put(SERVICES, *map(labelled, names))
    consumers = [consume(SERVICES, Selector(name)) for name in names]
    await rig.until(lambda: server.watches("services") == [""])
    server.allows = only_by_name
    server.cut()
    await rig.until(lambda: len(server.open) == len(names))
    server.remove(SERVICES, "s1")
    await sees(consumers[1])
    await sees(consumers[2], "s2")


async def test_a_collection_that_is_too_large_is_not_watched_as_a_whole(
    consume: Consume, server: Collections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_OBJECTS", 10)
    monkeypatch.setattr(module, "MAX_OBJECTS_EACH", 1)
    wanted = [f"p{number}" for number in range(FEW + 1)]
    server.put(PODS, *(labelled(name) for name in wanted), *(labelled(f"x{n}") for n in range(20)))
    for name in wanted:
        await sees(consume(PODS, Selector(name)), name)
    await rig.until(lambda: len(server.open) == len(wanted))
    assert server.watches("pods") == [f"metadata.name={name}" for name in wanted]


@pytest.mark.parametrize("how", ["trouble", "odd", "silent"])
async def test_a_collection_that_does_not_list_starves_no_target(
    kube: Any, consume: Consume, server: Collections, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Each target has its own watch until the collection lists."""
    wanted = [f"p{number}" for number in range(FEW + 1)]
    server.put(PODS, *(labelled(name) for name in wanted))
    works, well = kube.handler, asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        query = request.query
        if well.is_set() or "watch" in query or "fieldSelector" in query:
            return await works(request)  # type: ignore[no-any-return]
        if how == "silent":
            await well.wait()
        if how == "odd":
            return web.json_response({"metadata": {}, "items": [5]})
        return web.json_response({"message": "no"}, status=503)

    kube.handler = answer
    if how == "silent":
        monkeypatch.setattr(module, "LIST_DEADLINE", 0.2)
    monkeypatch.setattr(module, "FAILED_PAUSE", 1.0)
    consumers = [consume(PODS, Selector(name)) for name in wanted]
    for name, consumer in zip(wanted, consumers, strict=True):
        await sees(consumer, name)
    well.set()
    await rig.until(lambda: server.watches("pods") == [""])
    assert not any(consumer.error for consumer in consumers)


async def test_a_denied_object_does_not_affect_the_others(
    consume: Consume, server: Collections
) -> None:
    server.allows = lambda verb, path, query: query.get("fieldSelector") != "metadata.name=secret"
    server.put(SERVICES, labelled("web"))
    web = consume(SERVICES, Selector("web"))
    secret = consume(SERVICES, Selector("secret"))
    await sees(web, "web")
    await rig.until(lambda: secret.error)
    assert isinstance(secret.error, AccessDeniedError)
    server.remove(SERVICES, "web")
    await sees(web)
    assert web.error is None


async def test_an_error_is_shared_by_all_subscribers_of_a_selector(
    consume: Consume, server: Collections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ERROR_TTL", 3600.0)
    server.fails = 403
    consumers = [consume(SERVICES, Selector("web")) for _ in range(20)]
    for consumer in consumers:
        await consumer.fails()
    late = consume(SERVICES, Selector("web"))
    await rig.until(lambda: late.error)
    assert late.error is consumers[0].error
    assert len(server.requests) == 1


@pytest.mark.parametrize("count", [1, FEW + 2])
async def test_a_version_too_old_lists_again(
    consume: Consume, server: Collections, count: int
) -> None:
    server.put(SERVICES, labelled("s0"))
    consumers = [consume(SERVICES, Selector(f"s{n}")) for n in range(count)]
    await rig.until(lambda: server.open)
    await sees(consumers[0], "s0")
    server.expire()
    server.objects[SERVICES].clear()
    await sees(consumers[0])
    assert len(server.lists("services")) == 2


async def test_pods_of_workloads_and_pods_by_name_share_a_collection(
    consume: Consume, server: Collections
) -> None:
    both = Selector.of_workload(
        {"matchLabels": {"app": "a"}, "matchExpressions": [{"key": "v", "operator": "Exists"}]}
    )
    odd = Selector.of_workload({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]})
    server.put(PODS, labelled("a1", app="a"), labelled("b1", app="b"), labelled("solo"))
    a, b = (consume(PODS, Selector.of_label("app", x)) for x in "ab")
    solo, rest = consume(PODS, Selector("solo")), consume(PODS, odd)
    strict = consume(PODS, both)
    await sees(a, "a1")
    await sees(b, "b1")
    await sees(solo, "solo")
    await sees(rest, "solo")
    await sees(strict)
    await rig.until(lambda: server.open)
    assert server.watches("pods") == [""]
    server.put(PODS, labelled("b1", app="a", v="2"))
    await sees(b)
    await sees(a, "a1", "b1")
    await sees(strict, "b1")


async def test_an_undeclared_field_is_neither_kept_nor_a_change(
    consume: Consume, server: Collections
) -> None:
    item = pod("web", spec={"nodeName": "n", "containers": [{"image": "i", "ports": []}]})
    server.put(PODS, item)
    web = consume(PODS, Selector("web"))
    await sees(web, "web")
    assert web.items[0]["spec"] == {"nodeName": "n", "containers": [{"ports": []}]}
    item["metadata"]["annotations"] = {"a": "b"}
    server.put(PODS, item)
    server.remove(PODS, "web")
    await sees(web)
    assert web.sets == 2


async def test_an_api_server_that_is_lost_is_logged_once(
    consume: Consume, server: Collections, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "krelay")
    consumers = [
        consume(path, Selector(name))
        for path in (SERVICES, PODS, DEPLOYMENTS)
        for name in ("a", "b")
    ]
    await rig.until(lambda: len(server.open) == 6)
    asked = len(server.requests)
    server.fails = 503
    server.cut()
    await rig.until(lambda: len(server.requests) >= asked + 20)
    server.fails = None
    await rig.until(lambda: len(server.open) == 6)
    server.put(SERVICES, labelled("a"))
    await sees(consumers[0], "a")
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


async def test_an_internal_error_reaches_its_subscribers(
    consume: Consume, server: Collections, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr("krelay.cluster.reflector.read_list", broken)
    server.put(SERVICES, labelled("web"))
    consumers = [consume(SERVICES, Selector(name)) for name in ("web", *"abcdef")]
    for consumer in consumers:
        await consumer.fails()
    assert "internal error" in str(consumers[0].error)


async def test_a_closed_informer_refuses_subscribers(kube: Any, server: Collections) -> None:
    async with await Api.connect(kubeconfig=kube.kubeconfig({"token": "t"})) as api:
        informers = Informers(api)
        first = Consumer(informers, SERVICES, Selector("web"))
        await sees(first)
        await informers.close()
        late = Consumer(informers, SERVICES, Selector("web"))
        await rig.until(lambda: late.error)
        await first.leave()


async def test_a_subscriber_that_leaves_after_close_starts_nothing(
    kube: Any, server: Collections
) -> None:
    async with await Api.connect(kubeconfig=kube.kubeconfig({"token": "t"})) as api:
        informers = Informers(api)
        many = [Consumer(informers, SERVICES, Selector(f"s{n}")) for n in range(FEW + 3)]
        await rig.until(lambda: server.open)
        await informers.close()
        asked = len(server.requests)
        for consumer in many:
            await consumer.leave()
        await rig.until(lambda: not server.open)
        assert len(server.requests) == asked


async def test_two_hundred_targets_on_three_objects_take_five_watches(
    informers: Informers, server: Collections
) -> None:
    server.put(SERVICES, service())
    sliced = {"metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}}}
    server.put(SLICES, {**sliced, **part(endpoint())})
    server.put(
        DEPLOYMENTS,
        {"metadata": {"name": "api"}, "spec": {"selector": {"matchLabels": {"app": "api"}}}},
    )
    backend = pod("api-1")
    backend["metadata"]["labels"] = {"app": "api"}
    server.put(PODS, pod("solo"), backend)
    objects = [(Kind.SERVICE, "web", 80), (Kind.DEPLOYMENT, "api", 8080), (Kind.POD, "solo", 8080)]
    published: dict[str, tuple[Resolution, ...]] = {}
    async with asyncio.TaskGroup() as tasks:
        running = []
        for number in range(200):
            kind, name, port = objects[number % 3]
            target = Target(f"t{number}", kind, name, (Port(port),))

            def publish(found: tuple[Resolution, ...], name: str = target.name) -> None:
                published[name] = found

            running.append(tasks.create_task(follow_target(informers, target, "shop", publish)))
        await rig.until(lambda: len(published) == 200)
        await rig.until(lambda: len(server.open) == 5)
        assert all(found[0].endpoint for found in published.values())
        server.remove(PODS, "solo")
        await rig.until(lambda: all(not published[f"t{n}"][0].endpoint for n in range(2, 200, 3)))
        assert server.most_open == 5
        for task in running:
            task.cancel()
    await rig.until(lambda: not server.open)


@pytest.mark.parametrize("count", [1, FEW + 2])
async def test_credentials_that_are_refused_are_an_error_of_every_subscriber(
    consume: Consume, server: Collections, count: int
) -> None:
    server.fails = 401
    consumers = [consume(SERVICES, Selector(f"s{number}")) for number in range(count)]
    for consumer in consumers:
        await consumer.fails()
        assert isinstance(consumer.error, CredentialsError)


@pytest.mark.parametrize("seed", range(8))
async def test_every_subscriber_converges_after_random_events(
    consume: Consume, server: Collections, seed: int
) -> None:
    chance = random.Random(seed)
    names = [f"p{number}" for number in range(8)]
    selectors = [*map(Selector, names), *(Selector.of_label("app", app) for app in "ab")]
    consumers: list[tuple[Selector, Consumer]] = []
    for _ in range(80):
        match chance.randrange(9):
            case 0 | 1 | 2:
                selector = chance.choice(selectors)
                consumers.append((selector, consume(PODS, selector)))
            case 3 if consumers:
                await consumers.pop(chance.randrange(len(consumers)))[1].leave()
            case 4 | 5:
                server.put(PODS, labelled(chance.choice(names), app=chance.choice("abc")))
            case 6 if server.objects.get(PODS):
                server.remove(PODS, chance.choice(list(server.objects[PODS])))
            case 7:
                chance.choice([server.expire, server.cut])()
            case 8:
                server.allows = chance.choice([lambda *_: True, only_by_name_or_label])
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(chance.choice([0, 0.002]))
    server.allows = lambda *_: True
    for selector, consumer in consumers:
        found = [item for item in server.objects.get(PODS, {}).values() if selector.matches(item)]
        await sees(consumer, *sorted(item["metadata"]["name"] for item in found))
    for _, consumer in consumers:
        await consumer.leave()
    await rig.until(lambda: not server.open)
