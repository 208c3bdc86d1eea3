"""Which pod or endpoint new connections go to, and what a port means there."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.cluster.endpoints import (
    choose_pod,
    choose_running,
    is_ending,
    is_ready,
    is_running,
    pods_behind,
    resolve_pod,
    resolve_service,
    why_not_ready,
)
from krelay.model import Endpoint, PodPort, Port, Protocol


def without_nulls(value: Any) -> Any:
    """The same object after the typed reader, for which null counts as absent."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return list(map(without_nulls, value)) if isinstance(value, list) else value


def pod(name: str = "web-1", **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
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
    return without_nulls(made)  # type: ignore[no-any-return]


UNREADY: dict[str, Any] = {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}
LEAVING: dict[str, Any] = {"metadata": {"deletionTimestamp": "2026-01-01T00:00:01Z"}}
ENDED: dict[str, Any] = {"status": {"phase": "Succeeded"}}
NEW = {"metadata": {"creationTimestamp": "2026-01-02T00:00:00Z"}}


def test_a_pod_is_ready_or_ending_by_its_status() -> None:
    assert is_ready(pod())
    assert not is_ready(pod(**UNREADY))
    assert not is_ready(pod(**LEAVING))
    assert not is_ready(pod(status={"conditions": None}))
    assert is_ending(pod(**ENDED))
    assert not is_ending({"metadata": {}})


def test_the_newest_ready_pod_is_chosen_and_kept() -> None:
    old, new = pod("old"), pod("new", **NEW)
    assert choose_pod([old, new], None) is new
    assert choose_pod([old, new], "uid-old") is old
    assert choose_pod([pod("old", **LEAVING), new], "uid-old") is new
    assert choose_pod([], None) is None
    assert choose_pod([pod(status={"podIP": ""})], None) is None


states = st.sampled_from([{}, UNREADY, LEAVING, ENDED, NEW, {"status": {"podIP": None}}])


@given(st.lists(states, max_size=6), st.integers(0, 7))
def test_a_chosen_pod_is_ready(kinds: list[dict[str, Any]], old: int) -> None:
    pods = [pod(f"p{n}", **kind) for n, kind in enumerate(kinds)]
    usable = [p for p in pods if is_ready(p) and p["status"].get("podIP")]
    chosen = choose_pod(pods, f"uid-p{old}")
    assert (chosen is None) == (not usable)
    if chosen is None:
        assert bool(why_not_ready(pods)[0]) is bool(pods)
    else:
        assert chosen in usable
        assert choose_pod(reversed(pods), chosen["metadata"]["uid"]) is chosen
        kept = [p for p in usable if p["metadata"]["uid"] == f"uid-p{old}"]
        assert not kept or chosen is kept[0]


@pytest.mark.parametrize(
    ("pods", "reason"),
    [
        ([], ""),
        ([pod(**LEAVING)], "pod web-1 is being deleted"),
        ([pod(**ENDED)], "pod web-1 is not running: Succeeded"),
        ([pod(**ENDED, **LEAVING)], "pod web-1 is not running: Succeeded"),
        ([pod("a", **ENDED), pod("b", **LEAVING), pod("c", **UNREADY)], "pod c is not ready"),
        ([pod(status={"phase": "Pending", "conditions": []})], "pod web-1 is not running: Pending"),
        (
            [
                pod(
                    status={
                        "phase": "Pending",
                        "conditions": [
                            {
                                "type": "PodScheduled",
                                "status": "False",
                                "reason": "Unschedulable",
                                "message": "0/1 nodes are available",
                            }
                        ],
                    }
                )
            ],
            "pod web-1 is not running: Pending: 0/1 nodes are available",
        ),
        (
            [
                pod(
                    status={
                        "phase": "Pending",
                        "conditions": [],
                        "initContainerStatuses": [
                            {"state": {"waiting": {"reason": "CrashLoopBackOff"}}}
                        ],
                        "containerStatuses": [
                            {"state": {"waiting": {"reason": "PodInitializing"}}}
                        ],
                    }
                )
            ],
            "pod web-1 is not running: Pending: CrashLoopBackOff",
        ),
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
def test_the_reason_for_no_ready_pod_names_its_state(
    pods: list[dict[str, Any]], reason: str
) -> None:
    assert why_not_ready(pods)[0] == reason


@pytest.mark.parametrize(
    ("status", "running"),
    [
        ({}, True),
        ({"phase": "Pending"}, False),
        ({"phase": "Succeeded"}, False),
        ({"podIP": None}, False),
        ({"containerStatuses": [{"state": {"running": {}}}]}, True),
        ({"containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}, False),
        (
            {
                "containerStatuses": [
                    {"state": {"terminated": {"exitCode": 1}}},
                    {"state": {"running": {}}},
                ]
            },
            True,
        ),
    ],
)
def test_a_pod_runs_while_one_of_its_containers_does(status: dict[str, Any], running: bool) -> None:
    assert is_running(pod(status=status)) is running
    assert is_running(pod(status=status, **LEAVING)) is running


def test_a_running_pod_that_stays_is_chosen_before_one_that_leaves() -> None:
    unready, leaving, ended = pod("a", **UNREADY), pod("b", **NEW), pod("c", **ENDED)
    leaving["metadata"].update(LEAVING["metadata"])
    assert choose_running([ended, leaving, unready], "uid-b") is unready
    assert choose_running([ended, leaving], None) is leaving
    assert choose_running([ended], None) is None


@pytest.mark.parametrize(
    ("more", "via"),
    [
        ({}, "pod web-1"),
        (UNREADY, "pod web-1, which is not ready"),
        (LEAVING, "pod web-1, which is being deleted"),
    ],
)
def test_the_resolution_of_a_pod_says_whether_it_is_ready(more: dict[str, Any], via: str) -> None:
    found = resolve_pod(pod(**more), Port(80))
    assert (found.via, found.unready, found.ending) == (via, bool(more), more is LEAVING)
    assert [one.ready for one in found.pods] == [not more]


def test_a_pod_s_further_addresses_stand_behind_its_first() -> None:
    both = pod(status={"podIP": "fd00::1", "podIPs": [{"ip": "fd00::1"}, {"ip": "10.1.0.1"}]})
    found = resolve_pod(both, Port(80))
    assert found.endpoint == Endpoint("fd00::1", 80)
    assert found.endpoints == (Endpoint("10.1.0.1", 80),)
    assert resolve_pod(pod(status={"podIPs": [{}]}), Port(80)).endpoints == ()


def test_a_port_name_of_several_containers_is_that_of_the_first_with_tcp() -> None:
    containers = [
        {"ports": [{"name": "dns", "containerPort": 53, "protocol": "UDP"}]},
        {"ports": [{"name": "dns", "containerPort": 5353}]},
        {"ports": [{"name": "dns", "containerPort": 5454}]},
    ]
    several = pod(spec={"containers": containers})
    assert resolve_pod(several, Port("dns")).endpoint == Endpoint("10.1.0.1", 5353)
    udp = resolve_pod(several, Port("dns", protocol=Protocol.UDP))
    assert udp.endpoint == Endpoint("10.1.0.1", 53)


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
def test_a_port_of_a_pod_resolves_to_number_and_protocol(
    port: Port, number: int, protocol: Protocol
) -> None:
    found = resolve_pod(pod(ports=PORTS), port)
    assert found.endpoint == Endpoint("10.1.0.1", number)
    assert found.protocol is protocol
    assert found.via == "pod web-1"


def test_a_port_name_that_no_container_has_is_missing() -> None:
    found = resolve_pod(pod(ports=PORTS), Port("admin"))
    assert found.endpoint is None
    assert found.reason == "pod web-1 has no port named 'admin'; it has dns, http, sctp"
    assert resolve_pod(pod(), Port("admin")).reason == "pod web-1 has no port named 'admin'"
    assert resolve_pod(pod(ports=PORTS), Port("http", protocol=Protocol.UDP)).endpoint is None


def names(pods: tuple[PodPort, ...]) -> list[str]:
    return [found.name for found in pods]


def test_the_pods_behind_a_workload_are_those_that_run() -> None:
    old, new = pod("old"), pod("new", **NEW)
    unready = pod("unready", **NEW, **UNREADY)
    rest = [pod("leaving", **LEAVING), pod("ended", **ENDED), pod("p", status={"phase": "Pending"})]
    pods = [unready, old, *rest, new]
    assert names(pods_behind(pods, Port(80))) == ["new", "old", "unready"]
    assert names(pods_behind(reversed(pods), Port(80), "uid-old")) == ["old", "new", "unready"]
    assert [found.ready for found in pods_behind(pods, Port(80))] == [True, True, False]


def test_a_port_of_each_pod_is_its_own() -> None:
    one = pod("a", metadata={"namespace": "shop"}, ports=PORTS)
    two = pod("b", ports=[{"name": "http", "containerPort": 9}])
    expected = (PodPort("shop", "a", "uid-a", 8080), PodPort("", "b", "uid-b", 9))
    assert pods_behind([one, two, pod("without")], Port("http"), "uid-a") == expected
    assert str(expected[0]) == "shop/a:8080"
    assert resolve_pod(one, Port("http")).pods == expected[:1]
    assert not resolve_pod(one, Port("http")).balanced


def test_a_sidecar_s_ports_count_and_an_init_container_s_do_not() -> None:
    sidecar = {"restartPolicy": "Always", "ports": [{"name": "mesh", "containerPort": 15000}]}
    once = {"ports": [{"name": "init", "containerPort": 1}]}
    with_both = pod(spec={"initContainers": [sidecar, once]})
    assert resolve_pod(with_both, Port("mesh")).endpoint == Endpoint("10.1.0.1", 15000)
    assert resolve_pod(with_both, Port("init")).endpoint is None


SERVICE_PORTS = [
    {"name": "http", "port": 80, "targetPort": "web"},
    {"name": "dns", "port": 53, "protocol": "UDP"},
    {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
    {"name": "metrics", "port": 9090, "protocol": "UDP"},
    {"name": "sctp", "port": 99, "protocol": "SCTP"},
]


def service(**spec: Any) -> dict[str, Any]:
    made = {"clusterIP": "10.96.0.9", "ports": SERVICE_PORTS, "selector": {"app": "web"}, **spec}
    return without_nulls({"metadata": {"name": "web"}, "spec": made})  # type: ignore[no-any-return]


def part(*endpoints: dict[str, Any], port: int = 8080, **more: Any) -> dict[str, Any]:
    ports = [
        {"name": p["name"], "port": port, "protocol": p.get("protocol")} for p in SERVICE_PORTS
    ]
    made = {"addressType": "IPv4", "ports": ports, "endpoints": list(endpoints), **more}
    return without_nulls(made)  # type: ignore[no-any-return]


def endpoint(address: str = "10.1.0.1", **conditions: Any) -> dict[str, Any]:
    return {"addresses": [address], "conditions": conditions}


READY = [part(endpoint())]


@pytest.mark.parametrize(
    ("port", "number", "protocol"),
    [
        (Port(80), 80, Protocol.TCP),
        (Port("http"), 80, Protocol.TCP),
        (Port("web"), 80, Protocol.TCP),
        (Port(53), 53, Protocol.TCP),
        (Port("dns"), 53, Protocol.UDP),
        (Port(53, protocol=Protocol.UDP), 53, Protocol.UDP),
        (Port(9090), 9090, Protocol.UDP),
    ],
)
def test_a_port_of_a_service_resolves_to_its_cluster_ip(
    port: Port, number: int, protocol: Protocol
) -> None:
    for slices in (READY, None):
        found = resolve_service(service(), port, slices)
        assert found.endpoint == Endpoint("10.96.0.9", number)
        assert (found.protocol, found.via.partition(",")[0]) == (protocol, "clusterIP")


def test_a_port_that_the_service_lacks_is_missing() -> None:
    found = resolve_service(service(), Port(81), READY)
    assert found.endpoint is None
    assert found.reason == (
        'service "web" has no port 81; it has 80 (http), 53 (dns)/udp, 53 (dns-tcp), '
        "9090 (metrics)/udp, 99 (sctp)/sctp"
    )
    asked = Port("http", protocol=Protocol.UDP)
    assert "no port http/udp" in resolve_service(service(), asked, READY).reason
    nothing = resolve_service(service(ports=None), Port(80), READY)
    assert nothing.reason == 'service "web" has no port 80'


@pytest.mark.parametrize(
    ("wanted", "number", "via"),
    [
        (Port(3000), 80, "clusterIP, whose port 80 has targetPort 3000"),
        (Port("web"), 81, "clusterIP, whose port 81 has targetPort web"),
        (Port(81), 81, "clusterIP"),
        (Port(8443), 8443, "clusterIP"),
        (Port(9000, protocol=Protocol.UDP), 53, "clusterIP, whose port 53 has targetPort 9000"),
    ],
)
def test_a_target_port_stands_for_its_service_port(wanted: Port, number: int, via: str) -> None:
    ports = [
        {"name": "http", "port": 80, "targetPort": 3000},
        {"name": "web-ui", "port": 81, "targetPort": "web"},
        {"name": "https", "port": 8443, "targetPort": 443},
        {"name": "other", "port": 443, "targetPort": 8443},
        {"name": "udp", "port": 53, "targetPort": 9000, "protocol": "UDP"},
    ]
    found = resolve_service(service(ports=ports), wanted, None)
    assert (found.endpoint, found.via) == (Endpoint("10.96.0.9", number), via)


ONE, TWO = Endpoint("10.1.0.1", 8080), Endpoint("10.1.0.2", 8080)
BOTH = [part(endpoint("10.1.0.2"), endpoint("10.1.0.1"))]


@pytest.mark.parametrize(
    ("spec", "client", "first", "affinity"),
    [
        ({}, False, Endpoint("10.96.0.9", 80), False),
        ({}, True, ONE, True),
        ({"sessionAffinity": "ClientIP"}, False, ONE, True),
        ({"internalTrafficPolicy": "Local"}, False, ONE, False),
        ({"internalTrafficPolicy": "Cluster"}, False, Endpoint("10.96.0.9", 80), False),
    ],
)
def test_a_service_whose_cluster_ip_would_mislead_is_dialled_by_endpoint(
    spec: dict[str, Any], client: bool, first: Endpoint, affinity: bool
) -> None:
    found = resolve_service(service(**spec), Port(80), BOTH, affinity=client)
    assert (found.endpoint, found.endpoints, found.affinity) == (first, (ONE, TWO), affinity)
    assert found.balanced is not affinity
    denied = resolve_service(service(**spec), Port(80), None, affinity=client)
    assert denied.endpoint == Endpoint("10.96.0.9", 80)


def test_a_headless_service_with_affinity_has_all_its_endpoints() -> None:
    headless = service(clusterIP="None")
    assert resolve_service(headless, Port(80), BOTH).endpoints == ()
    assert resolve_service(headless, Port(80), BOTH, affinity=True).endpoints == (ONE, TWO)


def test_a_service_falls_back_to_a_pod_that_runs() -> None:
    ports = [{"name": "web", "containerPort": 8080}]
    unready = pod(**UNREADY, ports=ports)
    found = resolve_service(service(), Port(80), [], selected=[unready])
    assert found.reason == 'service "web" has no ready endpoint: pod web-1 is not ready'
    assert found.fallback is not None
    assert found.fallback.endpoint == ONE
    assert found.fallback.unready
    assert not found.ended
    nameless = resolve_service(service(), Port(80), [], selected=[pod(**UNREADY)])
    assert nameless.fallback is None
    number = resolve_service(service(), Port(53), [], selected=[unready]).fallback
    assert number is not None
    assert number.endpoint == Endpoint("10.1.0.1", 53)


@pytest.mark.parametrize(("owner", "ended"), [(None, True), ("Job", False), ("ReplicaSet", False)])
def test_a_service_of_pods_that_ended_says_so(owner: str | None, ended: bool) -> None:
    references = [{"kind": owner}] if owner else None
    over = pod(**ENDED, metadata={"ownerReferences": references})
    found = resolve_service(service(), Port(80), [], selected=[over])
    assert found.reason.endswith("no ready endpoint: pod web-1 is not running: Succeeded")
    assert (found.ended, found.phase, found.fallback) == (ended, "Succeeded", None)
    assert not resolve_service(service(), Port(80), [], selected=[over, pod(**UNREADY)]).ended


def test_sctp_is_not_relayed() -> None:
    assert "SCTP" in resolve_service(service(), Port("sctp"), READY).reason


@pytest.mark.parametrize(
    "slices",
    [
        [],
        [part()],
        [part(endpoint(ready=False, serving=False))],
        [part({"addresses": []})],
        [part(endpoint(), ports=None)],
        [{"metadata": {"name": "web-1"}}],
    ],
)
def test_a_service_without_a_ready_endpoint_has_no_resolution(slices: list[dict[str, Any]]) -> None:
    for kind in (service(), service(clusterIP="None")):
        found = resolve_service(kind, Port(80), slices)
        assert found.endpoint is None
        assert found.reason == 'service "web" has no ready endpoint'


def test_a_headless_service_leads_to_an_endpoint_and_stays_there() -> None:
    headless = service(clusterIP="None")
    slices = [part(endpoint("10.1.0.1"), endpoint("10.1.0.2")), part(endpoint("10.1.0.3"), port=9)]
    assert resolve_service(headless, Port(80), slices).endpoint == Endpoint("10.1.0.1", 8080)
    for host, number in (("10.1.0.2", 8080), ("10.1.0.3", 9)):
        found = resolve_service(headless, Port(80), slices, host)
        assert found.endpoint == Endpoint(host, number)
        assert found.via == "endpoint"
    assert resolve_service(headless, Port(80), slices, "10.9.9.9").endpoint


def test_an_endpoint_that_ends_serves_only_without_a_ready_one() -> None:
    headless = service(clusterIP="None")
    leaving = endpoint("10.1.0.1", ready=False, serving=True, terminating=True)
    fresh = endpoint("10.1.0.2", ready=True)
    assert resolve_service(headless, Port(80), [part(leaving)]).endpoint
    found = resolve_service(headless, Port(80), [part(leaving, fresh)], "10.1.0.1")
    assert found.endpoint == Endpoint("10.1.0.2", 8080)


@pytest.mark.parametrize(
    ("conditions", "unready"),
    [
        ({"ready": True, "serving": True}, False),
        ({"ready": False, "serving": True, "terminating": True}, False),
        # The Service publishes addresses that are not ready.
        ({"ready": True, "serving": False}, True),
        # Endpoints that are not pods may have neither.
        ({"ready": True}, False),
        ({}, False),
    ],
)
def test_an_endpoint_is_unready_if_the_kubelet_says_so(
    conditions: dict[str, Any], unready: bool
) -> None:
    for kind in (service(), service(clusterIP="None"), service(sessionAffinity="ClientIP")):
        found = resolve_service(kind, Port(80), [part(endpoint(**conditions))])
        assert found.endpoint is not None
        assert found.unready is unready
        other = endpoint("10.1.0.9", ready=True, serving=True)
        found = resolve_service(kind, Port(80), [part(endpoint(**conditions), other)])
        assert not found.unready
        if found.endpoint != Endpoint("10.96.0.9", 80) and unready:
            assert found.endpoint == Endpoint("10.1.0.9", 8080)


def test_the_service_s_first_family_is_preferred() -> None:
    headless = service(clusterIP="None", ipFamilies=["IPv6", "IPv4"])
    slices = [part(endpoint("10.1.0.1")), part(endpoint("fd00::1"), addressType="IPv6")]
    found = resolve_service(headless, Port(80), slices)
    assert found.endpoint == Endpoint("fd00::1", 8080)


def test_a_headless_service_without_the_right_to_endpoints_has_no_resolution() -> None:
    assert "may not be read" in resolve_service(service(clusterIP="None"), Port(80), None).reason


def refers(name: str, address: str = "10.1.0.1", **conditions: Any) -> dict[str, Any]:
    reference = {"kind": "Pod", "namespace": "shop", "name": name, "uid": f"uid-{name}"}
    return {**endpoint(address, **conditions), "targetRef": reference}


def test_the_pods_behind_a_service_are_those_of_its_endpoints() -> None:
    slices = [
        part(refers("b"), refers("a", ready=False), refers("c", ready=False, serving=False)),
        part(refers("b", "fd00::1", ready=False), refers("d"), addressType="IPv6", port=9),
        part({**endpoint(), "targetRef": {"kind": "Node", "name": "n"}}, endpoint()),
    ]
    for kind in (service(), service(clusterIP="None")):
        found = resolve_service(kind, Port(80), slices)
        assert found.balanced
        assert found.pods == (
            PodPort("shop", "b", "uid-b", 8080),
            PodPort("shop", "d", "uid-d", 9),
            PodPort("shop", "a", "uid-a", 8080, ready=False),
        )


def test_without_the_right_to_endpoints_a_service_s_pods_are_those_that_it_selects() -> None:
    ports = [{"name": "web", "containerPort": 8080}]
    pods = [pod("a", ports=ports), pod("b", **UNREADY, ports=ports), pod("without")]
    found = resolve_service(service(), Port(80), None, selected=pods)
    assert found.endpoint == Endpoint("10.96.0.9", 80)
    assert [(p.name, p.port) for p in found.pods] == [("a", 8080), ("b", 8080)]
    headless = service(clusterIP="None")
    assert resolve_service(headless, Port(53), None, selected=pods).endpoint == Endpoint(
        "10.1.0.1", 53
    )
    nothing = resolve_service(service(), Port(80), None, selected=pods[1:])
    assert (nothing.endpoint, names(nothing.pods)) == (None, ["b"])


def test_an_external_name_resolves_to_its_name() -> None:
    external = service(type="ExternalName", externalName="db.example.test", clusterIP=None)
    for port, number in ((Port(5432), 5432), (Port("http"), 80), (Port(80), 80)):
        found = resolve_service(external, port, None)
        assert found.endpoint == Endpoint("db.example.test", number)
    assert resolve_service(external, Port("dns"), None).protocol is Protocol.UDP
    unknown = resolve_service(external, Port("nope"), None)
    assert unknown.endpoint is None
    assert "use its number" in unknown.reason


def test_an_external_name_that_is_empty_has_no_endpoint() -> None:
    external = service(type="ExternalName", externalName="", clusterIP=None)
    found = resolve_service(external, Port(80), None)
    assert (found.endpoint, found.reason) == (None, "an ExternalName without a name")


conditions = st.dictionaries(
    st.sampled_from(["ready", "serving", "terminating"]), st.none() | st.booleans()
)
some_endpoint = st.fixed_dictionaries(
    {"addresses": st.lists(st.sampled_from(["10.1.0.1", "10.1.0.2", "10.1.0.3"]), max_size=2)},
    optional={"conditions": st.none() | conditions},
)


@given(
    st.lists(st.lists(some_endpoint, max_size=3), max_size=3), st.sampled_from(["10.1.0.1", None])
)
def test_an_endpoint_that_is_not_ready_is_not_chosen_while_another_is(
    groups: list[list[dict[str, Any]]], current: str | None
) -> None:
    slices = [part(*endpoints) for endpoints in groups]
    named: dict[tuple[bool, bool], set[str]] = {}
    for one in itertools.chain(*groups):
        conditions = one.get("conditions") or {}
        kind = conditions.get("ready") is not False, conditions.get("serving") is not False
        named.setdefault(kind, set()).update(one["addresses"][:1])
    # A Service may publish endpoints that do not serve: they are ready, but not the first choice.
    wanted = next((named[kind] for kind in ((True, True), (True, False)) if named.get(kind)), set())
    found = resolve_service(service(clusterIP="None"), Port(80), slices, current)
    if wanted:
        assert found.endpoint is not None
        assert found.endpoint.host in wanted
        assert current not in wanted or found.endpoint.host == current
