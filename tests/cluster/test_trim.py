"""What is kept of an object is all that resolving reads, whatever the object looks like."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.cluster.pods import choose, resolve_port, why_none
from krelay.cluster.services import resolve_service
from krelay.cluster.trim import trimmed
from krelay.model import Port
from tests.cluster.test_pods import LEAVING, UNREADY, pod
from tests.cluster.test_services import endpoint, part, service

PORTS = [{"name": "http", "containerPort": 80}, {"name": "dns", "containerPort": 53}]
SIDECAR = {"name": "s", "restartPolicy": "Always", "ports": [{"name": "m", "containerPort": 9}]}


@pytest.mark.parametrize(
    "item",
    [
        pod("a"),
        pod("a", **UNREADY),
        pod("a", **LEAVING),
        pod(
            "a", spec={"containers": [{"ports": PORTS, "image": "i"}], "initContainers": [SIDECAR]}
        ),
        pod(
            "a",
            status={
                "containerStatuses": [
                    {"name": "c", "state": {"waiting": {"reason": "ErrImagePull", "message": "m"}}}
                ]
            },
        ),
    ],
)
def test_a_trimmed_pod_means_the_same(item: dict[str, Any]) -> None:
    less = trimmed("pods", item)
    assert (choose([less], None) is None) is (choose([item], None) is None)
    assert why_none([less]) == why_none([item])
    if choose([item], None):
        for remote in (80, "http", "m", "none"):
            assert resolve_port(less, Port(remote)) == resolve_port(item, Port(remote))


def test_trimmed_endpoint_slices_mean_the_same() -> None:
    item = {"metadata": {"name": "s"}, **part(endpoint("10.0.0.1"), endpoint("10.0.0.2"))}
    item["endpoints"][0] |= {"nodeName": "n", "targetRef": {"kind": "Pod"}, "zone": "z"}
    less = trimmed("endpointslices", item)
    assert "nodeName" not in less["endpoints"][0]
    for cluster_ip in ("None", "10.96.0.9"):
        found = service(clusterIP=cluster_ip)
        assert resolve_service(found, Port(80), [less]) == resolve_service(found, Port(80), [item])


def test_of_a_workload_the_selector_is_kept() -> None:
    item = {"metadata": {"name": "d", "annotations": {}}, "spec": {"selector": 1, "template": {}}}
    assert trimmed("deployments", item) == {"metadata": {"name": "d"}, "spec": {"selector": 1}}


def test_of_another_resource_everything_is_kept() -> None:
    assert trimmed("events", {"a": 1}) == {"a": 1}


odd = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["metadata", "spec", "status", "containers", "endpoints", "name"]),
            inner,
        )
    ),
)


@given(st.sampled_from(["pods", "services", "endpointslices", "jobs"]), odd)
def test_an_odd_object_is_trimmed_without_an_error(resource: str, item: Any) -> None:
    trimmed(resource, item)
