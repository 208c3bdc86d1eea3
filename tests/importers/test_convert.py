"""Each format, recognized by its content, with its entries and warnings."""

from __future__ import annotations

import json
from typing import Any

import pytest

from krelay.config import parse
from krelay.errors import ConfigError
from krelay.importers import Services, places
from krelay.importers import read as read_foreign
from krelay.model import Config

KFTRAY = [
    {
        "alias": "argo",
        "context": "kind",
        "kubeconfig": "default",
        "local_port": 8080,
        "namespace": "argocd",
        "protocol": "tcp",
        "remote_port": 80,
        "service": "argocd-server",
        "workload_type": "service",
        "http_logs_enabled": True,
    },
    {
        "alias": "by-label",
        "local_port": 8083,
        "namespace": "argocd",
        "protocol": "tcp",
        "remote_port": 8083,
        "target": "app=server",
        "workload_type": "pod",
    },
    {
        "alias": "dns",
        "local_port": 5353,
        "namespace": "argocd",
        "protocol": "udp",
        "remote_address": "coredns.internal",
        "remote_port": 53,
        "workload_type": "proxy",
        "local_address": "127.0.0.2",
    },
    {"remote_address": "10.0.0.7", "remote_port": 22, "workload_type": "proxy"},
    {"service": "x", "remote_port": 1, "workload_type": "expose"},
]
KPORTAL = """\
contexts:
  - name: prod
    namespaces:
      - name: shop
        forwards:
          - {resource: service/web, protocol: tcp, port: 80, localPort: 8080, alias: web}
          - {resource: deployment/api, port: 9000, localPort: 9000, httpLog: true}
          - {resource: pod/worker, port: 1, localPort: 2}
          - {resource: pod, selector: app=x, port: 1, localPort: 3}
          - {resource: service/dns, protocol: udp, port: 53, localPort: 5353}
  - name: empty
"""
TARGETS = """\
# the cache
host/redis.test 6379

# not about the next

-n x -l ::1 svc/a 1:http@tcp // t
"""


def read(text: str) -> tuple[Config, tuple[str, ...], str]:
    found = read_foreign(text.encode(), "file").convert()
    return parse(found.text, "krelay.yaml", {}), found.warnings, found.text


def targets_of(config: Config) -> list[str]:
    return [
        f"{t.name} {t} {' '.join(map(str, t.ports))} {t.namespace} {t.context} {t.listen}"
        for t in config.targets
    ]


def test_a_kftray_export_is_converted() -> None:
    config, warnings, text = read(json.dumps(KFTRAY))
    assert targets_of(config) == [
        "argo svc/argocd-server 8080:80 argocd kind 127.0.0.1",
        "dns host/coredns.internal 5353:53/udp None None 127.0.0.2",
        "proxy ip/10.0.0.7 :22 None None 127.0.0.1",
    ]
    assert warnings == (
        "argo: its HTTP log was not carried over",
        "argo: 80 was the port of its pods; here it is the port of the Service",
        "by-label: it selects a pod by labels (app=server): name its workload instead",
        "x: krelay has no equivalent of kftray's type expose",
    )
    assert "# Converted from kftray's file." in text


def test_a_kportal_file_is_converted() -> None:
    config, warnings, _ = read(KPORTAL)
    assert targets_of(config) == [
        "web svc/web 8080:80 shop prod 127.0.0.1",
        "api deploy/api 9000 shop prod 127.0.0.1",
        "dns svc/dns 5353:53/udp shop prod 127.0.0.1",
    ]
    note = "was the port of its pods; here it is the port of the Service"
    assert warnings == (
        f"web: 80 {note}",
        "api: its httpLog was not carried over",
        "worker: it selects a pod by the prefix of its name: name its workload instead",
        "pod: it selects a pod by labels (app=x): name its workload instead",
        f"dns: 53 {note}",
    )


def test_targets_txt_keeps_its_comments() -> None:
    config, warnings, text = read(TARGETS)
    assert targets_of(config) == [
        "redis.test host/redis.test 6379 None None 127.0.0.1",
        "a svc/a 1:http/tcp x None ::1",
    ]
    assert warnings == ()
    assert "  # the cache\n  redis.test: host/redis.test 6379\n  a: " in text


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("[{", 1, "not JSON"),
        ("[" * 100_000, 0, "nested too deeply"),
        ("[1]", 1, "no list of forwards"),
        ("{}\n[]", 2, "not JSON"),
        ("svc/web 99999\nsvc/a b c!\n", 1, "out of range"),
        ("contexts: [\n", 2, "not YAML"),
        ("apiVersion: krelay/v1\ntargets: {}\n", 0, "the format is unknown"),
        ("contexts: text\n", 0, "the format is unknown"),
        ("", 0, "the format is unknown"),
    ],
)
def test_an_unknown_format_is_an_error(text: str, line: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_foreign(text.encode(), "file")
    assert caught.value.problems[0].line == line
    assert message in caught.value.problems[0].message


def test_a_control_character_is_a_problem_at_its_place() -> None:
    with pytest.raises(ConfigError, match="1 problem"):
        read_foreign(b"\xff", "file")


def test_a_single_forward_and_its_dollars_are_converted() -> None:
    config, _, _ = read(json.dumps({**KFTRAY[0], "alias": None, "context": "$HOME"}))
    assert targets_of(config) == ["argocd-server svc/argocd-server 8080:80 argocd $HOME 127.0.0.1"]
    assert len(read(KPORTAL.replace("prod", "${X}"))[0].targets) == 3


# -- ports of pods -----------------------------------------------------------------------------


def service(name: str, *ports: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"ports": list(ports)}}


WEB = service(
    "web",
    {"name": "http", "port": 80, "targetPort": "web"},
    {"name": "admin", "port": 9000, "targetPort": 9001},
    {"name": "same", "port": 7000},
    {"name": "dns", "port": 53, "targetPort": 5353, "protocol": "UDP"},
)
SLICE = {
    "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
    "ports": [{"name": "http", "port": 8080}, {"name": "admin", "port": 9001}],
}
OTHER = {
    "metadata": {"name": "db-1", "labels": {"kubernetes.io/service-name": "db"}},
    "ports": [{"name": "http", "port": 1234}],
}
SERVICES = Services([WEB], [SLICE, OTHER])


def forward(port: int, **more: Any) -> str:
    item = {"service": "web", "namespace": "shop", "context": "prod", "local_port": 1000}
    return json.dumps([item | {"remote_port": port, "workload_type": "service", **more}])


@pytest.mark.parametrize(
    ("port", "protocol", "found"),
    [
        (8080, "tcp", "1000:80"),  # a name, whose number only the endpoints have
        (9001, "tcp", "1000:9000"),
        (7000, "tcp", "1000:7000"),
        (5353, "udp", "1000:53/udp"),
    ],
)
def test_a_port_of_pods_becomes_the_port_of_the_service(
    port: int, protocol: str, found: str
) -> None:
    foreign = read_foreign(forward(port, protocol=protocol).encode(), "file")
    assert places(foreign.entries) == [("prod", "shop")]
    converted = foreign.convert({("prod", "shop"): SERVICES})
    (target,) = parse(converted.text, "krelay.yaml", {}).targets
    assert (str(target), " ".join(map(str, target.ports))) == ("svc/web", found)
    assert converted.warnings == ()


@pytest.mark.parametrize("port", [80, 1234, 9000, 53])
def test_a_port_that_no_service_leads_to_is_no_target(port: int) -> None:
    converted = read_foreign(forward(port).encode(), "file").convert({("prod", "shop"): SERVICES})
    assert converted.targets == 0
    (warning,) = converted.warnings
    assert f"no port of the Service leads to port {port} of its pods" in warning


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ({}, ""),
        ({("prod", "shop"): Services(unknown="no answer")}, " (no answer)"),
        (
            {("prod", "shop"): Services([service("db")])},
            " (the cluster has no such Service)",
        ),
    ],
)
def test_a_port_that_cannot_be_looked_up_has_a_note(answers: Any, why: str) -> None:
    converted = read_foreign(forward(8080).encode(), "file").convert(answers)
    note = "8080 was the port of its pods; here it is the port of the Service"
    assert converted.warnings == (f"web: {note}{why}",)
    assert [str(port) for port in parse(converted.text, "x", {}).targets[0].ports] == ["1000:8080"]


def test_only_services_are_looked_up() -> None:
    found = places(read_foreign(KPORTAL.encode(), "file").entries)
    assert found == [("prod", "shop")]
    assert places(read_foreign(TARGETS.encode(), "file").entries) == []
    assert places(read_foreign(json.dumps(KFTRAY[1:]).encode(), "file").entries) == []


def test_entries_without_a_context_get_the_given_one() -> None:
    text = read_foreign(forward(1, context=None).encode(), "file").convert(context="mine").text
    assert parse(text, "krelay.yaml", {}).context == "mine"
