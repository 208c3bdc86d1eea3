"""The answers of a running krelay to other commands, over its socket."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from krelay.errors import ConfigError, KrelayError, UsageError
from krelay.model import Check, CheckKind
from krelay.net.engine import choose
from krelay.state.states import State
from krelay.status.client import ask
from krelay.status.servers import serve_unix
from krelay.status.socket_path import socket_path
from krelay.supervisor import recent
from krelay.supervisor.control import Control
from krelay.supervisor.snapshot import http_scheme
from tests import rig
from tests.state.said import said
from tests.supervisor.world import HEAD, Talk, World, named, text, world

SCHEMA = json.loads((Path(__file__).parents[2] / "schema" / "status.schema.json").read_text())
HOST = "ip/127.0.0.1"


@asynccontextmanager
async def controlled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str
) -> AsyncIterator[World]:
    async with world(monkeypatch, tmp_path, content) as w:
        control = Control(w.supervisor, w.reloader)
        place = await asyncio.to_thread(socket_path, str(w.file))
        async with serve_unix(place, control.handlers()):
            yield w


async def asked(w: World, method: str, resource: str, **body: Any) -> Any:
    found = await asyncio.to_thread(ask, str(w.file), method, resource, body, timeout=60.0)
    if resource == "/v1/status":
        jsonschema.validate(found, SCHEMA)
    if resource == "/v1/connections":
        rules = {**SCHEMA["definitions"]["connections"], "$schema": SCHEMA["$schema"]}
        jsonschema.validate(found, rules)
    return found


async def test_recent_events_are_those_after_a_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with controlled(monkeypatch, tmp_path, text(f"one: {HOST} :{rig.closed_port()}")) as w:
        (forward,) = w.supervisor.active.all_forwards()
        # Its events end there.
        await rig.until(lambda: forward.health.state is State.FAILED)
        w.supervisor.bus.publish(said("state", "x"))
        found = await asked(w, "GET", "/v1/events/recent")
        history = [event.as_json() for event in w.supervisor.bus.history]
        assert found == {"last": history[-1]["number"], "events": json.loads(json.dumps(history))}
        later = await asked(w, "GET", "/v1/events/recent", after=found["last"])
        assert later == {"last": found["last"], "events": []}
        for after in ("1", True, None):
            with pytest.raises(KrelayError, match="`after` is a number"):
                await asked(w, "GET", "/v1/events/recent", after=after)


async def test_status_answers_the_snapshot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_port = rig.closed_port()
    async with named(b"a") as a, rig.tcp_target(rig.echo) as taken:
        lines = f"one: {HOST} {with_port}:{a}", f"two: {HOST} {taken}:{a}"
        async with controlled(monkeypatch, tmp_path, text(*lines)) as w:
            talk = await Talk.to(with_port)
            found = await asked(w, "GET", "/v1/status")
            await talk.close()
            assert found["pid"] == os.getpid()
            assert found["file"] == {
                "applied": found["started"],
                "path": str(w.file),
                "files": [str(w.file)],
                "inStep": True,
                "generation": 1,
                "reloads": 0,
                "failedReloads": 0,
                "since": None,
                "error": None,
            }
            (agent,) = found["agents"]
            assert (agent["context"], agent["where"]) == (None, ["in this process"])
            assert [(t["up"], t["streams"]) for t in agent["tunnels"]] == [(True, 1)]
            one, two = found["forwards"]
            assert not found["ready"]
            assert (two["state"], two["listen"]) == ("failed", [])
            assert "Address already in use by this krelay" in two["reason"]
            expected = {
                "target": "one",
                "index": 0,
                "name": "one",
                "to": f"{HOST}:{a}",
                "state": "ready",
                "context": None,
                "namespace": None,
                "protocol": "tcp",
                "listen": [f"127.0.0.1:{with_port}"],
                "endpoint": f"127.0.0.1:{a}",
                "via": "as given",
                "check": "dial",
                "live": 1,
            }
            assert {key: one[key] for key in expected} == expected
            assert one["reason"].startswith("its port accepted at ")
            assert one["traffic"]["opened"] == one["traffic"]["dialCount"] == 1
            assert one["traffic"]["toLocalBytes"] == 1
            assert found["tasks"] > 0
            assert found["descriptors"] > 3
            assert found["memoryBytes"] > 1 << 20
            assert found["engine"] == (await asyncio.to_thread(choose)).name


async def test_an_invalid_file_is_out_of_sync_since_the_first_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with controlled(monkeypatch, tmp_path, text(f"one: {HOST} :1")) as w:
        since = None
        for wrong in (":x", ":y"):
            await asyncio.to_thread(w.file.write_text, text(f"one: {HOST} {wrong}"))
            with pytest.raises(ConfigError) as caught:
                await asked(w, "POST", "/v1/reload")
            assert caught.value.problems[0].line == 5
            found = (await asked(w, "GET", "/v1/status"))["file"]
            assert not found["inStep"]
            since = since or found["since"]
            assert found["since"] == since
            assert wrong[1:] in found["error"]["problems"][0]["message"]
        await w.edit(text(f"one: {HOST} :1"))
        assert (await asked(w, "GET", "/v1/status"))["file"]["inStep"]


async def test_a_plan_changes_nothing_and_a_reload_applies_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with controlled(monkeypatch, tmp_path, text(f"one: {HOST} :1")) as w:
        added = f"two: added 127.0.0.1:<free> -> {HOST}:2"
        assert await asked(w, "POST", "/v1/plan") == {"changes": []}
        new = text(f"one: {HOST} :1", f"two: {HOST} :2")
        by_text = await asked(w, "POST", "/v1/plan", text=new)
        assert [(change["sign"], change["text"]) for change in by_text["changes"]] == [("+", added)]
        other = tmp_path / "other.yaml"
        await asyncio.to_thread(other.write_text, new)
        assert await asked(w, "POST", "/v1/plan", path=str(other)) == by_text
        await asyncio.to_thread(w.file.write_text, new)
        assert await asked(w, "POST", "/v1/plan") == by_text
        assert set(w.listening) == {"one"}
        assert await asked(w, "POST", "/v1/reload") == by_text
        assert set(w.listening) == {"one", "two"}
        assert await asked(w, "POST", "/v1/reload") == {"changes": []}


async def test_a_plan_may_be_of_another_context(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with controlled(monkeypatch, tmp_path, text(f"one: {HOST} :1")) as w:
        found = await asked(w, "POST", "/v1/plan", context="other", path=str(w.file))
        assert "other" in json.dumps(found)
        assert await asked(w, "POST", "/v1/plan", context=None, namespace="") == {"changes": []}


async def test_a_plan_of_an_invalid_file_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with controlled(monkeypatch, tmp_path, text(f"one: {HOST} :1")) as w:
        with pytest.raises(ConfigError, match="<stdin>: 1 problem"):
            await asked(w, "POST", "/v1/plan", text=HEAD)
        bodies: list[dict[str, Any]] = [{"path": 1}, {"text": []}, {"namespace": {}}]
        for body in bodies:
            with pytest.raises(Exception, match=f"`{next(iter(body))}` is a string") as caught:
                await asked(w, "POST", "/v1/plan", **body)
            assert caught.value.exit_code == UsageError.exit_code  # type: ignore[attr-defined]
        with pytest.raises(ConfigError) as wrong:
            await asked(w, "POST", "/v1/plan", text=HEAD + "# secret \udcff")
        assert "byte 0xff is not UTF-8" in wrong.value.problems[0].message
        with pytest.raises(KrelayError) as caught:
            await asked(w, "POST", "/v1/plan", text=HEAD + "# secret \ud800")
        assert str(caught.value) == "`text` is not text: it holds the surrogate U+D800"


async def test_connections_answers_open_and_ended_ones_with_their_programs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    port, other = rig.closed_port(), rig.closed_port()
    async with named(b"a") as a:
        lines = f"one: {HOST} {port}:{a}", f"two: {HOST} {other}:{a}"
        async with controlled(monkeypatch, tmp_path, text(*lines)) as w:
            first = await Talk.to(port)
            await first.close()
            (forward, _) = w.supervisor.active.all_forwards()
            await rig.until(lambda: forward.metrics.recent)
            second = await Talk.to(port)
            (found,) = (await asked(w, "GET", "/v1/connections", target="one"))["forwards"]
            assert (found["target"], found["index"], found["open"]) == ("one", 0, 1)
            live, ended = found["connections"]
            assert (live["result"], live["ended"]) == (None, None)
            assert live["program"].endswith(f"(pid {os.getpid()})")
            assert live["endpoint"] == ended["endpoint"] == f"127.0.0.1:{a}"
            assert live["via"] == "as given"
            assert ended["result"] in ("ok", "reset")
            assert ended["toLocalBytes"] == 1
            # The name stays with the connection, and the system is not asked again at once.
            again = (await asked(w, "GET", "/v1/connections"))["forwards"]
            assert [each["target"] for each in again] == ["one", "two"]
            assert again[0]["connections"][0]["program"] == live["program"]
            await second.close()
            await rig.until(lambda: len(forward.metrics.recent) == 2)
            assert forward.metrics.recent[-1].program == live["program"]
            for wrong, said in (("three", "no target `three`"), (3, "a string")):
                with pytest.raises(KrelayError, match=said):
                    await asked(w, "GET", "/v1/connections", target=wrong)


async def test_a_new_connection_gets_its_program_at_once_while_someone_reads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(recent, "PAUSE", 0.05)
    monkeypatch.setattr(recent, "WATCHED", 3600.0)
    port = rig.closed_port()
    async with named(b"a") as a:
        async with controlled(monkeypatch, tmp_path, text(f"one: {HOST} {port}:{a}")) as w:
            (forward,) = w.supervisor.active.all_forwards()
            for _ in range(2):  # the second look replaces the first
                await asked(w, "GET", "/v1/connections", target="one")
            talks = [await Talk.to(port), await Talk.to(port)]
            streams = set(forward.metrics.streams)
            await rig.until(lambda: all(stream.program for stream in streams))
            for talk in talks:
                await talk.close()
            await rig.until(lambda: len(forward.metrics.recent) == 2)
            assert all(str(os.getpid()) in each.program for each in forward.metrics.recent)
            assert forward.metrics.on_stream is not None
            monkeypatch.setattr(recent, "WATCHED", 0.0)
            await asked(w, "GET", "/v1/connections", target="one")
            await rig.until(lambda: forward.metrics.on_stream is None)


async def test_a_target_that_speaks_http_has_a_url(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wide = "listen: 0.0.0.0"
    lines = (
        f"web: {{target: {HOST}, ports: [':8080'], {wide}}}",
        f"db: {HOST} :5432",
        f"dns: {HOST} :80/udp",
    )
    async with controlled(monkeypatch, tmp_path, text(*lines)) as w:
        web, db, dns = (await asked(w, "GET", "/v1/status"))["forwards"]
        assert web["url"] == f"http://127.0.0.1:{w.port('web')}/"
        assert (db["url"], dns["url"]) == (None, None)


@pytest.mark.parametrize(
    ("remote", "check", "expected"),
    [
        (80, Check(), "http"),
        ("http-admin", Check(), "http"),
        (8443, Check(), "https"),
        ("https", Check(), "https"),
        (9999, Check(CheckKind.HTTP), "http"),
        (5432, Check(), None),
        ("postgres", Check(CheckKind.DIAL), None),
    ],
)
def test_the_port_or_the_check_says_that_a_target_speaks_http(
    remote: int | str, check: Check, expected: str | None
) -> None:
    assert http_scheme(remote, check) == expected
