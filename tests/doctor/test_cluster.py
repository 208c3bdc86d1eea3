"""What the doctor says of a cluster, by the answers of its API server."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing, suppress
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest

from krelay.cluster.api import Api
from krelay.config import parse
from krelay.datapath.agent_link import Way
from krelay.doctor import Finding, Status, carriers, examine, server, targets
from krelay.doctor.admission import full_name
from krelay.doctor.cluster import Cluster
from krelay.errors import AccessDeniedError, TunnelError
from krelay.model import Endpoint, Kind, Origin, Port, Protocol, Resolution, Target
from tests import rig
from tests.doctor.conftest import FILE, World

POD_SECURITY = (
    'pods "krelay-server-x" is forbidden: violates PodSecurity "restricted:latest": '
    "runAsNonRoot != true"
)
QUOTA = (
    'pods "krelay-server-x" is forbidden: exceeded quota: q, requested: pods=1, used: pods=0,'
    " limited: pods=0"
)
NO_PODS = (
    'pods is forbidden: User "jane" cannot create resource "pods" in API group ""'
    ' in the namespace "team"'
)
NO_REVIEW = (
    'x is forbidden: User "system:anonymous" cannot create resource "x" in API group "y"'
    " at the cluster scope"
)


async def test_all_is_well_in_a_healthy_cluster(world: World) -> None:
    found = await world.examine()
    bad = (Status.FAILED, Status.WARNING)
    assert [one for findings in found.values() for one in findings if one.status in bad] == []
    texts = {check: findings[0].text for check, findings in found.items()}
    assert texts["kubeconfig"].endswith(f"{world.kube.url}, namespace team, by a token")
    assert texts["http-proxy"] == "none"
    assert texts["version"] == "Kubernetes v1.34.1"
    assert texts["user"] == "jane"
    assert texts["rights"].startswith("all 10 that the file needs")
    assert texts["admission"] == 'namespace "team" takes the agent\'s Job and its pod'
    assert texts["image"] == "python:3.11-slim is on 1 of 1 nodes"
    assert texts["targets"] == "web: svc/web -> 10.0.0.9:80 (clusterIP), 1 ready"
    assert "agent" not in found
    assert "t0ken" not in str(found)


async def test_missing_rights_come_with_the_command_that_gives_them(world: World) -> None:
    world.denied = {"create jobs", "list services", "watch services", "get services"}
    (one,) = (await world.examine())["rights"]
    assert (one.status, one.exit_code) == (Status.FAILED, 4)
    assert one.text == ('missing: create jobs.batch in "team", list,watch services web in "team"')
    assert one.command is not None
    assert one.command.startswith("krelay rbac -f ")
    assert one.command.endswith(" -n team --user jane | kubectl apply -f -")


async def test_rights_that_krelay_can_do_without_are_a_warning(world: World) -> None:
    world.denied = {"watch services", "get pods/portforward", "list endpointslices"}
    (one,) = (await world.examine())["rights"]
    assert one.status is Status.WARNING
    assert one.text == (
        'without get pods/portforward in "team", watch services web in "team",'
        ' list endpointslices.discovery.k8s.io in "team"'
    )


async def test_missing_optional_rights_are_named_but_no_warning(world: World) -> None:
    world.denied = {"get pods/proxy"}
    (one,) = (await world.examine())["rights"]
    assert one.status is Status.OK
    assert one.text == ('all 10 that the file needs; without the optional get pods/proxy in "team"')


async def test_an_agent_that_is_not_needed_is_no_failure(world: World) -> None:
    world.denied = {"create jobs"}
    world.refusals["jobs"] = 403, 'User "jane" cannot create resource "jobs" in API group "batch"'
    text = "apiVersion: krelay/v1\ntargets: {web: svc/web :80}\n"
    found = await world.examine(text)
    assert found["rights"][0].status is Status.WARNING
    assert found["rights"][0].text.startswith("no agent: targets are reached directly")
    assert found["rights"][0].exit_code == 0
    assert found["admission"][0].status is Status.SKIPPED
    # The host needs an agent, and without port-forwards no pod is reached directly.
    assert (await world.examine())["rights"][0].status is Status.FAILED
    world.denied |= {"get pods/portforward", "create pods/portforward"}
    assert (await world.examine(text))["rights"][0].status is Status.FAILED


async def test_what_goes_directly_needs_no_agent(world: World) -> None:
    text = "apiVersion: krelay/v1\ntargets: {web: {target: svc/web, ports: [':80'], via: direct}}\n"
    found = await world.examine(text)
    assert "admission" not in found
    assert found["rights"][0].text.startswith("all 6 that the file needs")
    world.denied = {"get pods/portforward", "create pods/portforward"}
    (one,) = (await world.examine(text))["rights"]
    assert (one.status, one.exit_code) == (Status.FAILED, 4)
    assert one.text == 'missing: get,create pods/portforward in "team"'


async def test_an_agent_goes_to_the_namespace_where_it_may(world: World) -> None:
    world.denied = {"create jobs team", "delete jobs team"}
    (one,) = (await world.examine(FILE + "  other: -n shop svc/web :80\n"))["rights"]
    assert one.status is Status.OK
    assert one.text == (
        'the agent runs in the namespace "shop": create,delete jobs.batch in "team" missing'
    )


async def test_a_server_that_answers_no_questions_about_rights(world: World) -> None:
    world.kube.script((403, {"message": NO_REVIEW}))
    found = await world.examine()
    assert found["version"][0].text == "the server does not state its version (403)"
    assert found["user"][0].text.startswith("system:anonymous: ")
    assert found["rights"][0].status is Status.SKIPPED
    assert found["admission"][0].status is Status.FAILED


@pytest.mark.parametrize(
    ("message", "text", "hint"),
    [
        (POD_SECURITY, "violates PodSecurity", "as the last of agent.patches, this restores it"),
        (QUOTA, "exceeded quota: q", "the namespace's quota has no room for an agent"),
    ],
)
async def test_admission_judges_the_pod_and_says_what_mends_it(
    world: World, message: str, text: str, hint: str
) -> None:
    world.refusals["pods"] = 403, message
    (one,) = (await world.examine())["admission"]
    assert (one.status, one.exit_code) == (Status.FAILED, 4)
    assert one.text.startswith(f'namespace "team": the cluster refuses the agent\'s pod: {text}')
    assert one.hint is not None
    assert hint in one.hint


async def test_a_refused_agent_that_no_target_needs_is_a_warning(world: World) -> None:
    world.refusals["pods"] = 403, QUOTA
    text = "apiVersion: krelay/v1\ntargets: {web: svc/web :80}\n"
    found = await world.examine(text, quick=False)
    assert found["admission"][0].status is Status.WARNING
    assert found["admission"][0].text.endswith("reached directly, without UDP and resumption")
    assert found["agent"][0].text == "the cluster refuses it"
    assert found["tunnels"][0].status is Status.SKIPPED
    assert world.jobs == []


async def test_a_pod_that_may_not_be_tried_is_said_to_be_untried(world: World) -> None:
    world.refusals["pods"] = 403, NO_PODS
    (one,) = (await world.examine())["admission"]
    assert one.status is Status.OK
    assert one.text.endswith("its pod was not tried (no right to create pods)")


async def test_a_missing_namespace_has_failed(world: World) -> None:
    world.refusals["jobs"] = 404, 'namespaces "team" not found'
    (one,) = (await world.examine())["admission"]
    assert (one.status, one.text) == (Status.FAILED, 'namespaces "team" not found')


async def test_an_image_on_no_node_is_a_warning(world: World) -> None:
    world.images = ["nginx:alpine"]
    (one,) = (await world.examine())["image"]
    assert (one.status, one.text) == (
        Status.WARNING,
        "python:3.11-slim is on none of 1 nodes, as far as they say",
    )


async def test_nodes_may_be_hidden(world: World) -> None:
    world.denied = {"list nodes"}
    (one,) = (await world.examine())["image"]
    assert one.text == "python:3.11-slim (no right to see which nodes have it)"


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("python", "docker.io/library/python:latest"),
        ("me/tool:1", "docker.io/me/tool:1"),
        ("localhost:5000/x@sha256:abc", "localhost:5000/x@sha256:abc"),
        ("ghcr.io/a/b", "ghcr.io/a/b:latest"),
    ],
)
def test_full_names_of_images(name: str, full: str) -> None:
    assert full_name(name) == full


async def test_targets_that_are_missing_or_not_ready(world: World) -> None:
    world.add_service("slow", endpoints=0)
    found = (
        await world.examine(
            "apiVersion: krelay/v1\n"
            "targets: {a: svc/none :80, b: svc/slow :80, c: svc/web :81, d: ip/10.0.0.1 :80}\n"
        )
    )["targets"]
    assert [one.status.value for one in found] == ["failed", "warning", "failed", "ok"]
    assert found[0].text == 'a: services "none" not found in namespace "team"'
    assert found[1].text.startswith("b: ")
    assert found[3].text == "d: the agent dials ip/10.0.0.1; not tried"


async def test_a_target_that_may_not_be_listed(world: World) -> None:
    world.denied = {"list services"}
    (one, _) = (await world.examine())["targets"]
    assert (one.status, one.exit_code) == (Status.FAILED, 4)
    assert one.text.startswith("web: access denied")


async def test_refused_credentials_fail_and_the_rest_is_skipped(world: World) -> None:
    world.kube.script((401, {"message": "Unauthorized"}))
    found = await world.examine()
    (one,) = found["user"]
    assert (one.status, one.exit_code) == (Status.FAILED, 4)
    assert "rejects the credentials" in one.text
    assert found["server"][0].status is Status.OK
    assert {found[check][0].status for check in ("rights", "admission", "targets")} == {
        Status.SKIPPED
    }


async def test_an_anonymous_user_is_a_warning(world: World) -> None:
    world.user = "system:anonymous"
    (one,) = (await world.examine())["user"]
    assert one.status is Status.WARNING


async def test_old_servers_and_slow_clocks(world: World) -> None:
    world.version = {"gitVersion": "v1.21.3+k3s1"}
    world.user = None
    world.headers["Date"] = formatdate(0, usegmt=True)
    found = await world.examine()
    assert found["version"][0].status is Status.WARNING
    assert found["clock"][0].status is Status.WARNING
    assert "ahead of the server" in found["clock"][0].text
    assert found["user"][0].text == "known to the server, which cannot say by which name"


@pytest.mark.parametrize("body", [b"[" * 100_000, b"[]", b"<html>", b"{}"])
def test_what_is_no_version_is_no_error(body: bytes) -> None:
    found = server.version(server.Reached(status=200, body=body))
    assert found.text == "the server does not state its version (200)"


def test_an_absurd_version_is_cut() -> None:
    body = json.dumps({"gitVersion": f"v{'9' * 5_000}.1"}).encode()
    found = server.version(server.Reached(status=200, body=body))
    assert found.status is Status.OK
    assert len(found.text) < 120


async def test_a_server_without_a_time(world: World) -> None:
    world.headers["Date"] = "yesterday"
    world.version = 500
    found = await world.examine()
    assert found["clock"][0].text == "the server does not say the time"
    assert found["version"][0].text == "the server does not state its version (500)"


async def test_a_dead_server_fails_once(world: World) -> None:
    server = f"https://127.0.0.1:{rig.closed_port()}"
    world.kube.kubeconfig({"token": "t"}, server=server)
    found = await world.examine()
    (one,) = found["server"]
    assert (one.status, one.exit_code) == (Status.FAILED, 4)
    assert "connection refused" in one.text
    failures = [
        one for findings in found.values() for one in findings if one.status is Status.FAILED
    ]
    assert failures == [one]


async def test_an_untrusted_server_fails(world: World, pki: Path) -> None:
    world.kube.kubeconfig({"token": "t"}, **{"certificate-authority": str(pki / "other-ca.pem")})
    (one,) = (await world.examine())["server"]
    assert (one.status, one.exit_code) == (Status.FAILED, 4)
    assert "is not trusted" in one.text


async def test_a_server_is_reached_without_the_credentials_of_a_missing_plugin(
    world: World,
) -> None:
    plugin = {
        "command": "krelay-no-such-plugin",
        "apiVersion": "client.authentication.k8s.io/v1",
        "interactiveMode": "Never",
        "installHint": "get it from us",
    }
    world.kube.kubeconfig({"exec": plugin})
    found = await world.examine()
    assert found["expiry"][0].text.startswith("the credential plugin krelay-no-such-plugin is not")
    assert found["expiry"][0].hint == "get it from us"
    assert found["credentials"][0].status is Status.FAILED
    assert found["server"][0].status is Status.OK
    assert found["user"][0].status is Status.SKIPPED


async def test_a_server_without_tls_beyond_this_machine_gets_no_agent(world: World) -> None:
    world.kube.kubeconfig({}, server="http://10.255.0.1:1", **{"certificate-authority": None})
    (one,) = (await world.examine())["credentials"]
    assert (one.status, one.exit_code) == (Status.FAILED, 4)
    assert "is not encrypted" in one.text


async def test_several_contexts_are_named(world: World) -> None:
    far = '{target: svc/web, ports: [":80"], context: nowhere}'
    found = await world.examine(f"{FILE}  far: {far}\n")
    assert [one.context for one in found["file"]] == [None]
    assert [(one.context, one.status.value) for one in found["kubeconfig"]] == [
        (None, "ok"),
        ("nowhere", "failed"),
    ]
    assert found["rights"][1].status is Status.SKIPPED


async def test_without_a_file_an_agent_is_what_is_needed(world: World) -> None:
    kubeconfig = world.kube.kubeconfig({"token": "t"})
    found: dict[str, Finding] = {}
    async with aclosing(
        examine(None, quick=True, namespace="shop", kubeconfig=kubeconfig)
    ) as findings:
        async for one in findings:
            found[one.check] = one
    assert "targets" not in found
    assert "file" not in found
    assert found["rights"].text.startswith("all 6 that the file needs")
    assert found["admission"].text == 'namespace "shop" takes the agent\'s Job and its pod'


# -- with an agent ---------------------------------------------------------------------------------


async def test_an_agent_is_started_measured_and_removed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    async def measure(way: Way, key: bytes, source_port: int | None) -> carriers.Speed:
        seen.append([way.name, *world.jobs])
        if way.name == "proxy":
            raise TunnelError("pods/proxy: no route")
        return carriers.Speed(0.0123, 5e6 if way.name == "spdy" else None)

    monkeypatch.setattr(carriers, "measure", measure)
    found = await world.examine(quick=False)
    assert found["agent"][0].text.endswith("s, and is removed afterwards")
    assert found["spdy"][0].text == "works: round trip 12.3 ms, 5 MB/s"
    assert found["websocket"][0].text == "works: round trip 12.3 ms"
    assert found["proxy"][0].status is Status.WARNING
    assert found["tunnels"][0].text == "start by spdy"
    assert [name for name, _ in seen] == ["spdy", "websocket", "proxy"]
    assert world.jobs == []


async def test_an_agent_is_removed_when_the_examination_is_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring = asyncio.Event()

    async def measure(*args: object) -> carriers.Speed:
        measuring.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(carriers, "measure", measure)
    examining = asyncio.create_task(world.examine(quick=False))
    await measuring.wait()
    assert len(world.jobs) == 1
    examining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await examining
    assert world.jobs == []


async def test_an_agent_that_is_refused_gets_the_command_that_allows_it(world: World) -> None:
    world.kube.kubeconfig({"token": "t"})
    async with await Api.connect(kubeconfig=str(world.folder / "kubeconfig")) as api:
        config = await asyncio.to_thread(parse, FILE, "krelay.yaml", {})
        config = replace(config, origin=Origin(("-f", "krelay.yaml")))
        cluster = Cluster(config, None)
        cluster._connected = api
        world.refusals["jobs"] = 403, NO_PODS.replace("pods", "jobs")
        with pytest.raises(AccessDeniedError) as caught:
            await cluster._start_agent()
        assert "krelay rbac -f krelay.yaml -n team" in str(caught.value.hint)
        await cluster._close()


async def test_agents_of_several_contexts_take_turns(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = []

    async def measure(*args: object) -> carriers.Speed:
        at_once.append(len(world.jobs))
        return carriers.Speed(0.01, None)

    monkeypatch.setattr(carriers, "measure", measure)
    kubeconfig = Path(world.kube.kubeconfig({"token": "t"}))
    known = json.loads(kubeconfig.read_text())
    known["contexts"].append({**known["contexts"][0], "name": "there"})
    kubeconfig.write_text(json.dumps(known))
    there = '{target: svc/web, ports: [":80"], context: there}'
    found = await world.examine(f"{FILE}  other: {there}\n", quick=False)
    assert [(one.context, one.status.value) for one in found["tunnels"]] == [
        (None, "ok"),
        ("there", "ok"),
    ]
    assert at_once == [1] * 6
    assert world.jobs == []


# -- the way to the server -------------------------------------------------------------------------


async def test_a_name_is_looked_up(world: World) -> None:
    world.kube.kubeconfig({"token": "t"}, server=f"https://localhost:{world.kube.port}")
    (one,) = (await world.examine())["server"]
    assert [key for key in one.details if key.endswith("_ms")] == [
        "round_trip_ms",
        "dns_ms",
        "tcp_ms",
        "tls_ms",
        "first_answer_ms",
    ]


async def test_a_server_is_reached_through_a_proxy(world: World) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        answer, request = await asyncio.open_connection("127.0.0.1", world.kube.port)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(copy(reader, request))
            tasks.create_task(copy(answer, writer))

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as proxy:
        port = proxy.sockets[0].getsockname()[1]
        url = f"http://jane:planted@127.0.0.1:{port}"
        world.kube.kubeconfig({"token": "t"}, **{"proxy-url": url})
        found = await world.examine()
    assert found["http-proxy"][0].text == f"http://127.0.0.1:{port} (by proxy-url in kubeconfig)"
    assert found["server"][0].text.startswith("reached: proxy ")
    assert "planted" not in str(found)


async def test_a_server_that_ends_each_connection_is_reached(world: World) -> None:
    world.headers["Connection"] = "close"
    (one,) = (await world.examine())["server"]
    assert one.status is Status.OK


async def test_a_slow_server_is_a_warning(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SLOW", 0.0)
    (one,) = (await world.examine())["server"]
    assert one.status is Status.WARNING


async def test_a_job_that_is_invalid_has_failed(world: World) -> None:
    world.refusals["jobs"] = 422, "Job is invalid: spec.template"
    (one,) = (await world.examine())["admission"]
    assert (one.status, one.exit_code) == (Status.FAILED, 4)
    assert one.text == "the API server refused: Job is invalid: spec.template"


async def test_targets_without_an_answer_have_failed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*args: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("krelay.cluster.resolve.resolve_now", hang)
    monkeypatch.setattr(targets, "DEADLINE", 0.01)
    (one, _) = (await world.examine())["targets"]
    assert one.text == "web: no answer about svc/web within 0.01 s"


def test_a_pod_that_runs_but_is_not_ready_is_a_warning() -> None:
    target = Target("web", Kind.SERVICE, "web", (Port(80),), ready=False)
    running = Resolution(Protocol.TCP, Endpoint("10.0.0.1", 80), unready=True)
    found = targets.judged(target, (running,))
    assert (found.status, found.text) == (
        Status.WARNING,
        "web: no pod of svc/web is ready; one that runs is used",
    )
