"""Posted Jobs against an API server on loopback: each is deleted, or named at the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from krelay.cluster import jobs as module
from krelay.cluster.api import Api
from krelay.cluster.jobs import PostedJobs
from krelay.errors import AccessDeniedError, ClusterError, MalformedError, UnreachableError

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
        """Neither a delay nor an error."""

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


async def test_a_job_is_named_here_and_left_until_it_is_deleted(
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


async def test_a_job_that_never_was_sent_is_not_left(server: Server, plain_kube: Any) -> None:
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


async def test_deleting_a_job_that_is_gone_is_no_error(server: Server, jobs: PostedJobs) -> None:
    await jobs.delete("tools", "krelay-server-x")
    assert not jobs.left


async def test_a_deletion_that_is_refused_is_tried_again_by_clear(
    server: Server, jobs: PostedJobs
) -> None:
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


async def test_a_deletion_has_a_deadline(
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
