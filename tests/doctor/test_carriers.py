"""The measurement of a carrier, on a real agent in a process."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from krelay import payload
from krelay.cluster.agent_job import job_manifest
from krelay.cluster.agent_lifecycle import Agent
from krelay.cluster.api import Api
from krelay.datapath.carrier import LegacyAgentError
from krelay.doctor import carriers
from krelay.doctor.carriers import LiveAgent, launch, measure
from krelay.errors import KrelayError, NotListeningError, TunnelRefusedError
from krelay.model import AgentConfig, GroupSpec, Patch, Transport
from krelay.processes import end
from krelay.transport.connect import open_tcp
from tests import rig
from tests.cluster.conftest import Kube

KEY = bytes(range(32))


class Tcp:
    """The way to an agent on this machine."""

    name = "tcp"
    private = True
    expires = math.inf

    def __init__(self, port: int) -> None:
        self.port = port

    async def dial(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        return await open_tcp("127.0.0.1", self.port, protocol=protocol)


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[tuple[Tcp, int]]:
    """An agent as the doctor starts it, with the program beside it."""
    source = rig.closed_port()
    *command, boot = payload.command(sys.executable)
    program = await asyncio.to_thread(payload.payload)
    environ = {**os.environ, payload.ENV_NAME: program, "KRELAY_KEY": KEY.hex()}
    process = await asyncio.create_subprocess_exec(
        *command,
        launch(source) + boot,
        "--port=0",
        "--idle-timeout=120s",
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        line = await process.stdout.readline()
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", source)
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                break
        yield Tcp(int(line.rpartition(b":")[2])), source
    finally:
        os.killpg(process.pid, 9)
        await end(process)


@pytest.mark.process
async def test_round_trip_and_throughput_of_a_real_agent(agent: tuple[Tcp, int]) -> None:
    way, source = agent
    # As the connection of the carrier before, which the agent may still hold.
    with socket.create_connection(("127.0.0.1", source)):
        speed = await measure(way, KEY, source, 0.05)
    assert 0 < speed.round_trip < 10
    assert speed.rate is not None
    assert speed.rate > 0
    speed = await measure(way, KEY, None)
    assert speed.rate is None
    speed = await measure(way, KEY, rig.closed_port(), 0.05)
    assert speed.rate is None
    with pytest.raises(TunnelRefusedError):
        await measure(way, bytes(32), None)


# -- the agent of the doctor -----------------------------------------------------------------------


SPEC = GroupSpec(None, None, AgentConfig())


@pytest.fixture
async def api(kube: Kube) -> AsyncIterator[Api]:
    async with await Api.connect(kubeconfig=kube.kubeconfig({"token": "t"})) as found:
        yield found


@pytest.mark.parametrize(
    ("transport", "works", "status", "text"),
    [
        (Transport.AUTO, ["spdy", "websocket", "proxy"], "ok", "start by spdy, and move to proxy"),
        (Transport.AUTO, ["websocket"], "ok", "start by websocket"),
        (Transport.AUTO, ["proxy"], "failed", "only by proxy, on which krelay does not start"),
        (Transport.AUTO, [], "failed", "no carrier reaches the agent"),
        (Transport.SPDY, ["spdy"], "ok", "by spdy (tunnel.transport)"),
        (Transport.SPDY, ["websocket"], "failed", "tunnel.transport is spdy, which does not work"),
    ],
)
async def test_the_verdict_says_which_carriers_krelay_would_use(
    api: Api, transport: Transport, works: list[str], status: str, text: str
) -> None:
    agent = LiveAgent(api, GroupSpec(None, None, AgentConfig(), transport=transport))
    agent._works = works
    found = await agent.verdict()
    assert found.status.value == status
    assert found.text.startswith(text)


@pytest.mark.parametrize(
    ("agent", "beside"),
    [
        (AgentConfig(), True),
        (AgentConfig(image="krelay/agent:1"), False),
        (AgentConfig(patches=(Patch({"spec": {"containers": []}}, type="merge"),)), False),
    ],
)
async def test_the_program_runs_beside_krelays_own_source_only(
    api: Api, agent: AgentConfig, beside: bool
) -> None:
    found = LiveAgent(api, GroupSpec(None, None, agent))
    config = await asyncio.to_thread(found._config)
    manifest, _ = await asyncio.to_thread(
        lambda: job_manifest(config, namespace="x", key_sha256="")
    )
    containers = manifest["spec"]["template"]["spec"]["containers"]
    commands = [container.get("command") for container in containers]
    assert [
        bool(command and command[-1].startswith("import subprocess")) for command in commands
    ] in ([[True]] if beside else [[False], []])


async def test_an_agent_that_cannot_start_leaves_nothing(kube: Kube, api: Api) -> None:
    kube.script((403, {"message": 'User "j" cannot create resource "jobs"'}))
    found = LiveAgent(api, SPEC)
    with pytest.raises(KrelayError):
        await found.start()
    await found.remove()
    assert [request.method for request in kube.seen] == ["POST"]


@pytest.mark.parametrize(
    ("error", "status"),
    [(LegacyAgentError(), "skipped"), (OSError("gone"), "warning"), (TimeoutError(), "warning")],
)
async def test_a_carrier_that_does_not_work_is_a_warning(
    api: Api, monkeypatch: pytest.MonkeyPatch, error: Exception, status: str
) -> None:

    async def fail(*args: object) -> None:
        raise error

    found = LiveAgent(api, SPEC)
    found._agent = Agent("team", "j", "p", "u")
    monkeypatch.setattr(carriers, "measure", fail)
    assert (await found.measure("spdy")).status.value == status


async def test_an_agent_that_does_not_listen_yet_is_asked_again(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: Iterator[Exception | carriers.Speed]
    answers = iter([NotListeningError("not yet"), carriers.Speed(0.01, None)])

    async def measure(*args: object) -> carriers.Speed:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    found = LiveAgent(api, SPEC)
    found._agent = Agent("team", "j", "p", "u")
    monkeypatch.setattr(carriers, "measure", measure)
    assert (await found.measure("spdy")).status.value == "ok"
    monkeypatch.setattr(carriers, "_LISTENS_WITHIN", 0.0)
    answers = iter([NotListeningError("never")])
    assert (await found.measure("spdy")).text == "does not work: never"


@pytest.mark.parametrize("carrier", ["spdy", "websocket", "proxy"])
async def test_each_carrier_is_asked_of_the_api_server(kube: Kube, api: Api, carrier: str) -> None:
    kube.script((403, {"kind": "Status", "message": "no"}))
    found = LiveAgent(api, SPEC)
    found._agent = Agent("team", "j", "p", "u")
    one = await found.measure(carrier)
    assert one.status.value == "warning"
    assert one.text.startswith("does not work: ")
    path = "/api/v1/namespaces/team/pods/"
    paths = {"proxy": f"{path}p:10250/proxy/"}
    assert [request.path for request in kube.seen] == [paths.get(carrier, f"{path}p/portforward")]
