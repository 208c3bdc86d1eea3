"""Create, watch and delete agents against an HTTP server with Jobs, pods and events in memory.

tests/e2e/test_agent_lifecycle.py does the same on a real cluster.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from krelay.cluster import agent_lifecycle as module
from krelay.cluster import diagnosis
from krelay.cluster.agent_lifecycle import Agent, PostedJobs, agent_ended, agent_gone, create_agent
from krelay.cluster.api import Api
from krelay.errors import (
    AccessDeniedError,
    AgentError,
    ClusterError,
    CredentialsError,
    MalformedError,
    NotFoundError,
    UnreachableError,
)
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
        self.refusals: dict[str, tuple[int, str]] = {}
        """The status and the message for a Job in a namespace."""
        self.tried: list[str] = []
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
        """End the watches: the server does not notice that their client is gone."""
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
            self.tried.append(parts[parts.index("namespaces") + 1])
            if refused := self.refusals.get(self.tried[-1]):
                return web.json_response({"message": refused[1]}, status=refused[0])
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
        metadata = {"namespace": body["metadata"]["namespace"]}
        await self.put("jobs", name, spec=body["spec"], metadata=metadata)
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
    monkeypatch.setattr(module, "QUIET", 0.0)
    monkeypatch.setattr(module, "_ALPHABET", "x")
    monkeypatch.setattr(module, "_SUFFIX_LENGTH", 1)
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


async def test_an_agent_whose_container_runs_is_returned(cluster: Cluster, api: Api) -> None:
    progress: list[str] = []
    await cluster.put("pods", "krelay-server-x-p1", status=RUNNING)
    found = await create(api, on_progress=progress.append)
    assert found == Agent("tools", "krelay-server-x", "krelay-server-x-p1", "p1")
    assert str(found) == "tools/krelay-server-x-p1"
    assert cluster.deleted == []
    assert "job-name=krelay-server-x" in cluster.selectors


async def test_progress_is_reported_when_the_reason_changes(cluster: Cluster, api: Api) -> None:
    progress: asyncio.Queue[str] = asyncio.Queue()
    async with asyncio.TaskGroup() as group:
        making = group.create_task(create(api, on_progress=progress.put_nowait))
        assert await progress.get() == "waiting for the Job's pod"
        await cluster.put("pods", "krelay-server-x-p1", status={})
        assert await progress.get() == "waiting for a node"
        await cluster.put("pods", "krelay-server-x-p1", spec={"nodeName": "n"}, status={})
        assert await progress.get() == "waiting for the agent's container"
        await cluster.put("pods", "krelay-server-x-p1", status=RUNNING)
    assert making.result().uid == "p1"
    assert progress.empty()


@pytest.mark.parametrize("proven", [True, False])
async def test_an_agent_whose_pod_has_a_node_runs_once_a_tunnel_or_its_status_says_so(
    proven: bool, cluster: Cluster, api: Api
) -> None:
    placed: asyncio.Future[Agent] = asyncio.get_running_loop().create_future()
    reached = asyncio.Event()

    async def on_placed(agent: Agent) -> None:
        placed.set_result(agent)
        await reached.wait()

    async with asyncio.TaskGroup() as group:
        making = group.create_task(create(api, on_placed=on_placed))
        await cluster.on_create.wait()
        await cluster.put("pods", "krelay-server-x-p1", status={})
        await cluster.put("pods", "krelay-server-x-p1", spec={"nodeName": "n"}, status={})
        agent = await placed
        assert not making.done()
        if proven:
            reached.set()
        else:
            await cluster.put("pods", "krelay-server-x-p1", status=RUNNING)
        assert await making == agent
    assert cluster.deleted == []


async def test_a_failed_start_deletes_the_job_and_raises_the_reason(
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


FORBIDDEN = (
    'jobs.batch is forbidden: User "u" cannot create resource "jobs" in API group "batch" in the '
    'namespace "%s"'
)
ENDING = (
    'jobs.batch "x" is forbidden: unable to create new content in namespace %s because it is being '
    "terminated"
)


@pytest.mark.parametrize(
    ("code", "message", "words"),
    [
        (403, FORBIDDEN, 'cannot create jobs.batch in namespace "tools"'),
        (404, 'namespaces "%s" not found', 'namespaces "tools" not found'),
        (403, ENDING, "because it is being terminated"),
    ],
    ids=["forbidden", "missing", "ending"],
)
async def test_an_agent_goes_to_the_first_namespace_that_allows_it(
    code: int, message: str, words: str, cluster: Cluster, api: Api, caplog: Any
) -> None:
    cluster.refusals = {"tools": (code, message % "tools"), "a": (403, FORBIDDEN % "a")}
    await cluster.put("pods", "krelay-server-x-p1", status=RUNNING)
    found = await create(api, fallbacks=["a", "b", "c"])
    assert found.namespace == "b"
    assert cluster.tried == ["tools", "a", "b"]
    (line,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert line.startswith('the agent runs in the namespace "b": ')
    assert words in line


async def test_an_agent_that_no_namespace_allows_names_each_answer(
    cluster: Cluster, api: Api
) -> None:
    cluster.refusals = {place: (403, FORBIDDEN % place) for place in ("tools", "a")}
    cluster.refusals["b"] = (404, 'namespaces "b" not found')
    with pytest.raises(AccessDeniedError) as caught:
        await create(api, fallbacks=["a", "b"])
    assert str(caught.value) == (
        'cannot create jobs.batch in namespace "tools"; '
        'cannot create jobs.batch in namespace "a"; namespaces "b" not found'
    )
    # The rights are best given where the targets are.
    assert (caught.value.user, caught.value.agent_namespace) == ("u", "a")
    cluster.refusals = {"tools": (403, FORBIDDEN % "tools"), "b": (404, "not found")}
    with pytest.raises(AccessDeniedError) as caught:
        await create(api, fallbacks=["b"])
    assert caught.value.agent_namespace == "tools"
    cluster.refusals = dict.fromkeys(("tools", "b"), (404, "not found"))
    with pytest.raises(NotFoundError) as gone:
        await create(api, fallbacks=["b"])
    assert "--agent-namespace" in str(gone.value.hint)


async def test_a_patch_of_the_namespace_is_tried_once(cluster: Cluster, api: Api) -> None:
    cluster.refusals = {"moved": (403, FORBIDDEN % "moved")}
    moved = AgentConfig(patches=(Patch({"metadata": {"namespace": "moved"}}),))
    with pytest.raises(AccessDeniedError):
        await create(api, moved, fallbacks=["a", "b"])
    assert cluster.tried == ["moved"]


async def test_a_job_that_a_policy_refuses_is_tried_once_and_has_a_hint(
    cluster: Cluster, api: Api
) -> None:
    """A policy may use RBAC's words; another namespace is no answer to it."""
    denied = (
        "jobs.batch \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied "
        "request: you cannot create it, label team is required"
    )
    cluster.refusals = {"tools": (403, denied)}
    with pytest.raises(AgentError, match="ValidatingAdmissionPolicy 'p'") as caught:
        await create(api, fallbacks=["a"])
    assert cluster.tried == ["tools"]
    assert caught.value.settings == {"labels": {"team": "VALUE"}}


async def test_the_last_log_lines_of_an_agent_that_ends_are_logged(
    cluster: Cluster, api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    ended = {"exitCode": 1, "reason": "Error", "message": "Traceback\n  line\nOh: no"}
    state = {"name": "krelay-server", "state": {"terminated": ended}}
    await cluster.put("pods", "krelay-server-x-p1", status={"containerStatuses": [state]})
    with pytest.raises(AgentError, match="the agent ended with exit code 1: Oh: no"):
        await create(api)
    assert "the agent's last log lines:\nTraceback\n  line\nOh: no" in caplog.text


async def test_a_problem_that_may_pass_fails_after_its_patience(
    cluster: Cluster, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state lasts while its message changes, and then counts as failed."""
    monkeypatch.setattr(diagnosis, "PATIENCE", 0.05)
    refused = {"reason": "FailedCreate", "message": "Error creating: exceeded quota: q"}
    progress: list[str] = []
    await cluster.put("events", "e1", **refused)
    with pytest.raises(AgentError, match="refuses the agent's pod: exceeded quota: q"):
        await create(api, on_progress=progress.append)
    assert progress[-1] == "the cluster refuses the agent's pod: exceeded quota: q"
    assert [name for name, _ in cluster.deleted] == ["krelay-server-x"]


async def test_a_problem_that_passes_in_time_is_no_failure(cluster: Cluster, api: Api) -> None:
    no_node = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    progress = asyncio.Event()
    await cluster.put("pods", "krelay-server-x-p1", status={"conditions": [no_node]})
    async with asyncio.TaskGroup() as group:
        making = group.create_task(create(api, on_progress=lambda _: progress.set()))
        await progress.wait()
        await cluster.put("pods", "krelay-server-x-p1", status=RUNNING)
    assert making.result().pod == "krelay-server-x-p1"


async def test_a_pod_waits_for_a_node_as_long_as_the_file_says(cluster: Cluster, api: Api) -> None:
    no_node = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    progress: list[str] = []
    delays: list[str] = []
    conditions = [{**no_node, "message": "0/1 nodes fit"}]
    await cluster.put("pods", "krelay-server-x-p1", status={"conditions": conditions})
    with pytest.raises(AgentError, match="no node takes the agent's pod: 0/1 nodes fit") as caught:
        await create(
            *(api, AgentConfig(start_timeout=0.2)),
            on_progress=progress.append,
            on_delay=delays.append,
        )
    assert "agent.startTimeout" in str(caught.value.hint)
    assert delays == ["waiting 0.2 s for a node: 0/1 nodes fit"]
    assert not any("node" in step for step in progress)
    assert [name for name, _ in cluster.deleted] == ["krelay-server-x"]


async def test_the_pod_s_own_events_are_seen(cluster: Cluster, api: Api) -> None:
    progress: asyncio.Queue[str] = asyncio.Queue()
    await cluster.put("pods", "krelay-server-x-p1", spec={"nodeName": "n"}, status={})
    mount = {"type": "Warning", "reason": "FailedMount", "message": "slow disk"}
    await cluster.put("events", "e1", involvedObject={"uid": "p1"}, **mount)
    async with asyncio.TaskGroup() as group:
        making = group.create_task(create(api, on_progress=progress.put_nowait))
        while "FailedMount: slow disk" not in await progress.get():
            pass
        await cluster.put("pods", "krelay-server-x-p1", status=RUNNING)
    assert making.result().uid == "p1"
    assert "involvedObject.uid=p1" in cluster.selectors


async def test_a_missed_deadline_is_reported_with_the_last_reason(
    cluster: Cluster, api: Api
) -> None:
    with pytest.raises(AgentError, match="does not run after 0.05 s: waiting for the Job's pod"):
        await create(api, deadline=0.05)
    assert len(cluster.deleted) == 1


async def test_a_job_that_is_deleted_fails_the_start(cluster: Cluster, api: Api) -> None:
    progress = asyncio.Event()
    async with asyncio.TaskGroup() as group:

        async def meddle() -> None:
            await progress.wait()
            await cluster.remove("jobs", "krelay-server-x")

        group.create_task(meddle())
        with pytest.raises(AgentError, match="the agent's Job was deleted"):
            await create(api, on_progress=lambda _: progress.set())


async def test_a_start_needs_no_rights_on_jobs_lists_and_events(cluster: Cluster, api: Api) -> None:
    cluster.denied = {"jobs", "events"}
    progress = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        making = group.create_task(create(api, on_progress=lambda _: progress.set()))
        await progress.wait()
        await cluster.put("pods", "krelay-server-x-p1", status=RUNNING)
    assert making.result().pod == "krelay-server-x-p1"


async def test_a_missing_pod_without_the_right_to_events_fails_with_a_hint(
    cluster: Cluster, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis, "PATIENCE_BLIND", 0.05)
    cluster.denied = {"jobs", "events"}
    with pytest.raises(AgentError, match="krelay may not read the events") as caught:
        await create(api)
    assert "`watch` on events" in str(caught.value.hint)


async def test_a_start_without_the_right_to_watch_pods_is_denied(
    cluster: Cluster, api: Api
) -> None:
    cluster.denied = {"pods"}
    with pytest.raises(AccessDeniedError, match='cannot list pods in namespace "tools"'):
        await create(api)
    assert [name for name, _ in cluster.deleted] == ["krelay-server-x"]


async def test_a_start_cancelled_while_it_waits_leaves_no_job(cluster: Cluster, api: Api) -> None:
    progress = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        making = group.create_task(create(api, on_progress=lambda _: progress.set()))
        await progress.wait()
        making.cancel()
    assert making.cancelled()
    assert [name for name, _ in cluster.deleted] == ["krelay-server-x"]


async def test_a_start_cancelled_during_the_creation_leaves_no_job(
    cluster: Cluster, api: Api
) -> None:
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


async def test_a_cancelled_start_does_not_wait_for_a_silent_server(
    cluster: Cluster, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CREATE_PATIENCE", 0.01)
    cluster.may_create.clear()
    async with asyncio.TaskGroup() as group:
        making = group.create_task(create(api))
        await cluster.on_create.wait()
        making.cancel()
    assert making.cancelled()
    cluster.may_create.set()


async def test_a_cancelled_start_does_not_wait_for_a_hanging_plugin(
    kube: Any, tmp_path: Path, program: Any
) -> None:
    begun = tmp_path / "begun"
    os.mkfifo(begun)
    command = program("login", f"echo > {begun}; exec sleep 600")
    version = "client.authentication.k8s.io/v1beta1"
    user = {"exec": {"command": str(command), "apiVersion": version}}
    path = kube.kubeconfig(user)
    async with await Api.connect(kubeconfig=path) as api, asyncio.TaskGroup() as group:
        making = group.create_task(create(api))
        await asyncio.to_thread(begun.read_bytes)
        making.cancel()
    assert making.cancelled()
    assert not kube.seen


async def test_a_timeout_of_the_caller_stays_a_timeout(cluster: Cluster, api: Api) -> None:
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


async def test_a_patch_that_removes_a_useful_field_is_logged(
    cluster: Cluster, api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    await cluster.put("pods", "krelay-server-x-p1", status=RUNNING)
    image = {"name": "krelay-server", "image": None}
    with caplog.at_level(logging.WARNING):
        await create(api, AgentConfig(patches=(Patch({"spec": {"containers": [image]}}),)))
    assert "agent.patches[0] drops the container's image of the agent's pod" in caplog.text


async def test_agent_gone_returns_how_the_pod_ends(cluster: Cluster, api: Api) -> None:
    name, own = AGENT.pod, {"uid": "p1"}
    await cluster.put("pods", name, metadata=own, status=RUNNING)
    async with asyncio.TaskGroup() as group:
        gone = group.create_task(agent_gone(api, AGENT))
        await cluster.put("pods", name, metadata=own, status=RUNNING | {"phase": "Running"})
        evicted = {"phase": "Failed", "reason": "Evicted", "message": "low on memory"}
        await cluster.put("pods", name, metadata=own, status=evicted)
    assert gone.result() == f"the agent's pod {name} ended: Evicted: low on memory"
    assert f"metadata.name={name}" in cluster.selectors


async def test_agent_gone_returns_for_a_missing_or_replaced_pod(cluster: Cluster, api: Api) -> None:
    assert await agent_gone(api, AGENT) == "the agent's pod krelay-server-x-y is gone"
    await cluster.put("pods", AGENT.pod, metadata={"uid": "p2"}, status=RUNNING)
    assert await agent_gone(api, AGENT) == "the agent's pod krelay-server-x-y is gone"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((404, {"message": "gone"}), "the agent's pod krelay-server-x-y is gone"),
        ((200, {"uid": "p2"}), "another pod has replaced the agent's pod krelay-server-x-y"),
        (
            (200, {"uid": "p1", "deletionTimestamp": "2026-01-01T00:00:00Z"}),
            "the agent's pod krelay-server-x-y is being deleted",
        ),
        ((200, {"uid": "p1"}), None),
    ],
)
async def test_agent_ended_judges_the_pod_by_one_request(
    plain_kube: Any, api: Api, answer: tuple[int, Any], reason: str | None
) -> None:
    status, body = answer
    metadata = {"metadata": {"name": AGENT.pod, **body}} if status == 200 else body
    plain_kube.script((status, metadata))
    assert await agent_ended(api, AGENT) == reason


async def test_a_remote_server_without_tls_gets_no_job(
    plain_kube: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy on loopback does not make the server local."""
    proxy = f"http://127.0.0.1:{plain_kube.port}"
    for cluster in ({"server": "http://kube.test:1", "proxy-url": proxy}, {"proxy-url": proxy}):
        path = plain_kube.kubeconfig(**{"certificate-authority": None, **cluster})
        async with await Api.connect(kubeconfig=path) as api:
            with pytest.raises(CredentialsError, match="is not encrypted") as caught:
                await create(api)
            assert "kubectl proxy" in str(caught.value.hint)
    assert not plain_kube.seen


async def test_a_created_job_without_a_name_is_a_malformed_error(plain_kube: Any, api: Api) -> None:
    plain_kube.script((201, {"metadata": {"namespace": "tools", "uid": 5}}))
    with pytest.raises(MalformedError, match="metadata.uid: expected a text, got a number"):
        await create(api)


MANIFEST = {"metadata": {"generateName": "krelay-server-", "namespace": "tools"}, "spec": {}}
NAMED = {"metadata": {"name": "mine", "namespace": "tools"}, "spec": {}}


class Server:
    """Keeps Jobs. `before` runs before a Job is stored, `after` before the answer."""

    def __init__(self) -> None:
        self.jobs: set[str] = set()
        self.deletes: list[tuple[str, Any]] = []
        self.posted = asyncio.Event()
        self.before: Callable[[web.Request], Awaitable[None]] = self.nothing
        self.after: Callable[[web.Request], Awaitable[None]] = self.nothing
        self.delete_status = 200
        self.uid: object = "u"

    async def nothing(self, request: web.Request) -> None:
        """Do nothing: neither delay nor fail."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.method == "POST":
            body = await request.json()
            self.posted.set()
            await self.before(request)
            self.jobs.add(body["metadata"]["name"])
            await self.after(request)
            body["metadata"]["uid"] = self.uid
            return web.json_response(body, status=201)
        name = request.path.rpartition("/")[2]
        self.deletes.append((name, await request.json()))
        if self.delete_status != 200:
            return web.json_response({"message": "no"}, status=self.delete_status)
        if name not in self.jobs:
            return web.json_response({"message": "not found"}, status=404)
        self.jobs.remove(name)
        return web.json_response({})


async def fail(request: web.Request) -> None:
    raise web.HTTPInternalServerError(text="a webhook failed")


async def refuse(request: web.Request) -> None:
    raise web.HTTPForbidden(text="")


async def hang_up(request: web.Request) -> None:
    assert request.transport is not None
    request.transport.abort()


@pytest.fixture
def server(plain_kube: Any) -> Server:
    server = Server()
    plain_kube.handler = server.answer
    return server


@pytest.fixture
async def jobs(plain_kube: Any, server: Server) -> AsyncIterator[PostedJobs]:
    path = plain_kube.kubeconfig(**{"certificate-authority": None})
    async with await Api.connect(kubeconfig=path) as api:
        yield PostedJobs(api)


async def test_a_job_gets_its_name_here_and_is_left_until_it_is_deleted(
    server: Server, jobs: PostedJobs
) -> None:
    job = await jobs.create(MANIFEST)
    name = job["metadata"]["name"]
    assert name.startswith("krelay-server-")
    assert server.jobs == {name}
    assert jobs.left == (f"tools/{name}",)
    await jobs.delete("tools", name)
    assert not server.jobs
    assert not jobs.left
    assert server.deletes[0][1]["propagationPolicy"] == "Background"
    assert "name" not in MANIFEST["metadata"]


async def test_a_long_generated_name_fits_into_a_label(server: Server, jobs: PostedJobs) -> None:
    metadata = {"generateName": "x" * 60 + "-", "namespace": "tools"}
    job = await jobs.create({"metadata": metadata})
    assert len(job["metadata"]["name"]) == 63


@pytest.mark.parametrize("trouble", [fail, hang_up])
async def test_a_job_whose_creation_failed_after_it_was_stored_is_deleted(
    server: Server, jobs: PostedJobs, trouble: Any
) -> None:
    server.after = trouble
    with pytest.raises(ClusterError):
        await jobs.create(MANIFEST)
    assert len(server.deletes) == 1
    assert not server.jobs
    assert not jobs.left


async def test_a_job_whose_answer_is_malformed_is_deleted(server: Server, jobs: PostedJobs) -> None:
    server.uid = [5]
    with pytest.raises(MalformedError, match="uid"):
        await jobs.create(MANIFEST)
    assert not server.jobs
    assert not jobs.left


async def test_a_job_that_was_refused_is_not_left(server: Server, jobs: PostedJobs) -> None:
    server.before = refuse
    with pytest.raises(AccessDeniedError):
        await jobs.create(MANIFEST)
    assert not server.deletes
    assert not jobs.left


async def test_a_job_that_was_never_sent_is_not_left(server: Server, plain_kube: Any) -> None:
    path = plain_kube.kubeconfig(**{"certificate-authority": None, "server": "http://127.0.0.1:1"})
    async with await Api.connect(kubeconfig=path) as api:
        jobs = PostedJobs(api)
        with pytest.raises(UnreachableError):
            await jobs.create(MANIFEST)
        assert not jobs.left


async def test_a_creation_without_an_answer_is_named_at_the_end(
    server: Server, jobs: PostedJobs, caplog: pytest.LogCaptureFixture
) -> None:
    server.before = hang_up
    server.delete_status = 404  # it has not come so far
    with pytest.raises(ClusterError):
        await jobs.create(MANIFEST)
    (left,) = jobs.left
    await jobs.clear()
    assert f"the Job {left} may be left behind (its creation had no answer)" in caplog.text


async def test_a_name_of_a_patch_is_not_deleted_before_the_server_confirms_it(
    server: Server, jobs: PostedJobs, caplog: pytest.LogCaptureFixture
) -> None:
    server.jobs.add("mine")  # another program's
    server.before = hang_up
    with pytest.raises(ClusterError):
        await jobs.create(NAMED)
    await jobs.clear()
    assert not server.deletes
    assert "the Job tools/mine may be left behind" in caplog.text


async def test_a_cancelled_creation_is_deleted_once_it_is_confirmed(
    server: Server, jobs: PostedJobs
) -> None:
    stored = asyncio.Event()
    server.before = lambda request: stored.wait()  # type: ignore[assignment,return-value]
    async with asyncio.TaskGroup() as tasks:
        making = tasks.create_task(jobs.create(MANIFEST))
        await server.posted.wait()
        making.cancel()
        await asyncio.sleep(0)
        making.cancel()
        stored.set()
    assert making.cancelled()
    assert not server.jobs
    assert not jobs.left


async def test_a_cancelled_creation_that_is_never_confirmed_stays_left(
    server: Server, jobs: PostedJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CREATE_PATIENCE", 0.01)
    stored = asyncio.Event()
    server.before = lambda request: stored.wait()  # type: ignore[assignment,return-value]
    async with asyncio.TaskGroup() as tasks:
        making = tasks.create_task(jobs.create(MANIFEST))
        await server.posted.wait()
        making.cancel()
    assert making.cancelled()
    assert len(jobs.left) == 1
    stored.set()


async def test_a_missing_job_is_deleted_without_an_error(server: Server, jobs: PostedJobs) -> None:
    await jobs.delete("tools", "krelay-server-x")
    assert not jobs.left


async def test_clear_repeats_a_refused_deletion(server: Server, jobs: PostedJobs) -> None:
    job = await jobs.create(MANIFEST)
    server.delete_status = 409
    with pytest.raises(ClusterError, match="refused"):
        await jobs.delete("tools", job["metadata"]["name"])
    assert jobs.left
    server.delete_status = 200
    await jobs.clear()
    assert not server.jobs


async def test_clear_names_what_it_cannot_delete(
    server: Server, jobs: PostedJobs, caplog: pytest.LogCaptureFixture
) -> None:
    job = await jobs.create(MANIFEST)
    server.delete_status = 409
    await jobs.clear()
    (record,) = [found for found in caplog.records if found.levelno == logging.WARNING]
    assert f"tools/{job['metadata']['name']} may be left behind" in record.getMessage()
    assert not jobs.left


async def test_a_deletion_without_an_answer_ends_at_its_deadline(
    plain_kube: Any, jobs: PostedJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = asyncio.Event()

    async def silent(request: web.Request) -> web.StreamResponse:
        await never.wait()
        raise AssertionError

    plain_kube.handler = silent
    monkeypatch.setattr(module, "DELETE_DEADLINE", 0.05)
    with pytest.raises(UnreachableError, match="no answer to the deletion of"):
        await jobs.delete("tools", "krelay-server-x")
    never.set()


async def test_an_interrupted_clear_names_what_is_left(
    plain_kube: Any, server: Server, jobs: PostedJobs, caplog: pytest.LogCaptureFixture
) -> None:
    job = await jobs.create(MANIFEST)
    asked, never = asyncio.Event(), asyncio.Event()

    async def silent(request: web.Request) -> web.StreamResponse:
        asked.set()
        await never.wait()
        raise AssertionError

    plain_kube.handler = silent
    async with asyncio.TaskGroup() as tasks:
        clearing = tasks.create_task(jobs.clear())
        await asked.wait()
        clearing.cancel()
    assert clearing.cancelled()
    assert f"{job['metadata']['name']} may be left behind (interrupted)" in caplog.text
    never.set()
