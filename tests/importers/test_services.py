"""The Services and workloads of a namespace, written as a file."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.config import parse
from krelay.importers import kubefwd, starter


def service(name: str, *ports: Any, **selector: str) -> dict[str, Any]:
    declared = [
        port if isinstance(port, dict) else {"port": port, "protocol": "TCP"} for port in ports
    ]
    return {"metadata": {"name": name}, "spec": {"ports": declared, "selector": selector}}


def workload(kind: str, name: str, *ports: int, **labels: str) -> dict[str, Any]:
    container = {"ports": [{"containerPort": port} for port in ports]}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    return {"kind": kind, "metadata": {"name": name}, "spec": {"template": template}}


DNS = service("dns", {"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"})


def targets(text: str) -> dict[str, str]:
    config = parse(text, "krelay.yaml", {})
    return {t.name: f"{' '.join(map(str, t.ports))} {t.listen}" for t in config.targets}


def test_kubefwd_gives_each_service_an_address_and_its_own_ports() -> None:
    found = kubefwd({"shop": [service("web", 80, 443), service("none")], "other": [DNS]})
    assert targets(found.text) == {
        "web": "80 443 127.1.27.3",
        "dns": "53/udp 53/tcp 127.1.27.4",
    }
    assert found.warnings == ("none: it has no ports",)


def test_kubefwd_has_addresses_for_many() -> None:
    found = kubefwd({"x": [service(f"s{number:04}", 80) for number in range(600)]})
    assert len({entry.split()[-1] for entry in targets(found.text).values()}) == 600


def test_a_starter_without_a_namespace_makes_up_no_target() -> None:
    found = starter(None)
    assert found.targets == 0
    lines = [line for line in found.text.splitlines() if not line.lstrip().startswith("#")]
    assert lines == ["apiVersion: krelay/v1", "targets:"]
    # A target is all that is missing.
    assert targets(found.text + "  web: svc/web 80\n") == {"web": "80 127.0.0.1"}


@pytest.mark.parametrize("context", ["prod", "arn:aws:eks:eu:1:cluster/x", "$HOME", "yes", "a: b"])
def test_a_file_keeps_the_context_that_it_was_made_from(context: str) -> None:
    for text in (
        starter("shop", [service("web", 80)], context=context).text,
        kubefwd({"shop": [service("web", 80)]}, context=context).text,
        starter(None, context=context).text + "  web: svc/web 80\n",
    ):
        assert parse(text, "krelay.yaml", {}).context == context


def test_a_starter_uses_unprivileged_local_ports() -> None:
    services = [
        service("web", 80, a="1"),
        service("api", 80, 443, 9000),
        DNS,
        service("sctp", {"port": 1, "protocol": "SCTP"}),
    ]
    workloads = [
        workload("Deployment", "led", 80, a="1"),
        workload("StatefulSet", "alone", 5432, b="2"),
        workload("DaemonSet", "bare"),
    ]
    text = starter("shop", services, workloads).text
    assert targets(text) == {
        "api": "8080:80 8443:443 9000 127.0.0.1",
        "dns": "10053:53/udp 10053:53/tcp 127.0.0.1",
        "web": "8081:80 127.0.0.1",
    }
    assert "\nnamespace: shop\n" in text
    assert "  # alone: sts/alone :5432\n" in text
    assert "  # bare: ds/bare :PORT\n" in text
    assert "led" not in text


PORT = st.builds(
    lambda port, protocol: {"port": port, "protocol": protocol},
    st.one_of(st.integers(1, 65535), st.sampled_from([80, 443, 8080, 65535])),
    st.sampled_from(["TCP", "UDP", "SCTP"]),
)
SERVICES = st.lists(
    st.builds(
        lambda name, ports: service(name, *ports),
        st.sampled_from(["a", "b", "web-1", "no"]),
        st.lists(PORT, max_size=4, unique_by=lambda p: (p["port"], p["protocol"])),
    ),
    max_size=8,
)


@given(SERVICES)
def test_any_namespace_gives_a_valid_file(services: list[Any]) -> None:
    for found in (starter("shop", services), kubefwd({"shop": services})):
        if found.targets:
            assert len(parse(found.text, "krelay.yaml", {}).targets) == found.targets
