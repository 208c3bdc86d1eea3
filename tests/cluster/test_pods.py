"""Which pod, and what a port means there."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.cluster.pods import choose, ready, resolve_port, terminating, why_none
from krelay.model import Endpoint, Port, Protocol


def pod(name: str = "web-1", **more: Any) -> dict[str, Any]:
    made = {
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"containers": [{"ports": more.pop("ports", [])}]},
        "status": {
            "phase": "Running",
            "podIP": "10.1.0.1",
            "conditions": [{"type": "Ready", "status": "True"}],
            **more.pop("status", {}),
        },
    }
    made["metadata"].update(more.pop("metadata", {}))
    made["spec"].update(more.pop("spec", {}))
    return made


UNREADY = {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}
LEAVING = {"metadata": {"deletionTimestamp": "2026-01-01T00:00:01Z"}}
ENDED = {"status": {"phase": "Succeeded"}}
NEW = {"metadata": {"creationTimestamp": "2026-01-02T00:00:00Z"}}


def test_ready_and_terminating() -> None:
    assert ready(pod())
    assert not ready(pod(**UNREADY))
    assert not ready(pod(**LEAVING))
    assert not ready(pod(status={"conditions": None}))
    assert terminating(pod(**ENDED))
    assert not terminating({"metadata": {}})


def test_the_newest_is_chosen_and_kept() -> None:
    old, new = pod("old"), pod("new", **NEW)
    assert choose([old, new], None) is new
    assert choose([old, new], "uid-old") is old
    assert choose([pod("old", **LEAVING), new], "uid-old") is new
    assert choose([], None) is None
    assert choose([pod(status={"podIP": ""})], None) is None


states = st.sampled_from([{}, UNREADY, LEAVING, ENDED, NEW, {"status": {"podIP": None}}])


@given(st.lists(states, max_size=6), st.integers(0, 7))
def test_nobody_is_sent_to_a_pod_that_is_not_ready(kinds: list[dict[str, Any]], old: int) -> None:
    pods = [pod(f"p{n}", **kind) for n, kind in enumerate(kinds)]
    usable = [p for p in pods if ready(p) and p["status"]["podIP"]]
    chosen = choose(pods, f"uid-p{old}")
    assert (chosen is None) == (not usable)
    if chosen is None:
        assert why_none(pods)
    else:
        assert chosen in usable
        assert choose(reversed(pods), chosen["metadata"]["uid"]) is chosen
        kept = [p for p in usable if p["metadata"]["uid"] == f"uid-p{old}"]
        assert not kept or chosen is kept[0]


@pytest.mark.parametrize(
    ("pods", "reason"),
    [
        ([], "no pod"),
        ([pod(**LEAVING)], "no pod"),
        ([pod(**UNREADY)], "pod web-1 is not ready"),
        (
            [pod(status={"conditions": [], "containerStatuses": [{"state": {}}]})],
            "pod web-1 is not ready",
        ),
        (
            [
                pod(
                    status={
                        "conditions": [],
                        "containerStatuses": [
                            {"state": {"waiting": {"reason": "ImagePullBackOff"}}}
                        ],
                    }
                )
            ],
            "pod web-1 is not ready: ImagePullBackOff",
        ),
    ],
)
def test_why_there_is_none(pods: list[dict[str, Any]], reason: str) -> None:
    assert why_none(pods) == reason


PORTS = [
    {"name": "http", "containerPort": 8080},
    {"name": "dns", "containerPort": 53, "protocol": "UDP"},
    {"containerPort": 53},
    {"name": "sctp", "containerPort": 99, "protocol": "SCTP"},
]


@pytest.mark.parametrize(
    ("port", "number", "protocol"),
    [
        (Port("http"), 8080, Protocol.TCP),
        (Port("dns"), 53, Protocol.UDP),
        (Port(8080), 8080, Protocol.TCP),
        (Port(1234), 1234, Protocol.TCP),
        (Port(53), 53, Protocol.TCP),
        (Port(53, protocol=Protocol.UDP), 53, Protocol.UDP),
    ],
)
def test_a_port_of_a_pod(port: Port, number: int, protocol: Protocol) -> None:
    found = resolve_port(pod(ports=PORTS), port)
    assert found.endpoint == Endpoint("10.1.0.1", number)
    assert found.protocol is protocol
    assert found.via == "pod web-1"


def test_a_name_that_no_container_has() -> None:
    found = resolve_port(pod(ports=PORTS), Port("admin"))
    assert found.endpoint is None
    assert found.reason == "pod web-1 has no port named 'admin'; it has dns, http, sctp"
    assert resolve_port(pod(), Port("admin")).reason == "pod web-1 has no port named 'admin'"
    assert resolve_port(pod(ports=PORTS), Port("http", protocol=Protocol.UDP)).endpoint is None


def test_a_sidecar_s_ports_count_and_an_init_container_s_do_not() -> None:
    sidecar = {"restartPolicy": "Always", "ports": [{"name": "mesh", "containerPort": 15000}]}
    once = {"ports": [{"name": "init", "containerPort": 1}]}
    with_both = pod(spec={"initContainers": [sidecar, once]})
    assert resolve_port(with_both, Port("mesh")).endpoint == Endpoint("10.1.0.1", 15000)
    assert resolve_port(with_both, Port("init")).endpoint is None
