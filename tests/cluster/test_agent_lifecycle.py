"""Creating, watching and deleting over HTTP, against a server that plays the few objects needed.

`startup.py` is tested here too, by what a caller of `create_agent` sees of it. What a real
cluster does is in tests/e2e/test_agent_lifecycle.py.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from krelay.cluster import diagnosis, jobs, startup
from krelay.cluster.agent_lifecycle import Agent, agent_gone, create_agent
from krelay.cluster.api import Api
from krelay.cluster.jobs import PostedJobs
from krelay.errors import AccessDeniedError, AgentError, CredentialsError, MalformedError
from krelay.model import AgentConfig, Patch

KEY = "ab" * 32
RUNNING = {"containerStatuses": [{"name": "krelay-server", "state": {"running": {}}}]}
PULLING = {
    "containerStatuses": [
        {
            "name": "krelay-server",
            "image": "no:1",
            "state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}},
        }
    ]
}
AGENT = Agent("tools", "krelay-server-x", "krelay-server-x-y", "p1")


class Cluster:
    """Jobs, pods and events by resource; lists and watches show them. `denied` gets a 403."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {"jobs": {}, "pods": {}, "events": {}}
        self.denied: set[str] = set()
        self.deleted: list[tuple[str, Any]] = []
        self.selectors: list[str] = []
        self.on_create = asyncio.Event()
        self.may_create = asyncio.Event()
        self.may_create.set()
        self.delete_status = 200
        self._version = 1
        self._changed = asyncio.Condition()
        self._closed = False

    async def close(self) -> None:
        """End the watches: a server does not notice that their client has gone."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def put(self, resource: str, name: str, **body: Any) -> None:
        """Add or change an object."""
        async with self._changed:
            self._version += 1
            metadata = {"name": name, "namespace": "tools", "uid": name[-2:]}
            metadata |= {"resourceVersion": str(self._version)} | body.pop("metadata", {})
            self.objects[resource][name] = {"metadata": metadata, **body}
            self._changed.notify_all()

    async def remove(self, resource: str, name: str) -> None:
        async with self._changed:
            self._version += 1
            del self.objects[resource][name]
            self._changed.notify_all()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        parts = request.path.split("/")
        resource = next(part for part in parts if part in self.objects)
        if request.method == "POST":
            return await self._create(await request.json())
        if request.method == "DELETE":
            self.deleted.append((parts[-1], await request.json()))
            return web.json_response({"message": "no"}, status=self.delete_status)
        self.selectors += [v for k, v in request.query.items() if k.endswith("Selector")]
        if resource in self.denied:
            message = (
                f'{resource} is forbidden: User "u" cannot list resource "{resource}" in API group'
                ' "" in the namespace "tools"'
            )
            return web.json_response({"message": message}, status=403)
        if "watch" in request.query:
            return await self._watch(request, resource)
        items = list(self.objects[resource].values())
        version = {"resourceVersion": str(self._version)}
        return web.json_response({"metadata": version, "items": items})

    async def _create(self, body: Any) -> web.StreamResponse:
        self.on_create.set()
        await self.may_create.wait()
        name = body["metadata"]["name"]
        await self.put("jobs", name, spec=body["spec"])
        return web.json_response(self.objects["jobs"][name], status=201)

    async def _watch(self, request: web.Request, resource: str) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        shown: dict[str, Any] = {}
        async with self._changed:
            while not self._closed:
                now = dict(self.objects[resource])
                for name in shown.keys() - now.keys():
                    await _send(response, "DELETED", shown[name])
                for name, body in now.items():
                    if shown.get(name) != body:
                        await _send(response, "MODIFIED", body)
                shown = now
                await self._changed.wait()
        return response


async def _send(response: web.StreamResponse, kind: str, body: Any) -> None:
    with suppress(ConnectionResetError):
        await response.write(json.dumps({"type": kind, "object": body}).encode() + b"\n")


@pytest.fixture
async def cluster(plain_kube: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    cluster = Cluster()
    plain_kube.handler = cluster.answer
    monkeypatch.setattr(startup, "QUIET", 0.0)
    monkeypatch.setattr(jobs, "_suffix", lambda: "x")
    yield cluster
    await cluster.close()


@pytest.fixture
async def api(plain_kube: Any) -> AsyncIterator[Api]:
    path = plain_kube.kubeconfig(**{"certificate-authority": None})
    async with await Api.connect(kubeconfig=path) as api:
        yield api


async def create(api: Api, config: AgentConfig | None = None, **more: Any) -> Agent:
    return await create_agent(
        PostedJobs(api), config or AgentConfig(), namespace="tools", key_sha256=KEY, **more
    )


async def test_an_agent_that_runs(cluster: Cluster, api: Api) -> None:
    told: list[str] = []
    await cluster.put("pods", "krelay-server-x-p1", status=RUNNING)
    found = await create(api, on_progress=told.append)
    assert found == Agent("tools", "krelay-server-x", "krelay-server-x-p1", "p1")
    assert str(found) == "tools/krelay-server-x-p1"
    assert cluster.deleted == []
    assert "job-name=krelay-server-x" in cluster.selectors


async def test_progress_is_told_as_it_changes(cluster: Cluster, api: Api) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    async with asyncio.TaskGroup() as group:
        making = group.create_task(create(api, on_progress=told.put_nowait))
        assert await told.get() == "waiting for the Job's pod"
        await cluster.put("pods", "krelay-server-x-p1", status={})
        assert await told.get() == "waiting for a node"
        await cluster.put("pods", "krelay-server-x-p1", spec={"nodeName": "n"}, status={})
        assert await told.get() == "waiting for the agent's container"
        await cluster.put("pods", "krelay-server-x-p1", status=RUNNING)
    assert making.result().uid == "p1"
    assert told.empty()


async def test_a_failure_tells_the_reason_after_the_job_is_deleted(
    cluster: Cluster, api: Api
) -> None:
    await cluster.put("pods", "krelay-server-x-p1", status=PULLING)
    with pytest.raises(AgentError, match="cannot pull the image no:1: no such image") as caught:
        await create(api)
    assert caught.value.exit_code == 4
    assert "agent.image" in str(caught.value.hint)
    ((name, options),) = cluster.deleted
    assert name == "krelay-server-x"
    assert options["propagationPolicy"] == "Background"


async def test_the_last_words_are_logged(
    cluster: Cluster, api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    ended = {"exitCode": 1, "reason": "Error", "message": "Traceback\n  line\nOh: no"}
    state = {"name": "krelay-server", "state": {"terminated": ended}}
    await cluster.put("pods", "krelay-server-x-p1", status={"containerStatuses": [state]})
    with pytest.raises(AgentError, match="the agent ended with exit code 1: Oh: no"):
        await create(api)
    assert "the agent's last words:\nTraceback\n  line\nOh: no" in caplog.text


async def test_what_may_pass_gets_its_patience(
    cluster: Cluster, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state lasts, while its words change; then it counts as failed."""
    monkeypatch.setattr(diagnosis, "PATIENCE", 0.05)
    refused = {"reason": "FailedCreate", "message": "Error creating: exceeded quota: q"}
    told: list[str] = []
    await cluster.put("events", "e1", **refused)
    with pytest.raises(AgentError, match="refuses the agent's pod: exceeded quota: q"):
        await create(api, on_progress=told.append)
    assert told[-1] == "the cluster refuses the agent's pod: exceeded quota: q"
    assert [name for name, _ in cluster.deleted] == ["krelay-server-x"]


async def test_what_passes_in_time_is_no_failure(cluster: Cluster, api: Api) -> None:
    no_node = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    told = asyncio.Event()
    await cluster.put("pods", "krelay-server-x-p1", status={"conditions": [no_node]})
    async with asyncio.TaskGroup() as group:
        making = group.create_task(create(api, on_progress=lambda _: told.set()))
        await told.wait()
        await cluster.put("pods", "krelay-server-x-p1", status=RUNNING)
    assert making.result().pod == "krelay-server-x-p1"


async def test_the_pod_s_own_events_are_seen(cluster: Cluster, api: Api) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    await cluster.put("pods", "krelay-server-x-p1", spec={"nodeName": "n"}, status={})
    mount = {"type": "Warning", "reason": "FailedMount", "message": "slow disk"}
    await cluster.put("events", "e1", involvedObject={"uid": "p1"}, **mount)
    async with asyncio.TaskGroup() as group:
        making = group.create_task(create(api, on_progress=told.put_nowait))
        while "FailedMount: slow disk" not in await told.get():
            pass
        await cluster.put("pods", "krelay-server-x-p1", status=RUNNING)
    assert making.result().uid == "p1"
    assert "involvedObject.uid=p1" in cluster.selectors


async def test_the_deadline_comes_with_the_last_reason(cluster: Cluster, api: Api) -> None:
    with pytest.raises(AgentError, match="does not run after 0.05 s: waiting for the Job's pod"):
        await create(api, deadline=0.05)
    assert len(cluster.deleted) == 1


async def test_a_job_that_somebody_deletes(cluster: Cluster, api: Api) -> None:
    told = asyncio.Event()
    async with asyncio.TaskGroup() as group:

        async def meddle() -> None:
            await told.wait()
            await cluster.remove("jobs", "krelay-server-x")

        group.create_task(meddle())
        with pytest.raises(AgentError, match="somebody deleted the agent's Job"):
            await create(api, on_progress=lambda _: told.set())


async def test_without_rights_on_jobs_lists_and_events_it_still_starts(
    cluster: Cluster, api: Api
) -> None:
    cluster.denied = {"jobs", "events"}
    told = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        making = group.create_task(create(api, on_progress=lambda _: told.set()))
        await told.wait()
        await cluster.put("pods", "krelay-server-x-p1", status=RUNNING)
    assert making.result().pod == "krelay-server-x-p1"


async def test_without_events_a_missing_pod_has_an_end_and_a_hint(
    cluster: Cluster, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis, "PATIENCE_UNTOLD", 0.05)
    cluster.denied = {"jobs", "events"}
    with pytest.raises(AgentError, match="we may not read the events") as caught:
        await create(api)
    assert "`watch` on events" in str(caught.value.hint)


async def test_without_the_right_to_watch_pods_it_says_so(cluster: Cluster, api: Api) -> None:
    cluster.denied = {"pods"}
    with pytest.raises(AccessDeniedError, match='cannot list pods in namespace "tools"'):
        await create(api)
    assert [name for name, _ in cluster.deleted] == ["krelay-server-x"]


async def test_cancelled_while_it_waits_it_leaves_no_job(cluster: Cluster, api: Api) -> None:
    told = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        making = group.create_task(create(api, on_progress=lambda _: told.set()))
        await told.wait()
        making.cancel()
    assert making.cancelled()
    assert [name for name, _ in cluster.deleted] == ["krelay-server-x"]


async def test_cancelled_while_the_job_is_made_it_leaves_no_job(cluster: Cluster, api: Api) -> None:
    cluster.may_create.clear()
    async with asyncio.TaskGroup() as group:
        making = group.create_task(create(api))
        await cluster.on_create.wait()
        making.cancel()
        await asyncio.sleep(0)
        making.cancel()
        cluster.may_create.set()
    assert making.cancelled()
    assert [name for name, _ in cluster.deleted] == ["krelay-server-x"]


async def test_a_server_that_does_not_answer_is_not_waited_for(
    cluster: Cluster, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "CREATE_PATIENCE", 0.01)
    cluster.may_create.clear()
    async with asyncio.TaskGroup() as group:
        making = group.create_task(create(api))
        await cluster.on_create.wait()
        making.cancel()
    assert making.cancelled()
    cluster.may_create.set()


async def test_a_plugin_that_hangs_is_not_waited_for(
    kube: Any, tmp_path: Path, program: Any
) -> None:
    begun = tmp_path / "begun"
    os.mkfifo(begun)
    command = program("login", f"echo > {begun}; exec sleep 600")
    user = {"exec": {"command": str(command), "apiVersion": "client.authentication.k8s.io/v1"}}
    path = kube.kubeconfig(user)
    async with await Api.connect(kubeconfig=path) as api, asyncio.TaskGroup() as group:
        making = group.create_task(create(api))
        await asyncio.to_thread(begun.read_bytes)
        making.cancel()
    assert making.cancelled()
    assert not kube.seen


async def test_a_timeout_of_the_caller_s_stays_a_timeout(cluster: Cluster, api: Api) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await create(api)
    assert [name for name, _ in cluster.deleted] == ["krelay-server-x"]


async def test_a_failed_deletion_does_not_hide_the_reason(cluster: Cluster, api: Api) -> None:
    cluster.delete_status = 409
    await cluster.put("pods", "krelay-server-x-p1", status=PULLING)
    with pytest.raises(AgentError, match="no such image"):
        await create(api)
    assert [name for name, _ in cluster.deleted] == ["krelay-server-x"]


async def test_a_patch_that_takes_something_away_is_logged(
    cluster: Cluster, api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    await cluster.put("pods", "krelay-server-x-p1", status=RUNNING)
    image = {"name": "krelay-server", "image": None}
    with caplog.at_level(logging.WARNING):
        await create(api, AgentConfig(patches=(Patch({"spec": {"containers": [image]}}),)))
    assert "agent.patches[0] drops the container's image of the agent's pod" in caplog.text


async def test_gone_tells_how_the_pod_ends(cluster: Cluster, api: Api) -> None:
    name, own = AGENT.pod, {"uid": "p1"}
    await cluster.put("pods", name, metadata=own, status=RUNNING)
    async with asyncio.TaskGroup() as group:
        gone = group.create_task(agent_gone(api, AGENT))
        await cluster.put("pods", name, metadata=own, status=RUNNING | {"phase": "Running"})
        evicted = {"phase": "Failed", "reason": "Evicted", "message": "low on memory"}
        await cluster.put("pods", name, metadata=own, status=evicted)
    assert gone.result() == f"the agent's pod {name} ended: Evicted: low on memory"
    assert f"metadata.name={name}" in cluster.selectors


async def test_gone_is_also_a_pod_that_is_not_there_or_another(cluster: Cluster, api: Api) -> None:
    assert await agent_gone(api, AGENT) == "the agent's pod krelay-server-x-y is gone"
    await cluster.put("pods", AGENT.pod, metadata={"uid": "p2"}, status=RUNNING)
    assert await agent_gone(api, AGENT) == "the agent's pod krelay-server-x-y is gone"


async def test_without_tls_beyond_this_machine_no_job_is_made(
    plain_kube: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy on loopback is one as any other: the server is behind it."""
    proxy = f"http://127.0.0.1:{plain_kube.port}"
    for cluster in ({"server": "http://kube.test:1", "proxy-url": proxy}, {"proxy-url": proxy}):
        path = plain_kube.kubeconfig(**{"certificate-authority": None, **cluster})
        async with await Api.connect(kubeconfig=path) as api:
            with pytest.raises(CredentialsError, match="is not encrypted") as caught:
                await create(api)
            assert "kubectl proxy" in str(caught.value.hint)
    assert not plain_kube.seen


async def test_a_job_without_a_name_is_an_error_in_words(plain_kube: Any, api: Api) -> None:
    plain_kube.script((201, {"metadata": {"namespace": "tools", "uid": 5}}))
    with pytest.raises(MalformedError, match="metadata.uid: expected a text, got a number"):
        await create(api)
