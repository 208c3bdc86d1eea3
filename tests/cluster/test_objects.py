from __future__ import annotations

import json
from typing import Any

import pytest

from fuzz.cluster import use
from krelay.cluster.endpoints import choose_pod, resolve_pod, resolve_service, why_not_ready
from krelay.cluster.objects import (
    EVENT,
    MAX_LIST,
    POD,
    SLICE,
    read_event,
    read_list,
    read_object,
    schema_of,
)
from krelay.errors import MalformedError
from krelay.model import Port
from tests.cluster.test_endpoints import LEAVING, UNREADY, endpoint, part, pod, service

BASE = "/api/v1/namespaces/x/"
META = {"metadata": {"name": "a", "uid": "u", "resourceVersion": "5"}}
READ = {"metadata": {"name": "a", "uid": "u"}}
GARBAGE: list[Any] = [None, 0, -1, 1.5, True, "", "x", "\ud800", [], [None], {}, {"": 5}, 10**30]
WHOLE: dict[str, Any] = {
    "pods": META
    | {
        "spec": {
            "nodeName": "n",
            "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 80}]}],
            "initContainers": [{"name": "i", "restartPolicy": "Always", "ports": []}],
        },
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [
                {
                    "name": "krelay-server",
                    "image": "i",
                    "state": {"waiting": {"reason": "r", "message": "m"}},
                    "lastState": {"terminated": {"exitCode": 1, "message": "m"}},
                }
            ],
        },
    },
    "services": META
    | {
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "10.0.0.1",
            "ipFamilies": ["IPv4"],
            "ports": [{"name": "web", "port": 80, "protocol": "TCP", "targetPort": "web"}],
        }
    },
    "endpointslices": META
    | {
        "addressType": "IPv4",
        "ports": [{"name": "web", "port": 80, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.0.0.2"], "conditions": {"ready": True}}],
    },
    "jobs": META
    | {
        "spec": {
            "selector": {
                "matchLabels": {"a": "b"},
                "matchExpressions": [{"key": "c", "operator": "In", "values": ["d"]}],
            }
        },
        "status": {"conditions": [{"type": "Failed", "status": "True", "reason": "r"}]},
    },
    "events": META
    | {
        "type": "Warning",
        "reason": "FailedCreate",
        "message": "m",
        "involvedObject": {"uid": "u"},
        "series": {"lastObservedTime": "t"},
    },
}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [path] * bool(path) + [p for key, v in inner for p in places(v, (*path, key))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    whole = json.loads(json.dumps(value))
    at = whole
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = new
    return whole


@pytest.mark.parametrize("resource", WHOLE)
def test_garbage_in_any_field_is_a_malformed_error_or_harmless(resource: str) -> None:
    use(resource, [read_object(schema_of(BASE + resource), WHOLE[resource], BASE + resource)])
    refused = 0
    for path in places(WHOLE[resource]):
        for garbage in GARBAGE:
            value = replaced(WHOLE[resource], path, garbage)
            try:
                item = read_object(schema_of(BASE + resource), value, BASE + resource)
            except MalformedError as exc:
                refused += 1
                assert BASE + resource in str(exc)
            else:
                use(resource, [item])
    assert refused > 20


def test_an_object_is_named_in_its_error() -> None:
    pod = META | {"status": {"conditions": 5}}
    with pytest.raises(MalformedError) as caught:
        read_object(POD, pod, BASE + "pods")
    assert str(caught.value) == (
        f'"a" of {BASE}pods: status.conditions: expected a list, got a number'
    )


def test_an_undeclared_field_is_dropped() -> None:
    event = {**META, "metadata": {**META["metadata"], "managedFields": [1]}, "x": [[[]]]}
    assert read_object(EVENT, event, "x") == READ


def test_a_list_is_read_as_a_page() -> None:
    page = {"metadata": {"resourceVersion": "7", "continue": "t"}, "items": [META]}
    assert read_list(page, BASE + "pods") == ([READ], "7", "t", 0)
    assert read_list({"metadata": {}}, BASE + "pods") == ([], "", "", 0)
    wrongs: list[dict[str, Any]] = [{}, {"items": []}]
    for wrong in (*wrongs, {"metadata": {}, "items": 5}, {"metadata": {}, "items": [5]}):
        with pytest.raises(MalformedError):
            read_list(wrong, BASE + "pods")


def test_a_list_of_too_many_objects_is_refused() -> None:
    page: dict[str, Any] = {"metadata": {}, "items": [META] * MAX_LIST}
    assert len(read_list(page, BASE + "pods")[0]) == MAX_LIST, "a server may ignore `limit`"
    page = {"metadata": {}, "items": [5] * (MAX_LIST + 1)}
    with pytest.raises(MalformedError, match="items: a list of more than 50000 elements"):
        read_list(page, BASE + "pods")


def test_an_event_is_read_by_its_type() -> None:
    line = json.dumps({"type": "ADDED", "object": META}).encode()
    assert read_event(line, BASE + "pods") == ("ADDED", "5", READ)
    gone = json.dumps({"type": "ERROR", "object": {"kind": "Status", "code": 410}}).encode()
    assert read_event(gone, BASE + "pods") == ("ERROR", "", {"kind": "Status"})
    mark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}}
    assert read_event(json.dumps(mark).encode(), BASE + "pods") == ("BOOKMARK", "9", {})
    for wrong in (b"", b"[]", b"{}", b'{"type": 1, "object": {}}', b"[" * 99_999):
        with pytest.raises(MalformedError, match="an event of"):
            read_event(wrong, BASE + "pods")


POD_PORTS = [{"name": "http", "containerPort": 80}, {"name": "dns", "containerPort": 53}]
SIDECAR = {"name": "s", "restartPolicy": "Always", "ports": [{"name": "m", "containerPort": 9}]}
PULLING = {"name": "c", "state": {"waiting": {"reason": "ErrImagePull", "message": "m"}}}


@pytest.mark.parametrize(
    "item",
    [
        pod("a"),
        pod("a", **UNREADY),
        pod("a", **LEAVING),
        pod("a", spec={"containers": [{"ports": POD_PORTS}], "initContainers": [SIDECAR]}),
        pod("a", status={"containerStatuses": [PULLING]}),
    ],
)
def test_a_pod_that_was_read_resolves_as_before(item: dict[str, Any]) -> None:
    read = read_object(POD, item, BASE + "pods")
    assert (choose_pod([read], None) is None) is (choose_pod([item], None) is None)
    assert why_not_ready([read]) == why_not_ready([item])
    if choose_pod([item], None):
        for remote in (80, "http", "m", "none"):
            assert resolve_pod(read, Port(remote)) == resolve_pod(item, Port(remote))


def test_endpoint_slices_that_were_read_resolve_as_before() -> None:
    item = {"metadata": {"name": "s"}, **part(endpoint("10.0.0.1"), endpoint("10.0.0.2"))}
    item["endpoints"][0] |= {"nodeName": "n", "targetRef": {"kind": "Pod"}, "zone": "z"}
    read = read_object(SLICE, item, BASE + "endpointslices")
    assert "nodeName" not in read["endpoints"][0]
    for cluster_ip in ("None", "10.96.0.9"):
        found = service(clusterIP=cluster_ip)
        assert resolve_service(found, Port(80), [read]) == resolve_service(found, Port(80), [item])
