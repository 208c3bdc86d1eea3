"""Each format, recognised by its content, with its entries and warnings."""

from __future__ import annotations

import json

import pytest

from krelay.config import parse
from krelay.errors import ConfigError
from krelay.importers import convert
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
    found = convert(text.encode(), "file")
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
    assert warnings == (
        "api: its httpLog was not carried over",
        "worker: it selects a pod by the prefix of its name: name its workload instead",
        "pod: it selects a pod by labels (app=x): name its workload instead",
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
        convert(text.encode(), "file")
    assert caught.value.problems[0].line == line
    assert message in caught.value.problems[0].message


def test_a_control_character_is_a_problem_at_its_place() -> None:
    with pytest.raises(ConfigError, match="1 problem"):
        convert(b"\xff", "file")


def test_a_single_forward_and_its_dollars_are_converted() -> None:
    config, _, _ = read(json.dumps({**KFTRAY[0], "alias": None, "context": "$HOME"}))
    assert targets_of(config) == ["argocd-server svc/argocd-server 8080:80 argocd $HOME 127.0.0.1"]
    assert len(read(KPORTAL.replace("prod", "${X}"))[0].targets) == 3
