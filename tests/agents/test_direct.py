"""The way into the pods without an agent, against a real API server's refusals."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from krelay.agents import direct as module
from krelay.agents.direct import DirectGroup
from krelay.cluster.api import Api
from krelay.datapath.route import Route
from krelay.errors import AccessDeniedError
from krelay.model import DirectSpec, Endpoint, PodPort, Protocol, Resolution
from krelay.tasks import TaskGroup
from tests.cluster.conftest import Kube, clean_environment, kube, pki

__all__ = ["clean_environment", "kube", "pki"]

POD = PodPort("team", "web-0", "uid", 80)


@asynccontextmanager
async def group(kube: Kube) -> AsyncIterator[DirectGroup]:
    """The direct way of a route that leads to one pod."""
    async with await Api.connect(kubeconfig=kube.kubeconfig()) as api, TaskGroup() as tasks:
        made = DirectGroup(DirectSpec(None), api)
        route = Route(made.pool)
        route.update(Resolution(Protocol.TCP, Endpoint("10.1.0.1", 80), pods=(POD,)))
        made.start(tasks)
        try:
            yield made
        finally:
            await made.stop()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


async def test_a_missing_right_is_raised_and_not_logged(
    kube: Kube, caplog: pytest.LogCaptureFixture
) -> None:
    body: dict[str, Any] = {"kind": "Status", "message": "pods/portforward is forbidden"}
    kube.script((403, body))
    async with group(kube) as made:
        with pytest.raises(AccessDeniedError, match="cannot get or create pods/portforward in"):
            await made.reached()
    assert warnings(caplog) == []


async def test_a_pod_that_is_not_reached_in_time_is_logged(
    kube: Kube, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    kube.script((500, {"kind": "Status", "message": "no node"}))
    async with group(kube) as made:
        while made.pool.failure is None:
            await made.pool.wait_change()
        caplog.clear()
        monkeypatch.setattr(module, "_START_DEADLINE", 0.0)
        await made.reached()
        (line,) = warnings(caplog)
    assert line.startswith(
        "team/web-0: no port-forward: no port-forward to pod team/web-0: no node"
    )
