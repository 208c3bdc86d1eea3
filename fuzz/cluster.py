"""Fuzz targets of `krelay.cluster`: the answers of API servers, issuers and plugins."""

from __future__ import annotations

import base64
import math
import shlex
from contextlib import suppress
from typing import Any

from fuzz.draw import Draw
from krelay import typed
from krelay.cluster.api_errors import StatusError
from krelay.cluster.auth.entries import _parse
from krelay.cluster.auth.exec_plugin import ExecPlugin
from krelay.cluster.auth.oidc import _DISCOVERY, _TOKENS, _renew_at
from krelay.cluster.diagnosis import diagnose
from krelay.cluster.endpoints import (
    choose_pod,
    choose_running,
    resolve_pod,
    resolve_service,
    why_not_ready,
)
from krelay.cluster.objects import CREATED, read_event, read_list, read_object, schema_of
from krelay.cluster.selectors import Selector
from krelay.errors import ClusterError, MalformedError
from krelay.model import Port, Resolution

RESOURCES = ("pods", "services", "endpointslices", "deployments", "jobs", "events", "widgets")
PORTS = tuple(Port(local=None, remote=remote) for remote in (80, "web", "no-such"))
_MARK = "allows it: "
_PLUGIN = {"command": "login", "apiVersion": "client.authentication.k8s.io/v1"}


def api_objects(data: bytes) -> None:
    """Read an event, a list or an object of each kind, and use the result."""
    draw = Draw(data)
    resource = RESOURCES[draw.number() % len(RESOURCES)]
    form = draw.number() % 4
    path = f"/api/v1/namespaces/x/{resource}"
    body = draw.rest()
    try:
        if form == 0:
            use(resource, [item for _, _, item in [read_event(body, path)] if "metadata" in item])
            return
        parsed = typed.load(typed.AnyValue(), body, path)
        if form == 1:
            items, version, token, _ = read_list(parsed, path)
            assert isinstance(version, str)
            assert isinstance(token, str)
            use(resource, items)
        elif form == 2:
            made = read_object(CREATED, parsed, path)["metadata"]
            assert made["name"]
            assert made["namespace"]
        else:
            use(resource, [read_object(schema_of(path), parsed, path)])
    except MalformedError as exc:
        _readable(exc)


def use(resource: str, items: list[dict[str, Any]]) -> None:
    """Use objects as krelay does; useless ones must not raise."""
    if resource == "pods":
        pod = choose_pod(items, "u") or choose_running(items, "u")
        assert why_not_ready(items)
        diagnose(None, items, ())
        for port in PORTS if pod is not None else ():
            _check(resolve_pod(pod, port))  # type: ignore[arg-type]
    elif resource == "services":
        for item in items:
            for port in PORTS:
                for slices in ((), None):
                    _check(resolve_service(item, port, slices))
    elif resource == "endpointslices":
        service = {"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}}
        for port in PORTS:
            _check(resolve_service(service, port, items, "10.0.0.1"))
    elif resource == "events":
        diagnose((), (), items)
        diagnose(None, [{"metadata": {"name": "a", "uid": "u"}, "spec": {"nodeName": "n"}}], items)
    elif resource in ("deployments", "jobs"):
        diagnose(items, (), None)
        for item in items:
            with suppress(ClusterError):
                assert isinstance(
                    Selector.of_workload(item["spec"].get("selector")).label_selector, str
                )


def _check(found: Resolution) -> None:
    if found.endpoint is None:
        assert found.reason
    else:
        assert 0 < len(found.endpoint.host) <= 253
        assert found.endpoint.host.isprintable()
        assert 0 <= found.endpoint.port < 65_536


def api_refusal(data: bytes) -> None:
    """Convert an error answer: the error has a bounded size, and its hint stays safe in a shell."""
    draw = Draw(data)
    status = 400 + draw.number(2) % 200
    error = StatusError(status, draw.rest()).to_cluster_error("context c, https://h")
    _readable(error)
    line = (error.hint or "").partition(_MARK)[2]
    if line:
        words = shlex.split(line)
        at = words.index("&&")
        assert words[:2] == words[at + 1 : at + 3] == ["kubectl", "create"]
        assert words[2] + "binding" == words[at + 3]


def credentials(data: bytes) -> None:
    """Read a plugin's or an issuer's answer, an id token, or a kubeconfig."""
    draw = Draw(data)
    form = draw.number() % 7
    body = draw.rest()
    try:
        if form == 0:
            found = ExecPlugin(_PLUGIN, {})._read(body)
            assert found.authorization or found.certificate
            assert not math.isnan(found.expires)
        elif form == 1:
            token = base64.urlsafe_b64encode(body).decode().rstrip("=")
            assert math.isfinite(_renew_at(f"e30.{token}.x"))
        elif form in (2, 3):
            typed.load((_DISCOVERY, _TOKENS)[form - 2], body, "the answer")
        else:
            _parse("/kubeconfig", body)
    except ClusterError as exc:
        _readable(exc)


def _readable(exc: ClusterError) -> None:
    assert len(str(exc)) < 1_000, len(str(exc))
    assert len(exc.hint or "") < 4_000
