"""The tools, called by the SDK's client: what they answer about a krelay that runs."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp_types import TextContent

from krelay.mcp import OPTIONAL, forms, krelays, tools
from krelay.mcp.server import Calls, make_server
from krelay.tasks import TaskGroup
from tests import rig
from tests.integration.product import ROOT, Up, document, up

pytestmark = pytest.mark.process

SECRET = "sesame-sesame-sesame"
READING = ["targets", "state", "events", "logs", "doctor"]


class Model:
    """A language model, as its client calls tools for it."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def tools(self) -> dict[str, Any]:
        """Return the listed tools by name, as JSON."""
        listed = await self._client.list_tools()
        return {tool.name: tool.model_dump(mode="json", by_alias=True) for tool in listed.tools}

    async def call(self, tool: str, /, **arguments: Any) -> Any:
        """Return the structured result; the text says the same."""
        result = await self._client.call_tool(tool, arguments)
        (content,) = result.content
        assert isinstance(content, TextContent)
        assert not result.is_error, content.text
        assert json.loads(content.text) == result.structured_content
        assert SECRET not in content.text
        return result.structured_content

    async def fails(self, tool: str, /, **arguments: Any) -> str:
        """Return the error of a call."""
        result = await self._client.call_tool(tool, arguments)
        (content,) = result.content
        assert isinstance(content, TextContent)
        assert result.is_error, content.text
        assert SECRET not in content.text
        return content.text


@asynccontextmanager
async def model(file: Path | None, *allowed: str) -> AsyncIterator[Model]:
    """A model, and a server in this process."""
    async with TaskGroup() as tasks:
        calls = Calls(str(file) if file else None, allowed, tasks)
        async with Client(make_server(calls)) as client:
            yield Model(client)


@asynccontextmanager
async def relaying(file: Path, *more: str, **targets: str) -> AsyncIterator[tuple[Up, int]]:
    """A krelay with a target `web` that echoes, and its port; others of `targets`."""
    async with rig.tcp_target(rig.echo) as port:
        given = {"web": f"ip/127.0.0.1 :{port}", **targets}
        async with up(file, given, *more, args=("--no-watch",)) as running:
            await running.said("web: ready")
            yield running, port


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "krelay.yaml"


async def test_tools_that_act_are_listed_if_allowed(file: Path) -> None:
    async with model(file) as reader, model(file, "plan", "run") as actor:
        assert [*await reader.tools()] == READING
        assert [*await actor.tools()] == [*READING, "plan", "run"]
        error = await reader.fails("run", command=["true"])
        assert error == (
            "the tool run is not allowed\n  hint: the user allows it with `krelay mcp --allow run`"
        )
        assert "there are: targets, state" in await reader.fails("rm")


async def test_a_tool_describes_what_it_takes_and_returns(file: Path) -> None:
    async with model(file, *OPTIONAL) as actor:
        listed = await actor.tools()
    for name, tool in listed.items():
        takes, returns = tool["inputSchema"], tool["outputSchema"]
        assert takes["additionalProperties"] is False
        assert "file" in takes["properties"]
        assert all("description" in each for each in takes["properties"].values()), name
        assert all("title" not in each for each in takes["properties"].values()), name
        assert "file" in returns["required"]
        assert tool["annotations"]["readOnlyHint"] == (name not in ("reload", "run"))


@pytest.mark.parametrize(
    ("tool", "arguments", "error"),
    [
        ("targets", {"name": "web"}, "`name`: no such argument\n  hint: the arguments are `file`"),
        ("logs", {"lines": 0}, "`lines`: input should be greater than or equal to 1"),
        ("events", {"after": "x"}, "`after`: input should be a valid integer"),
        ("run", {"command": "pytest -q"}, "`command`: input should be a valid list"),
        ("run", {"command": "[1"}, "`command`: input should be a valid list"),
        ("run", {"command": []}, "`command`: list should have at least 1 item"),
        ("run", {}, "`command`: field required"),
    ],
)
async def test_wrong_arguments_are_errors_of_the_tool(
    file: Path, tool: str, arguments: dict[str, Any], error: str
) -> None:
    async with model(file, *OPTIONAL) as actor:
        assert error in await actor.fails(tool, **arguments)


async def test_without_a_krelay_an_error_says_how_to_start_it(file: Path) -> None:
    async with model(file) as reader:
        for tool in READING[:-1]:
            assert await reader.fails(tool) == (
                f"krelay is not running for {file}\n  hint: start it with `krelay up -f {file}`"
            )


@pytest.fixture
def alone(runtime_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No krelay of another test is found. Sockets in `tmp_path` could have too long paths."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime_directory / "mcp"))


@pytest.mark.usefixtures("alone")
async def test_without_a_file_the_only_krelay_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    async with model(None) as reader:
        error = await reader.fails("targets")
        assert error.startswith("no krelay runs, and this directory has no krelay.yaml")
        async with relaying(one):
            assert (await reader.call("targets"))["file"] == str(one)
            async with relaying(two):
                error = await reader.fails("targets")
                assert error == (
                    f"several krelays run: name one as `file`\n  hint: running: {one}, {two}"
                )
                assert (await reader.call("targets", file=str(two)))["file"] == str(two)
                error = await reader.fails("targets", file="/etc/passwd")
                assert error.startswith("krelay is not running for /etc/passwd\n  hint: running")
        (empty / "krelay.yaml").touch()
        error = await reader.fails("targets")
        assert error.startswith(f"krelay is not running for {empty}/krelay.yaml")
        error = await reader.fails("targets", file=str(one))
        assert error == f"krelay is not running for {one}\n  hint: none is running"


async def test_the_doctor_says_what_mends_a_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", os.devnull)
    file.write_text(document({"web": "ip/127.0.0.1 :80"}))
    async with model(file) as reader:
        found = await reader.call("doctor")
        assert found["findings"][0]["text"] == f"{file}: 1 target"
        file.write_text(document({"web": "svc/"}))
        found = await reader.call("doctor")
        assert not found["ok"]
        first = found["findings"][0]
        assert first["text"].startswith(f"{file}:4:12: `svc/` has no port")
        assert (first["status"], first["hint"][:11]) == ("failed", "for example")


@pytest.mark.usefixtures("alone")
async def test_the_doctor_needs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", os.devnull)
    async with model(None) as reader:
        found = await reader.call("doctor")
        assert (found["file"], found["ok"]) == (None, False)


def test_sockets_are_found_without_the_variables_of_a_login(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / str(os.getuid())
    monkeypatch.setattr(krelays, "_RUNTIME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", "as it was")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    krelays.restore_variables()
    assert "XDG_RUNTIME_DIR" not in os.environ
    (mine / "krelay").mkdir(parents=True)
    krelays.restore_variables()
    assert os.environ["XDG_RUNTIME_DIR"] == str(mine)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "set")
    krelays.restore_variables()
    assert os.environ["XDG_RUNTIME_DIR"] == "set"


async def test_a_model_cannot_choose_another_file(file: Path) -> None:
    async with model(file) as reader:
        error = await reader.fails("targets", file="/etc/passwd")
        assert error == f"this server asks only the krelay of {file}\n  hint: leave out `file`"
        assert "not running" in await reader.fails("targets", file=str(file))


async def test_targets_say_where_to_connect_and_why_one_is_not_ready(file: Path) -> None:
    bad = f"ip/127.0.0.1 :{rig.closed_port()}"
    async with (
        relaying(file, bad=bad) as (running, port),
        model(file) as reader,
    ):
        await running.said("bad: failed")
        found = await reader.call("targets")
        assert (found["file"], found["ready"], found["in_sync"]) == (str(file), False, True)
        names = [target["name"] for target in found["targets"]]
        assert names == ["bad", "web"]
        bad_port, web_port = (found["targets"][number]["ports"][0] for number in (0, 1))
        assert bad_port["reason"].startswith("refused: the agent reached the host")
        assert bad_port["hint"] == "check the port, and that the program behind it has started"
        assert web_port["hint"] is None
        assert web_port["local"] == [f"127.0.0.1:{running.ports['web']}"]
        assert (web_port["to"], web_port["state"]) == (f"ip/127.0.0.1:{port}", "ready")

        (only,) = (await reader.call("targets", names=["web"]))["targets"]
        assert only["name"] == "web"
        error = await reader.fails("targets", names=["bed"])
        assert error == "no target `bed`\n  hint: there are: `bad`, `web`"


async def test_the_state_is_the_snapshot_without_secrets(file: Path) -> None:
    status = f"status: {{listen: '127.0.0.1:0', token: {SECRET}}}"
    async with relaying(file, status), model(file) as reader:
        found = await reader.call("state", names='["web"]')
        (forward,) = found["state"]["forwards"]
        assert (forward["target"], forward["traffic"]["opened"]) == ("web", 0)
        assert "dials" not in forward["traffic"]
        assert found["state"]["agents"][0]["tunnels"]


async def test_events_continue_where_the_last_answer_ended(file: Path) -> None:
    async with relaying(file), model(file) as reader:
        found = await reader.call("events")
        texts = [event["text"] for event in found["events"]]
        assert "web: ready" in texts
        assert found["last"] == found["events"][-1]["number"]
        later = (await reader.call("events", after=found["last"]))["events"]
        assert all(event["number"] > found["last"] for event in later)
        about = await reader.call("events", target="web", limit=1)
        assert [event["text"] for event in about["events"]] == ["web: ready"]


async def test_the_log_has_the_last_lines(file: Path) -> None:
    async with relaying(file), model(file) as reader:
        (last,) = (await reader.call("logs", lines=1))["lines"]
        about = (await reader.call("logs", target="web"))["lines"]
        assert about[-1].endswith("web: ready")
        assert all("web" in line for line in about)
        assert {last, *about} <= {*(await reader.call("logs"))["lines"]}
        assert (await reader.call("logs", target="other"))["lines"] == []


async def test_answers_are_bounded(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "_MOST_TEXT", 200)
    monkeypatch.setattr(forms, "MOST_TARGETS", 1)
    more = {name: f"ip/127.0.0.1 :{rig.closed_port()}" for name in ("a", "b")}
    async with relaying(file, **more), model(file, "plan") as reader:
        found = await reader.call("targets")
        assert (len(found["targets"]), found["left_out"]) == (1, 2)
        found = await reader.call("state")
        assert (found["state"]["forwards"], found["left_out"]) == ([], 3)
        found = await reader.call("logs")
        assert found["left_out"] > 0
        assert sum(map(len, found["lines"])) <= 200
        file.write_text(document({"c": "ip/127.0.0.1 :9", "d": "ip/127.0.0.1 :9"}))
        found = await reader.call("plan")
        assert (len(found["changes"]), found["left_out"]) == (1, 4)


async def test_an_edit_is_planned_and_applied(file: Path) -> None:
    async with relaying(file) as (_, port), model(file, *OPTIONAL) as actor:
        assert (await actor.call("plan"))["changes"] == []
        file.write_text(document({"web": f"ip/127.0.0.1 :{port}", "new": f"ip/127.0.0.1 :{port}"}))
        planned = await actor.call("plan")
        ((sign, text),) = [(each["sign"], each["text"]) for each in planned["changes"]]
        assert (sign, planned["running"]) == ("+", True)
        assert text.startswith("new: added")
        assert (await actor.call("reload"))["changes"] == planned["changes"]

        file.write_text(document({"web": "svc/"}))
        for tool in ("plan", "reload"):
            assert f"{file}:4:12: `svc/` has no port" in await actor.fails(tool)
        found = await actor.call("targets")
        assert not found["in_sync"]
        assert f"{file}:4:12: `svc/` has no port" in found["out_of_sync"]


async def test_a_plan_without_a_krelay_is_that_of_a_start(file: Path) -> None:
    file.write_text(document({"web": "ip/127.0.0.1 :80"}))
    async with model(file, "plan") as actor:
        found = await actor.call("plan")
        assert not found["running"]
        assert [each["text"].split()[:2] for each in found["changes"]] == [
            ["agent:", "added"],
            ["web:", "added"],
        ]
        file.write_text("targets: [")
        assert str(file) in await actor.fails("plan")


ASK = """
import os, socket
with socket.create_connection((os.environ["KRELAY_WEB_HOST"], os.environ["KRELAY_WEB_PORT"])) as s:
    s.sendall(b"hello"); s.shutdown(socket.SHUT_WR)
    print(s.recv(100).decode(), os.getcwd())
"""


async def test_a_command_uses_the_forwards_of_the_running_krelay(file: Path) -> None:
    bad = f"ip/127.0.0.1 :{rig.closed_port()}"
    async with relaying(file, bad=bad) as (running, _), model(file, "run") as actor:
        await running.said("bad: failed")
        command = [sys.executable, "-c", ASK]
        found = await actor.call("run", command=json.dumps(command), targets=["web"])
        assert (found["exit_code"], found["output"]) == (0, f"hello {file.parent}")
        address = f"127.0.0.1:{running.ports['web']}"
        assert found["variables"]["KRELAY_WEB_ADDR"] == address

        error = await actor.fails("run", command=command)
        assert error.startswith("bad: failed: refused")
        assert "the command was not run" in error
        error = await actor.fails("run", command=["/nowhere"], targets=["web"])
        assert error == "cannot run '/nowhere': No such file or directory"


async def test_a_command_relays_by_itself_if_no_krelay_runs(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (file.parent / "click.py").write_text("raise SystemExit('not this one')")
    async with rig.tcp_target(rig.echo) as port:
        bad = f"ip/127.0.0.1 :{rig.closed_port()}"
        file.write_text(document({"web": f"ip/127.0.0.1 :{port}", "bad": bad}))
        async with model(file, "run") as actor:
            script = f"{shlex.quote(sys.executable)} -P -c {shlex.quote(ASK)}; exit 3"
            command = ["sh", "-c", script]
            found = await actor.call("run", command=command, targets=["web"])
            assert (found["exit_code"], found["output"]) == (3, f"hello {file.parent}")
            assert found["variables"] == {}


async def test_a_bug_is_logged_and_quotes_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(*args: object, **options: object) -> None:
        raise ValueError(SECRET)

    monkeypatch.setattr("krelay.mcp.krelays.ask", wrong)
    async with model(file) as reader:
        assert await reader.fails("targets") == "internal error: ValueError"
    assert "targets failed" in caplog.text
