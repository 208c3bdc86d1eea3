"""`krelay check --cluster`: the targets of a file, and what they need of the cluster."""

from __future__ import annotations

import asyncio
import json
from functools import partial

import pytest

from krelay.cli import signals
from krelay.cli.file_commands import check
from krelay.config.sources import Selection
from krelay.doctor import examine_targets
from krelay.errors import KrelayError
from tests.doctor.conftest import World

HEAD = "apiVersion: krelay/v1\n"


async def checked(world: World, text: str, *, json: bool = False) -> int:
    """Check a file in the cluster, on this loop; the command would make its own."""
    path = world.folder / "krelay.yaml"
    path.write_text(HEAD + text)
    kubeconfig = world.folder / "kubeconfig"
    if not kubeconfig.exists():
        world.kube.kubeconfig({"token": "t0ken"})
    source = Selection(str(path))
    config = await asyncio.to_thread(source.load)
    found = await examine_targets(config, str(kubeconfig))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signals, "run_to_exit", lambda making: making.close() or found)
        return await asyncio.to_thread(partial(check, source, json=json, in_cluster=True))


async def test_a_file_whose_targets_are_ready_is_ok(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "targets: {web: svc/web :80, cache: host/redis.test 6379}\n"
    assert await checked(world, text) == 0
    out, err = capsys.readouterr()
    assert out == f"{world.folder}/krelay.yaml: ok, also in the cluster, 2 targets\n"
    assert err == ""


async def test_each_problem_has_a_line_and_its_hint(world: World) -> None:
    world.add_service("slow", endpoints=0)
    world.denied = {"create jobs"}
    text = "targets: {a: svc/none :80, b: svc/slow :80, c: svc/web :81}\n"
    with pytest.raises(KrelayError, match="4 problems in the cluster") as caught:
        await checked(world, text)
    assert caught.value.exit_code == 4
    lines = caught.value.details()
    assert lines[0].startswith("rights: ")
    assert lines[0].endswith('missing: create jobs.batch in "team"')
    assert "krelay rbac -f " in lines[1]
    assert lines[2] == 'a: services "none" not found in namespace "team"'
    assert lines[3] == "  hint: check the name, the port, the namespace and the context"
    assert [line.split(":")[0] for line in lines[4::2]] == ["b", "c"]


async def test_a_target_without_an_endpoint_exits_with_1(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.add_service("slow", endpoints=0)
    with pytest.raises(KrelayError, match="1 problem in the cluster") as caught:
        await checked(world, "targets: {b: svc/slow :80}\n")
    assert caught.value.exit_code == 1
    assert await checked(world, "targets: {b: svc/slow :80}\n", json=True) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["problems"], found["targets"]) == (False, [], ["b"])
    assert {one["check"]: one["status"] for one in found["cluster"]} == {
        "kubeconfig": "ok",
        "credentials": "ok",
        "server": "ok",
        "user": "ok",
        "rights": "ok",
        "targets": "warning",
    }


async def test_a_warning_is_no_failure(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.denied = {"create jobs"}
    assert await checked(world, "targets: {web: svc/web :80}\n") == 0
    out, err = capsys.readouterr()
    assert "ok, also in the cluster, 1 target\n" in out
    assert err.startswith("rights: no agent: targets are reached directly")


async def test_contexts_are_named_where_there_are_several(world: World) -> None:
    text = "targets: {a: svc/web :80, b: {target: svc/web, port: 80, context: nope}}\n"
    with pytest.raises(KrelayError, match="1 problem in the cluster") as caught:
        await checked(world, text)
    assert caught.value.exit_code == 4
    assert 'no context "nope" in kubeconfig (context nope)' in caught.value.details()[0]


async def test_an_embedded_agent_needs_no_cluster(world: World) -> None:
    assert await checked(world, "agent: {embedded: true}\ntargets: {a: ip/127.0.0.1 :1}\n") == 0
