"""What others say, at each place where a person reads it: no control characters, no forged line."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import rig
from tests.integration.product import Done, document, environment, run, run_each, up

pytestmark = pytest.mark.process

EVIL = "\x1b]0;owned\x07\x1b[2J\x1b[31mforged\r\n00:00:00 all is well\u2028\u202e\x9b1m\x7f[/x]"
CLEAN = "forged 00:00:00 all is well [/x]"

Answer = Callable[[str, str], tuple[int, Any] | None]
META = {"resourceVersion": "1"}


@asynccontextmanager
async def cluster(folder: Path, answer: Answer) -> AsyncIterator[str]:
    """An API server of few words; the path of a kubeconfig for it. What `answer` has for a method
    and a target is its answer, else an object or an empty list; a watch says nothing."""

    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                method, target, _ = head.split(" ", 2)
                length = head.lower().partition("content-length:")[2].partition("\r\n")[0]
                body = await reader.readexactly(int(length or 0))
                status, found = answer(method, target) or (200, {"metadata": META, "items": []})
                if status == 200 and method == "POST":
                    status, found = 201, {**json.loads(body), "kind": "Job"}
                    found["metadata"] |= {"name": "krelay-server-x", "uid": "job"}
                data = json.dumps(found).encode()
                if "watch=true" in target:
                    await asyncio.Event().wait()
                writer.write(
                    b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\n"
                    b"Content-Length: %d\r\n\r\n%s" % (status, len(data), data)
                )
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            writer.close()

    server = await asyncio.start_server(serve, rig.HOST, 0)
    port = server.sockets[0].getsockname()[1]
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": f"http://{rig.HOST}:{port}"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [
            {"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "team"}}
        ],
    }
    path = folder / "kubeconfig"
    await asyncio.to_thread(path.write_text, json.dumps(config))
    try:
        yield str(path)
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)


def refuse(method: str, target: str) -> tuple[int, Any] | None:
    return 409, {"kind": "Status", "message": f"no {EVIL}", "reason": EVIL}


def event(method: str, target: str) -> tuple[int, Any] | None:
    if "/events" not in target:
        return (200, {"metadata": META, "items": [JOB]}) if "/jobs?" in target else None
    message = f"Error creating: violates PodSecurity {EVIL}"
    found = {
        "metadata": {"name": "e", "uid": "e"},
        "reason": "FailedCreate",
        "involvedObject": {"uid": "job"},
        "message": message,
    }
    return 200, {"metadata": META, "items": [found]}


def last_words(method: str, target: str) -> tuple[int, Any] | None:
    if "/pods" not in target:
        return None
    ended = {"exitCode": 1, "reason": "Error", "message": f"a\n12:00:00 all is well\n{EVIL}"}
    status = {"name": "krelay-server", "state": {"terminated": ended}}
    pod = {
        "metadata": {"name": "agent-pod", "uid": "u", "creationTimestamp": "2026"},
        "spec": {"nodeName": "n"},
        "status": {"phase": "Failed", "containerStatuses": [status]},
    }
    return 200, {"metadata": META, "items": [pod]}


JOB = {"metadata": {"name": "krelay-server-x", "uid": "job"}}


def check(done: Done, *, json_lines: bool = False) -> None:
    """Both streams are clean, and no line of them is another's."""
    for text in (done.out, done.err):
        for line in text.split("\n"):
            assert line.isprintable(), line
            assert not line.startswith("00:00:00"), line
            if json_lines and line:
                assert isinstance(json.loads(line), dict)
    assert "Traceback" not in done.err, done.err


@pytest.mark.parametrize("how", [(), ("--log-format", "json")], ids=["text", "json"])
@pytest.mark.parametrize("answer", [refuse, event, last_words], ids=lambda f: f.__name__)
async def test_a_cluster(answer: Answer, how: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "krelay.yaml"
    file.write_text("apiVersion: krelay/v1\ntargets:\n  web: ip/127.0.0.1 :8\n")
    async with cluster(tmp_path, answer) as kubeconfig:
        done = await run("up", "-f", str(file), "-v", *how, KUBECONFIG=kubeconfig)
    check(done, json_lines=bool(how))
    assert done.code == 4
    assert "forged" in done.err


async def test_kubectl_relay(tmp_path: Path) -> None:
    async with cluster(tmp_path, refuse) as kubeconfig:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "from krelay.cli.kubectl import main; raise SystemExit(main())",
            *("svc/web", "8080:80"),
            env=environment(KUBECONFIG=kubeconfig),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
    check(Done(process.returncode or 0, out.decode(), err.decode()))
    assert "forged" in err.decode()


@pytest.mark.parametrize(
    "command",
    [
        *("up", "run", "check", "plan", "reload", "status", "wait", "logs", "down", "rbac"),
        *("restart", "port"),
    ],
)
async def test_paths_and_arguments(command: str, tmp_path: Path) -> None:
    more = {"run": ("--", "true"), "wait": ("--timeout", "0.1s"), "port": ("web",)}.get(command, ())
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.yaml")
    commands = [
        (command, "-f", f"{tmp_path}/{EVIL}.yaml", *more),
        (command, f"--{EVIL}"),
        (command, "-f", odd, *more),
    ]
    for done in await run_each(commands, XDG_RUNTIME_DIR=str(tmp_path)):
        check(done)
        assert done.code


async def test_the_file(tmp_path: Path) -> None:
    quoted = json.dumps(EVIL)
    contents = (
        f"apiVersion: {quoted}\n",
        f"apiVersion: krelay/v1\n{quoted}: {quoted}\ntargets: {{{quoted}: {quoted}}}\n",
        f"apiVersion: krelay/v1\ninclude: [{quoted}]\ntargets: {{web: [{quoted}]}}\n",
        f"apiVersion: krelay/v1\ntargets:\n  web: {{to: {quoted}, ports: [{quoted}]}}\n",
        f"apiVersion: krelay/v1\ntargets:\n  web: ip/127.0.0.1 :80\n{EVIL}\n",
        f"ip/127.0.0.1 {EVIL}\n",
    )
    files = [tmp_path / f"{number}.yaml" for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_text(content)
    commands = [(name, "-f", str(file)) for file in files for name in ("check", "up", "plan")]
    for done in await run_each(commands, XDG_RUNTIME_DIR=str(tmp_path)):
        check(done)
        assert done.code == 2


async def test_an_edit_and_those_who_ask_about_it(tmp_path: Path) -> None:
    folder = tmp_path / f"a[/x]\x1b[31m\n00:00:00 {chr(0x202E)}"
    folder.mkdir(parents=True)
    file = folder / "krelay.yaml"
    async with rig.tcp_target(rig.echo) as target:
        async with up(file, {"web": f"ip/127.0.0.1 :{target}"}) as krelay:
            broken = document({"web": f"ip/127.0.0.1 :{target}", "b": json.dumps(EVIL)})
            await asyncio.to_thread(file.write_text, broken)
            await krelay.said("the active config stays")
            for command in (
                ("status",),
                ("status", "--output", "wide"),
                ("status", "--output", "json"),
                ("logs",),
                ("plan",),
                ("reload",),
                ("wait", "--timeout", "0.1s", "nope"),
                ("status", "nope"),
            ):
                check(await run(*command, "-f", str(file)))
        check(Done(0, krelay.out, krelay.err))
        check(await run("status", "-f", str(file)))
