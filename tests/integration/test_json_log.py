"""`--log-format json`: each line of both streams is an object, from the start to the end."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
from pathlib import Path
from typing import Any

import pytest

from tests import rig
from tests.integration.product import command, document, environment, run, run_each

pytestmark = pytest.mark.process

JSON = ("--log-format", "json")
KEYS = {"time", "level", "logger", "message", "target", "tunnel", "stream", "exception"}


def objects(text: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in text.splitlines()]
    for one in found:
        assert one.keys() >= {"time", "level", "logger", "message"}, one
        assert one.keys() <= KEYS, one
    return found


@pytest.mark.parametrize("verbose", [(), ("-v",), ("-vv",)])
async def test_a_life(verbose: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "krelay.yaml"
    async with rig.tcp_target(rig.echo) as target, rig.tcp_target(rig.echo) as status:
        first = {"web": f"ip/127.0.0.1 :{target}", "no": f"ip/127.0.0.1 :{rig.closed_port()}"}
        taken = f"status: {{listen: {status}}}"  # it is in use
        await asyncio.to_thread(file.write_text, document(first, taken))
        process = await asyncio.create_subprocess_exec(
            *command("up", "-f", str(file), *JSON, *verbose),
            env=environment(XDG_RUNTIME_DIR=str(tmp_path), PYTHONWARNINGS="always"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out: list[str] = []
        err: list[str] = []

        async def read(stream: asyncio.StreamReader | None, into: list[str]) -> None:
            assert stream is not None
            while line := await stream.readline():
                into.append(line.decode())

        def said(text: str) -> bool:
            return any(text in line for line in err)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read(process.stdout, out))
            tasks.create_task(read(process.stderr, err))
            try:
                await rig.until(lambda: len(out) >= 2 or process.returncode is not None)
                web = next(one for one in map(json.loads, out) if one["target"] == "web")
                where = web["message"].partition(" -> ")[0]
                port = int(where.rpartition(":")[2])
                await rig.until(lambda: said("no: failed"))
                await asyncio.to_thread(file.write_text, "apiVersion: krelay/v1\ntargets: [\n")
                await rig.until(lambda: said("the active config stays"))
                await asyncio.to_thread(file.write_text, document({**first, "b": first["web"]}))
                await rig.until(lambda: len(out) >= 3)
                async with rig.connect(port) as (reader, writer):
                    writer.write(b"x")
                    assert await reader.readexactly(1) == b"x"
                    process.send_signal(signal.SIGTERM)
                    await rig.until(lambda: said("draining"))
                    process.send_signal(signal.SIGTERM)
                    assert await process.wait() == 130
            finally:
                if process.returncode is None:
                    process.kill()
    told = objects("".join(err))
    assert {one["target"] for one in objects("".join(out))} == {"web", "no", "b"}
    assert any("is not served" in one["message"] for one in told)
    if verbose:
        assert any("listening on" in one["message"] for one in told), "the agent's own log"


WRONG: list[tuple[tuple[str, ...], int]] = [
    (("up", "-f", "/nowhere/krelay.yaml"), 2),
    (("up", "--no-such-option"), 2),
    (("up", "--strict=x"), 2),
    (("proxy", "--listen", "x"), 2),
    (("proxy", "--username", "me"), 2),
    (("run", "-f", "/nowhere/krelay.yaml", "--", "true"), 2),
    (("run", "--timeout", "soon", "--", "true"), 2),
    (("run",), 2),
    (("bogus",), 2),
    (("--bogus",), 2),
]


@pytest.mark.parametrize("by", ["option", "environment"])
async def test_what_is_wrong_from_the_start(by: str) -> None:
    commands = [args if by != "option" else (args[0], *JSON, *args[1:]) for args, _ in WRONG]
    environ = {"KRELAY_LOG_FORMAT": "json"} if by != "option" else {}
    for done, (args, code) in zip(await run_each(commands, **environ), WRONG, strict=True):
        assert (done.code, done.out) == (code, ""), args
        (error,) = objects(done.err)
        assert error["level"] == "error"


async def test_a_file_with_problems_and_a_port_in_use(tmp_path: Path) -> None:
    file = tmp_path / "krelay.yaml"
    file.write_text("apiVersion: krelay/v1\nnope: 1\ntargets: {web: x}\n")
    done = await run("up", "-f", str(file), *JSON)
    assert done.code == 2
    assert len(objects(done.err)) == 1
    async with rig.tcp_target(rig.echo) as taken:
        file.write_text(document({"web": f"ip/127.0.0.1 {taken}:80"}))
        done = await run("up", "-f", str(file), *JSON)
        assert done.code == 1
        assert "cannot listen" in objects(done.err)[-1]["message"]
        done = await run("run", "-f", str(file), *JSON, "--", "true")
        assert done.code == 1
        assert objects(done.err)


async def test_a_credential_plugin_at_a_terminal(tmp_path: Path) -> None:
    says = "printf 'plain words \\033[2J\\n' >&2; exit 1"
    version = "client.authentication.k8s.io/v1"
    plugin = {"command": "/bin/sh", "apiVersion": version, "args": ["-c", says]}
    user = {"exec": {**plugin, "interactiveMode": "IfAvailable"}}
    kubeconfig = {
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
    }
    (tmp_path / "config").write_text(json.dumps(kubeconfig))
    file = tmp_path / "krelay.yaml"
    file.write_text("apiVersion: krelay/v1\ntargets: {web: 'ip/127.0.0.1 :9'}\n")
    master, slave = pty.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            *command("up", "-f", str(file), *JSON),
            env=environment(XDG_RUNTIME_DIR=str(tmp_path), KUBECONFIG=str(tmp_path / "config")),
            stdin=slave,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        _, err = await process.communicate()
    finally:
        os.close(master)
        os.close(slave)
    assert process.returncode == 4
    assert "sh: plain words" in [one["message"].strip() for one in objects(err.decode())]
    assert "sh failed with status 1: plain words" in objects(err.decode())[-1]["message"]
