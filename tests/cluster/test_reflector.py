from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from krelay.cluster import reflector as module
from krelay.cluster.api import Api
from krelay.cluster.auth.kubeconfig import Overrides
from krelay.cluster.reflector import _apply, list_and_watch
from krelay.errors import AccessDeniedError, ClusterError, CredentialsError, NotFoundError

PODS = "/api/v1/namespaces/x/pods"
END = b""
MORE: dict[str, Any] = {"continue": "more"}


def pod(name: str, version: int, **more: Any) -> dict[str, Any]:
    metadata = {"name": name, "uid": f"u-{name}", "labels": {"version": str(version)}}
    return {"metadata": {**metadata, "resourceVersion": str(version)}, **more}


def read(item: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of `pod` that krelay keeps."""
    metadata = {key: value for key, value in item["metadata"].items() if key != "resourceVersion"}
    return {**item, "metadata": metadata}


def event(kind: str, item: dict[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


def error(code: int) -> bytes:
    return event("ERROR", {"kind": "Status", "code": code, "message": "too old"})


class Pods:
    """A collection: each list and each watch takes the test's next answer."""

    def __init__(self, kube: Any) -> None:
        self.lists: asyncio.Queue[web.Response] = asyncio.Queue()
        self.watches: asyncio.Queue[asyncio.Queue[bytes] | web.Response] = asyncio.Queue()
        self.listed: list[dict[str, str]] = []
        self.watched: list[dict[str, str]] = []
        self.bodies: list[asyncio.Queue[bytes]] = []
        kube.handler = self.handle

    def list(self, *items: dict[str, Any], version: int = 1, **metadata: Any) -> None:
        body = {"items": items, "metadata": {"resourceVersion": str(version), **metadata}}
        self.lists.put_nowait(web.json_response(body))

    def refuse_list(self, status: int, message: str = "no", **headers: str) -> None:
        body = json.dumps({"message": message})
        self.lists.put_nowait(web.Response(status=status, text=body, headers=headers))

    def refuse_watch(self, status: int, message: str = "no", **headers: str) -> None:
        body = json.dumps({"message": message})
        self.watches.put_nowait(web.Response(status=status, text=body, headers=headers))

    def watch(self, *chunks: bytes) -> asyncio.Queue[bytes]:
        """Answer the next watch with these chunks and later ones; END ends it."""
        body: asyncio.Queue[bytes] = asyncio.Queue()
        for chunk in chunks:
            body.put_nowait(chunk)
        self.watches.put_nowait(body)
        self.bodies.append(body)
        return body

    async def handle(self, request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        if "watch" not in query:
            self.listed.append(query)
            return await self.lists.get()
        self.watched.append(query)
        body = await self.watches.get()
        if isinstance(body, web.Response):
            return body
        response = web.StreamResponse()
        await response.prepare(request)
        while chunk := await body.get():
            await response.write(chunk)
        return response


@pytest.fixture
async def pods(kube: Any) -> AsyncIterator[Pods]:
    found = Pods(kube)
    yield found
    for body in found.bodies:
        body.put_nowait(END)


@contextlib.asynccontextmanager
async def following(kube: Any, **selectors: Any) -> AsyncIterator[Any]:
    path = kube.kubeconfig({"token": "t"})
    async with (
        await Api.connect(kubeconfig=path, overrides=Overrides(request_timeout=8)) as api,
        contextlib.aclosing(list_and_watch(api, PODS, **selectors)) as sets,
    ):
        yield sets


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every pause zero; the tests check order, not time."""
    monkeypatch.setattr("krelay.cluster.reflector.random.uniform", lambda low, high: 0.0)
    monkeypatch.setattr("krelay.cluster.api.random.uniform", lambda low, high: 0.0)


def names(found: Mapping[str, dict[str, Any]]) -> list[str]:
    assert all(key == item["metadata"]["uid"] for key, item in found.items())
    return sorted(
        f"{item['metadata']['name']}@{item['metadata']['labels']['version']}"
        for item in found.values()
    )


async def test_the_set_is_yielded_after_each_change(kube: Any, pods: Pods) -> None:
    pods.list(pod("a", 1), version=5)
    body = pods.watch()
    async with following(kube, label_selector="app=x", field_selector="spec.a=b") as sets:
        first = await anext(sets)
        assert names(first) == ["a@1"]
        body.put_nowait(event("ADDED", pod("b", 6)))
        assert names(await anext(sets)) == ["a@1", "b@6"]
        body.put_nowait(event("MODIFIED", pod("a", 7)))
        assert names(await anext(sets)) == ["a@7", "b@6"]
        body.put_nowait(event("DELETED", pod("b", 8)))
        assert names(await anext(sets)) == ["a@7"]
        assert names(first) == ["a@1"], "what was given is not changed"
    assert pods.listed == [{"limit": "200", "labelSelector": "app=x", "fieldSelector": "spec.a=b"}]
    (query,) = pods.watched
    assert 240 <= int(query.pop("timeoutSeconds")) <= 300
    assert query == {
        "watch": "true",
        "resourceVersion": "5",
        "allowWatchBookmarks": "true",
        "labelSelector": "app=x",
        "fieldSelector": "spec.a=b",
    }


async def test_an_empty_set_is_yielded(kube: Any, pods: Pods) -> None:
    pods.list()
    async with following(kube) as sets:
        assert await anext(sets) == {}


async def test_events_that_arrive_together_are_one_change(kube: Any, pods: Pods) -> None:
    pods.list()
    together = event("ADDED", pod("a", 2)) + event("ADDED", pod("b", 3))
    pods.watch(together + event("DELETED", pod("a", 4)) + b"\n")
    async with following(kube) as sets:
        await anext(sets)
        assert names(await anext(sets)) == ["b@3"]


async def test_an_event_that_changes_nothing_yields_no_set(kube: Any, pods: Pods) -> None:
    pods.list(pod("a", 1))
    pods.watch(
        event("MODIFIED", pod("a", 1))
        + event("DELETED", pod("z", 2))
        + event("BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": "3"}})
        + event("UNHEARD", pod("y", 3)),
        event("ADDED", pod("b", 4)),
    )
    async with following(kube) as sets:
        await anext(sets)
        assert names(await anext(sets)) == ["a@1", "b@4"]


async def test_managed_fields_are_left_out(kube: Any, pods: Pods) -> None:
    item = pod("a", 1)
    item["metadata"]["managedFields"] = [{"manager": "x"}]
    pods.list(item)
    async with following(kube) as sets:
        assert "managedFields" not in (await anext(sets))["u-a"]["metadata"]


async def test_a_list_is_read_page_by_page(kube: Any, pods: Pods) -> None:
    pods.list(pod("a", 1), **MORE)
    pods.list(pod("b", 1), version=9)
    pods.watch()
    async with following(kube) as sets:
        assert names(await anext(sets)) == ["a@1", "b@1"]
    assert [query.get("continue") for query in pods.listed] == [None, "more"]


async def test_a_list_of_too_many_pages_is_retried(
    kube: Any, pods: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PAGES", 1)
    pods.list(pod("a", 1), **MORE)
    pods.list(pod("a", 1))
    async with following(kube) as sets:
        assert names(await anext(sets)) == ["a@1"], "it is tried again, not given up"
    assert "continue" not in pods.listed[1]


async def test_the_bound_on_objects_holds_for_pages_of_any_size(
    kube: Any, pods: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound counts objects, not pages."""
    monkeypatch.setattr(module, "PAGE", 1)
    monkeypatch.setattr(module, "MAX_PAGES", 3)
    pods.list(*(pod(name, 1) for name in "abcd"))
    pods.list(pod("a", 1), pod("b", 1), **MORE)
    pods.list(pod("c", 1), version=9)
    async with following(kube) as sets:
        assert names(await anext(sets)) == ["a@1", "b@1", "c@1"]
    assert [query.get("continue") for query in pods.listed] == [None, None, "more"]


@pytest.mark.parametrize("body", [{}, {"items": [1]}, {"items": [{}]}, {"metadata": []}])
async def test_a_malformed_list_is_retried(kube: Any, pods: Pods, body: Any) -> None:
    pods.lists.put_nowait(web.json_response(body))
    pods.list(pod("a", 1))
    async with following(kube) as sets:
        assert names(await anext(sets)) == ["a@1"]


async def test_a_watch_that_ends_is_resumed_from_its_last_version(kube: Any, pods: Pods) -> None:
    pods.list(pod("a", 1), version=5)
    bookmark = event("BOOKMARK", {"metadata": {"resourceVersion": "70"}})
    pods.watch(event("ADDED", pod("b", 6)), bookmark, END)
    pods.watch(event("DELETED", pod("a", 71)))
    async with following(kube) as sets:
        await anext(sets)
        await anext(sets)
        assert names(await anext(sets)) == ["b@6"]
    assert [query["resourceVersion"] for query in pods.watched] == ["5", "70"]
    assert len(pods.listed) == 1


@pytest.mark.parametrize("how", ["status", "event", "nonsense", "odd"])
async def test_a_version_too_old_lists_again(kube: Any, pods: Pods, how: str) -> None:
    pods.list(pod("a", 1), pod("b", 1), version=5)
    if how == "status":
        pods.refuse_watch(410)
    elif how == "event":
        pods.watch(error(410))
    elif how == "odd":
        pods.watch(b'{"type": "ADDED", "object": [1]}\n')
    else:
        pods.watch(b"no json\n")
    pods.list(pod("b", 7), version=8)
    pods.watch()
    async with following(kube) as sets:
        assert names(await anext(sets)) == ["a@1", "b@1"]
        assert names(await anext(sets)) == ["b@7"]


async def test_a_change_before_the_error_is_not_lost(kube: Any, pods: Pods) -> None:
    """This holds also if the list afterwards repeats the event."""
    pods.list(version=5)
    pods.watch(event("ADDED", pod("a", 6)) + error(410))
    pods.list(pod("a", 6), version=7)
    body = pods.watch()
    async with following(kube) as sets:
        await anext(sets)
        assert names(await anext(sets)) == ["a@6"]
        body.put_nowait(event("ADDED", pod("b", 8)))
        assert names(await anext(sets)) == ["a@6", "b@8"]


async def test_a_list_without_changes_yields_no_set(kube: Any, pods: Pods) -> None:
    pods.list(pod("a", 1), version=5)
    pods.watch(error(410))
    pods.list(pod("a", 1), version=6)
    pods.watch(event("ADDED", pod("b", 7)))
    async with following(kube) as sets:
        await anext(sets)
        assert names(await anext(sets)) == ["a@1", "b@7"]


async def test_a_failing_server_is_retried_and_logged_once(
    kube: Any, pods: Pods, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "krelay")
    pods.list(pod("a", 1))
    for status in (500, 503, 429, 504, 408):
        pods.refuse_watch(status, **{"Retry-After": "0"})
    pods.watch(event("ADDED", pod("b", 2)))
    async with following(kube) as sets:
        await anext(sets)
        assert names(await anext(sets)) == ["a@1", "b@2"]
    assert [query["resourceVersion"] for query in pods.watched] == ["1"] * 6
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"], "said once"


async def test_retry_after_is_honoured(
    kube: Any, pods: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def record(api: Api, seconds: float, changes: int) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    monkeypatch.setattr(Api, "pause", record)
    pods.list(pod("a", 1))
    pods.refuse_watch(429, **{"Retry-After": "7"})
    pods.refuse_watch(429, **{"Retry-After": "7000"})
    pods.watch(event("ADDED", pod("b", 2)))
    async with following(kube) as sets:
        await anext(sets)
        await anext(sets)
    assert [pause for pause in pauses if pause > 1] == [7, module.DENIED_PAUSE]


async def test_a_list_is_retried_until_the_server_is_up(kube: Any, pods: Pods) -> None:
    for _ in range(4):
        pods.refuse_list(503, **{"Retry-After": "0"})
    pods.list(pod("a", 1))
    async with following(kube) as sets:
        assert names(await anext(sets)) == ["a@1"]


async def test_a_silent_watch_is_repeated_without_a_log_line(
    kube: Any, pods: Pods, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "SILENCE", 0.1)
    pods.list(pod("a", 1), version=5)
    pods.watch()
    pods.watch(event("ADDED", pod("b", 6)))
    async with following(kube) as sets:
        await anext(sets)
        assert names(await anext(sets)) == ["a@1", "b@6"]
    assert len(pods.listed) == 1
    assert not caplog.records


async def test_a_token_that_is_refused_later_is_retried(kube: Any, pods: Pods) -> None:
    pods.list(pod("a", 1))
    pods.refuse_watch(401)
    pods.watch(event("ADDED", pod("b", 2)))
    async with following(kube) as sets:
        await anext(sets)
        assert names(await anext(sets)) == ["a@1", "b@2"]


DENIED = (
    'pods is forbidden: User "j" cannot {} resource "pods" in API group "" in the namespace "x"'
)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(403, AccessDeniedError), (401, CredentialsError), (404, NotFoundError), (400, ClusterError)],
)
async def test_an_error_that_waiting_does_not_mend_is_raised(
    kube: Any, pods: Pods, status: int, kind: type[Exception]
) -> None:
    pods.refuse_list(status, DENIED.format("list"))
    pods.refuse_list(status, DENIED.format("list"))
    async with following(kube) as sets:
        with pytest.raises(kind):
            await anext(sets)


async def test_without_the_right_to_watch_it_is_listed_again_and_again(
    kube: Any, pods: Pods
) -> None:
    pods.refuse_watch(403, DENIED.format("watch"))
    for version in (1, 1, 2):
        pods.list(pod("a", version), version=version)
    async with following(kube) as sets:
        assert names(await anext(sets)) == ["a@1"]
        assert names(await anext(sets)) == ["a@2"]


async def test_without_the_right_to_watch_a_whole_collection_is_denied(
    kube: Any, pods: Pods
) -> None:
    pods.list(pod("a", 1))
    pods.refuse_watch(403, DENIED.format("watch"))
    async with following(kube, patient=False) as sets:
        await anext(sets)
        with pytest.raises(AccessDeniedError, match='^cannot watch pods in namespace "x"$'):
            await anext(sets)


async def test_a_named_object_is_read_if_it_may_not_be_listed(
    kube: Any, pods: Pods, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "krelay")
    pods.refuse_list(403, DENIED.format("list"))
    pods.lists.put_nowait(web.json_response(pod("a", 1)))
    pods.refuse_list(404)
    pods.lists.put_nowait(web.json_response(pod("a", 2)))
    async with following(kube, field_selector="metadata.name=a") as sets:
        assert names(await anext(sets)) == ["a@1"]
        assert names(await anext(sets)) == []
        assert names(await anext(sets)) == ["a@2"]
    (line,) = caplog.messages
    assert line.endswith("; reading it every few seconds instead")


async def test_a_named_object_that_may_not_be_read_either_is_denied(
    kube: Any, pods: Pods, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "krelay")
    pods.refuse_list(403, DENIED.format("list"))
    pods.refuse_list(403, DENIED.format("get"))
    async with following(kube, field_selector="metadata.name=a") as sets:
        with pytest.raises(AccessDeniedError, match="^cannot list pods"):
            await anext(sets)
    assert caplog.messages == []


async def test_a_right_that_is_lost_later_is_retried(
    kube: Any, pods: Pods, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "krelay")
    pods.list(pod("a", 1), version=5)
    pods.watch(END)
    pods.refuse_watch(403, DENIED.format("watch"))
    for _ in range(3):
        pods.refuse_list(403, DENIED.format("list"))
    pods.list(pod("b", 9), version=9)
    pods.watch(event("ADDED", pod("c", 10)))
    async with following(kube) as sets:
        await anext(sets)
        assert names(await anext(sets)) == ["b@9"]
        assert names(await anext(sets)) == ["b@9", "c@10"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert 'cannot watch pods in namespace "x"' in caplog.messages[0]


@pytest.mark.parametrize("lasts", [False, True])
async def test_the_pause_grows_unless_a_watch_has_lasted(
    kube: Any, pods: Pods, monkeypatch: pytest.MonkeyPatch, lasts: bool
) -> None:
    pauses: list[float] = []

    async def record(api: Api, seconds: float, changes: int) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    monkeypatch.setattr(Api, "pause", record)
    monkeypatch.setattr("krelay.retry.random.uniform", lambda low, high: high)
    if lasts:
        monkeypatch.setattr(module, "MAX_PAUSE", -1.0)
    pods.list(pod("a", 1))
    for _ in range(3):
        pods.refuse_watch(504)
    pods.watch(event("ADDED", pod("b", 2)))
    async with following(kube) as sets:
        await anext(sets)
        await anext(sets)
    assert [pause for pause in pauses if pause < 1] == ([0.0] * 3 if lasts else [0.0, 0.2, 0.4])


operations = st.lists(
    st.tuples(st.sampled_from(["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]), st.integers(0, 4))
)


@given(operations=operations, cuts=st.sets(st.integers(0, 30)))
def test_any_partition_of_the_events_gives_the_same_set(
    operations: list[tuple[str, int]], cuts: set[int]
) -> None:
    model: dict[str, Any] = {}
    known: dict[str, Any] = {}
    batch: list[bytes] = []
    version = "0"
    for number, (kind, name) in enumerate(operations, 1):
        item = pod(str(name), number)
        before = dict(model)
        if kind == "DELETED":
            model.pop(f"u-{name}", None)
        elif kind != "BOOKMARK":
            model[f"u-{name}"] = read(item)
        batch.append(event(kind, item))
        if number in cuts or number == len(operations):
            alone = len(batch) == 1
            version, changed = _apply(known, batch, version, PODS, bool)
            assert known == model
            assert version == str(number)
            if alone:
                assert changed == (before != model)
            batch = []


@given(st.lists(st.binary(max_size=40) | st.sampled_from([b"{}", b"[]", b"null", b'{"type":1}'])))
def test_any_bytes_are_events_or_ask_for_a_list(batch: list[bytes]) -> None:
    known: dict[str, Any] = {}
    version, changed = _apply(known, batch, "5", PODS, bool)
    assert version in ("5", "")
    assert not changed


async def test_a_malformed_object_asks_for_a_list(
    kube: Any, pods: Pods, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "krelay")
    pods.list(pod("a", 1))
    pods.watch(event("MODIFIED", pod("a", 2, status={"conditions": 5})))
    pods.list(pod("a", 3), version=3)
    pods.watch()
    async with following(kube) as sets:
        assert names(await anext(sets)) == ["a@1"]
        assert names(await anext(sets)) == ["a@3"]
    (message,) = caplog.messages
    assert message.endswith("status.conditions: expected a list, got a number")


def test_a_watch_of_too_many_objects_asks_for_a_list(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PAGE", 1)
    monkeypatch.setattr(module, "MAX_PAGES", 3)
    known: dict[str, Any] = {}
    batch = [event("ADDED", pod(str(number), number)) for number in range(1, 9)]
    assert _apply(known, batch, "0", PODS, bool) == ("", True)
    assert len(known) == 4
