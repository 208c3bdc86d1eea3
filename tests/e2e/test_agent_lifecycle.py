"""The agent's pod on the real cluster: it starts, or krelay reports why not; it ends."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from krelay.cluster.agent_lifecycle import Agent, PostedJobs, agent_gone, create_agent
from krelay.cluster.api import Api, collection, object_path
from krelay.cluster.auth.kubeconfig import Overrides
from krelay.errors import AccessDeniedError, AgentError, ClusterError, NotFoundError
from krelay.model import AgentConfig, Patch
from tests.e2e import kit

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(90)]

KEY = "ab" * 32
ROOT = Path(__file__).parents[2]
Namespace = Callable[..., Awaitable[str]]


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with await Api.connect(kubeconfig=os.environ["KUBECONFIG"]) as api:
        yield api


@pytest.fixture
async def namespace(api: Api) -> AsyncIterator[Namespace]:
    """Makes namespaces with these labels, and deletes them afterwards."""
    made: list[str] = []

    async def make(**labels: str) -> str:
        name = f"agent-e2e-{secrets.token_hex(4)}"
        body = {"metadata": {"name": name, "labels": labels}}
        await api.create(collection("v1", "namespaces"), body)
        made.append(name)
        accounts = collection("v1", "serviceaccounts", name)
        await until(api, accounts, lambda found: bool(found), name="default")
        return name

    yield make
    for name in made:
        await api.delete(object_path("v1", "namespaces", None, name))


async def until(
    api: Api, path: str, there: Callable[[Mapping[str, Any]], bool], name: str = ""
) -> None:
    """Wait until what a collection holds is as wanted."""
    query = {"fieldSelector": f"metadata.name={name}"} if name else {}
    async with asyncio.timeout(30):
        while True:
            items = (await api.get(path, **query))["items"]
            if there({item["metadata"]["uid"]: item for item in items}):
                return
            await asyncio.sleep(0.2)


async def nothing_left(api: Api, namespace: str) -> None:
    """No Job now, and soon no pod."""
    jobs = await api.get(collection("batch/v1", "jobs", namespace))
    assert jobs["items"] == []
    await until(api, collection("v1", "pods", namespace), lambda found: not found)


async def start(api: Api, namespace: str, config: AgentConfig | None = None, **more: Any) -> Agent:
    return await create_agent(
        PostedJobs(api), config or AgentConfig(), namespace=namespace, key_sha256=KEY, **more
    )


async def delete_agent(api: Api, agent: Agent) -> None:
    await PostedJobs(api).delete(agent.namespace, agent.job)


async def logged(api: Api, agent: Agent, words: bytes) -> bytes:
    """The agent's log up to the line with `words`."""
    path = object_path("v1", "pods", agent.namespace, agent.pod, "log")
    seen = b""
    async with asyncio.timeout(20), api.stream(path, silence=20, follow="true") as batches:
        async for lines in batches:
            seen += b"\n".join(lines)
            if words in seen:
                break
    return seen


async def refused(api: Api, namespace: str, config: AgentConfig | None = None) -> AgentError:
    """Return the error of an agent that cannot start; it comes soon and leaves nothing."""
    with pytest.raises(AgentError) as caught:
        async with asyncio.timeout(20):
            await start(api, namespace, config)
    assert caught.value.exit_code == 4
    await nothing_left(api, namespace)
    return caught.value


async def test_it_starts_listens_and_goes(api: Api, namespace: Namespace) -> None:
    told: list[str] = []
    place = await namespace()
    agent = await start(api, place, on_progress=told.append)
    assert told
    assert agent.namespace == place
    assert agent.pod.startswith(f"{agent.job}-")
    await logged(api, agent, b"listening on 127.0.0.1 port 9527")
    async with asyncio.TaskGroup() as group:
        gone = group.create_task(agent_gone(api, agent))
        await delete_agent(api, agent)
    assert agent.pod in gone.result()
    await nothing_left(api, place)
    await delete_agent(api, agent)


async def test_pod_security_restricted(api: Api, namespace: Namespace) -> None:
    place = await namespace(**{"pod-security.kubernetes.io/enforce": "restricted"})
    agent = await start(api, place)
    await logged(api, agent, b"listening on 127.0.0.1 port 9527")
    pod = await api.get(object_path("v1", "pods", place, agent.pod))
    (container,) = pod["spec"]["containers"]
    assert pod["metadata"]["labels"]["app"] == "krelay-server"
    assert "volumes" not in pod["spec"]
    assert "volumeMounts" not in container
    await delete_agent(api, agent)
    await nothing_left(api, place)


async def test_pod_security_that_a_patch_breaks(api: Api, namespace: Namespace) -> None:
    place = await namespace(**{"pod-security.kubernetes.io/enforce": "restricted"})
    root = Patch({"spec": {"securityContext": {"runAsNonRoot": None}}})
    error = await refused(api, place, AgentConfig(patches=(root,)))
    assert 'violates PodSecurity "restricted' in error.message
    assert "runAsNonRoot" in error.message
    assert "agent.patches" in str(error.hint)


async def quota(api: Api, namespace: str, **hard: str) -> None:
    """Make a ResourceQuota, and wait until it is in force."""
    path = collection("v1", "resourcequotas", namespace)
    names = {name.replace("_", "."): amount for name, amount in hard.items()}
    await api.create(path, {"metadata": {"name": "small"}, "spec": {"hard": names}})
    await until(
        api, path, lambda found: any("hard" in quota.get("status", {}) for quota in found.values())
    )


async def test_a_quota_with_room(api: Api, namespace: Namespace) -> None:
    place = await namespace()
    room = {"requests_cpu": "1", "requests_memory": "1Gi"}
    await quota(api, place, limits_cpu="2", limits_memory="1Gi", **room)
    await delete_agent(api, await start(api, place))
    await nothing_left(api, place)


async def test_a_quota_without_room(api: Api, namespace: Namespace) -> None:
    place = await namespace()
    await quota(api, place, limits_memory="1Mi")
    error = await refused(api, place)
    assert "exceeded quota: small, requested: limits.memory=256Mi" in error.message
    assert "has no room" in str(error.hint)


async def test_a_quota_on_jobs_refuses_the_job_itself(api: Api, namespace: Namespace) -> None:
    place = await namespace()
    path = collection("v1", "resourcequotas", place)
    hard = {"count/jobs.batch": "0"}
    await api.create(path, {"metadata": {"name": "none"}, "spec": {"hard": hard}})
    await until(api, path, lambda found: any("hard" in q.get("status", {}) for q in found.values()))
    with pytest.raises(ClusterError, match="exceeded quota: none") as caught:
        await start(api, place)
    assert caught.value.exit_code == 4


async def test_an_image_that_does_not_exist(api: Api, namespace: Namespace) -> None:
    error = await refused(api, await namespace(), AgentConfig(image="nowhere.test/python:9"))
    assert error.message.startswith("cannot pull the image nowhere.test/python:9: ")
    assert "agent.image" in str(error.hint)


async def test_an_image_s_name_that_is_none(api: Api, namespace: Namespace) -> None:
    error = await refused(api, await namespace(), AgentConfig(image="Not/An:Image"))
    assert "cannot pull the image Not/An:Image" in error.message


async def test_an_image_without_python(api: Api, namespace: Namespace) -> None:
    command = {"name": "krelay-server", "command": ["python3.0"]}
    patches = (Patch({"spec": {"containers": [command]}}),)
    error = await refused(api, await namespace(), AgentConfig(patches=patches))
    assert '"python3.0": executable file not found' in error.message
    assert "Python 3.11" in str(error.hint)


async def test_no_node_fits(api: Api, namespace: Namespace) -> None:
    config = AgentConfig(node_selector={"no": "where"}, start_timeout=1)
    error = await refused(api, await namespace(), config)
    assert "no node takes the agent's pod: 0/1 nodes are available" in error.message
    assert "agent.nodeSelector" in str(error.hint)


async def test_a_program_that_ends_at_once(
    api: Api, namespace: Namespace, caplog: pytest.LogCaptureFixture
) -> None:
    """The container may run for a moment before: then its end is what `agent_gone` tells."""
    command = ["python3", "-c", "raise ValueError('the very reason')"]
    broken = Patch({"spec": {"containers": [{"name": "krelay-server", "command": command}]}})
    place = await namespace()
    try:
        reason = await agent_gone(api, await start(api, place, AgentConfig(patches=(broken,))))
    except AgentError as exc:
        reason = exc.message
        assert "Traceback" in caplog.text
    assert reason == "the agent ended with exit code 1: ValueError: the very reason"


async def test_patches_of_args_and_env_leave_the_source_alone(
    api: Api, namespace: Namespace
) -> None:
    server = {
        "name": "krelay-server",
        "args": ["--port=9600", "--idle-timeout=5m"],
        "env": [{"name": "PLAIN", "value": "$(HOME) $$ x"}],
    }
    moved, place = await namespace(), await namespace()
    patches = (
        Patch({"spec": {"containers": [server]}}),
        Patch({"metadata": {"namespace": moved, "generateName": "foo-"}}, "merge"),
    )
    agent = await start(api, place, AgentConfig(patches=patches))
    assert agent.namespace == moved
    assert agent.job.startswith("foo-")
    await logged(api, agent, b"listening on 127.0.0.1 port 9600")
    await delete_agent(api, agent)
    await nothing_left(api, moved)


async def test_idle_it_ends_and_leaves_nothing(api: Api, namespace: Namespace) -> None:
    """What happens after a client that was killed: the Job's time to live removes the rest."""
    place = await namespace()
    config = AgentConfig(
        idle_timeout=1.0,
        patches=(Patch({"spec": {"ttlSecondsAfterFinished": 1}}, target="job"),),
    )
    agent = await start(api, place, config)
    assert "exit code 0" in await agent_gone(api, agent)
    jobs = collection("batch/v1", "jobs", place)
    await until(api, jobs, lambda found: not found)
    await nothing_left(api, place)


async def test_cancelled_it_leaves_nothing(api: Api, namespace: Namespace) -> None:
    place = await namespace()
    told = asyncio.Event()
    config = AgentConfig(node_selector={"no": "where"})
    async with asyncio.TaskGroup() as group:
        starting = group.create_task(start(api, place, config, on_progress=lambda _: told.set()))
        await told.wait()
        starting.cancel()
    assert starting.cancelled()
    await nothing_left(api, place)


async def test_a_namespace_that_does_not_exist(api: Api) -> None:
    with pytest.raises(NotFoundError, match='"agent-e2e-nowhere" not found'):
        await start(api, "agent-e2e-nowhere")


async def roles(api: Api, namespace: str, **wanted: list[dict[str, Any]]) -> str:
    """Give these Roles' rules to an account of the namespace; its user name."""
    for name, rules in wanted.items():
        await api.create(
            collection("rbac.authorization.k8s.io/v1", "roles", namespace),
            {"metadata": {"name": name}, "rules": rules},
        )
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
        subject = {"kind": "ServiceAccount", "name": "default", "namespace": namespace}
        await api.create(
            collection("rbac.authorization.k8s.io/v1", "rolebindings", namespace),
            {"metadata": {"name": name}, "roleRef": role, "subjects": [subject]},
        )
    user = kit.service_account(namespace, "default")
    await asyncio.to_thread(kit.wait_granted, user)
    return user


async def as_user(user: str) -> Api:
    return await Api.connect(kubeconfig=os.environ["KUBECONFIG"], overrides=Overrides(as_=user))


def example_rules(role: str) -> list[dict[str, Any]]:
    """The rules of one Role of examples/rbac.yaml."""
    documents = yaml.safe_load_all((ROOT / "examples" / "rbac.yaml").read_text("utf-8"))
    (found,) = (d for d in documents if d["kind"] == "Role" and d["metadata"]["name"] == role)
    return list(found["rules"])


async def test_the_example_s_role_is_enough(api: Api, namespace: Namespace) -> None:
    place = await namespace()
    user = await roles(api, place, agent=example_rules("krelay-agent"))
    async with await as_user(user) as limited:
        agent = await start(limited, place)
        await delete_agent(limited, agent)
        await nothing_left(api, place)
        with pytest.raises(AgentError, match="no node takes the agent's pod"):
            await start(
                *(limited, place), AgentConfig(node_selector={"no": "where"}, start_timeout=1)
            )
    await nothing_left(api, place)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([], "cannot create jobs.batch in namespace"),
        (
            [{"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create", "delete"]}],
            "cannot list pods in namespace",
        ),
    ],
)
async def test_missing_rights_are_named(
    api: Api, namespace: Namespace, rules: list[dict[str, Any]], words: str
) -> None:
    place = await namespace()
    user = await roles(api, place, some=rules)
    async with await as_user(user) as limited:
        with pytest.raises(AccessDeniedError, match=re.escape(f'{words} "{place}"')) as caught:
            await start(limited, place)
    assert caught.value.exit_code == 4
    await nothing_left(api, place)


async def test_without_rights_on_events_it_still_starts(api: Api, namespace: Namespace) -> None:
    place = await namespace()
    rules = [
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create", "delete"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
    ]
    user = await roles(api, place, some=rules)
    async with await as_user(user) as limited:
        await delete_agent(limited, await start(limited, place))
    await nothing_left(api, place)
