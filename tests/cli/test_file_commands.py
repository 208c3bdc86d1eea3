"""The commands about files: `check`, `plan`, `reload`, `rbac`, `import` and `init`."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from krelay.cli import file_commands
from krelay.cli.file_commands import check
from krelay.config import parse, schema_text
from krelay.config.sources import Selection
from krelay.errors import ConfigError
from tests import rig
from tests.cli.asked import answering
from tests.importers.test_services import service, workload
from tests.integration.product import run, up

GOOD = "apiVersion: krelay/v1\ntargets:\n  web: svc/web 8080:80\n  db: svc/db 5432\n"


def test_check_in_json_reports_a_valid_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "krelay.yaml"
    file.write_text(GOOD)
    assert check(Selection(str(file)), json=True) == 0
    assert json.loads(capsys.readouterr().out) == {
        "path": str(file),
        "ok": True,
        "problems": [],
        "targets": ["web", "db"],
    }


def test_check_in_json_reports_every_problem_of_an_invalid_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, other = tmp_path / "krelay.yaml", tmp_path / "other.txt"
    file.write_text(GOOD.replace("8080", "99999") + "include: [other.txt]\n")
    other.write_text("svc/x nope!\n")
    with pytest.raises(ConfigError):
        check(Selection(str(file)), json=False)
    assert capsys.readouterr().out == ""
    assert check(Selection(str(file)), json=True) == 2
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"]
    assert [(p["path"], p["line"], p["column"]) for p in found["problems"]] == [
        (str(file), 3, 16),
        (str(other), 1, 7),
    ]
    assert all(p["message"] and p["hint"] for p in found["problems"])


@pytest.fixture
def pipe() -> Iterator[Callable[[str], str]]:
    """Return the path of a pipe that holds a text, like a shell's `<(…)`."""
    ends: list[int] = []

    def hold(text: str) -> str:
        out, into = os.pipe()
        os.write(into, text.encode())
        os.close(into)
        ends.append(out)
        return f"/dev/fd/{out}"

    yield hold
    for end in ends:
        os.close(end)


def test_a_pipe_on_the_command_line_is_read_once(
    krelay: Callable[..., int], pipe: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = pipe(GOOD)
    assert krelay("check", path) == 0
    assert capsys.readouterr().out == f"{path}: ok, 2 targets\n"
    assert krelay("check", "-f", pipe("no\n")) == 2
    assert krelay("import", pipe("svc/web 80\n")) == 0
    assert "web: svc/web 80" in capsys.readouterr().out
    assert krelay("reload", "-f", pipe(GOOD)) == 2
    assert "`-f` names the file that krelay runs" in capsys.readouterr().err


def test_a_file_beyond_the_limit_is_refused(
    krelay: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert krelay("check", "/dev/zero") == 2
    assert "larger than 1 MiB" in capsys.readouterr().err
    assert krelay("check", "/dev/null") == 2
    assert "the file is empty" in capsys.readouterr().err


def test_a_pipe_named_in_a_file_is_a_problem(
    krelay: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "krelay.yaml").write_text(
        GOOD + "include: [fifo]\nagent: {patches: [{file: fifo}]}"
    )
    assert krelay("check", str(tmp_path / "krelay.yaml")) == 2
    assert capsys.readouterr().err.count("fifo': not a regular file") == 2


EMBEDDED = "apiVersion: krelay/v1\nagent: {embedded: true}\ntargets:\n  web: ip/127.0.0.1 8080:80\n"


@pytest.fixture
def embedded(krelay: Callable[..., int]) -> None:
    """Write a file with an embedded agent where `krelay` runs."""
    Path("krelay.yaml").write_text(EMBEDDED)


@pytest.mark.usefixtures("embedded")
def test_plan_without_a_running_krelay_shows_all_as_added(
    krelay: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert krelay("plan") == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "+ agent: added embedded",
        "+ web: added 127.0.0.1:8080 -> ip/127.0.0.1:80",
    ]
    assert err == "krelay is not running for krelay.yaml; `krelay up` would start this:\n"
    assert krelay("plan", "--exit-code", "--output", "json") == 3
    found = json.loads(capsys.readouterr().out)
    assert [change["change"] for change in found["changes"]] == ["added", "added"]
    Path("other.txt").write_text("svc/a 1\nsvc/b 2\n")
    assert krelay("plan", "other.txt") == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert krelay("plan", "-f", "other.txt", "--context", "prod", "-n", "shop") == 0
    out, err = capsys.readouterr()
    assert out.startswith("+ agent (prod): added")
    assert "`krelay up -f other.txt --context prod -n shop` would start this:" in err


@pytest.mark.usefixtures("embedded")
def test_reload_fails_if_no_krelay_runs(
    krelay: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert krelay("reload") == 1
    assert capsys.readouterr().err == (
        "error: krelay is not running for krelay.yaml\n"
        "  hint: start it with `krelay up -f krelay.yaml`\n"
    )


@pytest.mark.usefixtures("embedded")
def test_plan_and_reload_require_a_valid_file(
    krelay: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert krelay("plan", "-f", "-") == 2
    assert "hint: try `krelay plan -`" in capsys.readouterr().err
    Path("krelay.yaml").write_text("nonsense")
    assert krelay("plan") == 2
    assert krelay("plan", "missing.yaml") == 2
    Path("krelay.yaml").unlink()
    for command in ("plan", "reload"):
        assert krelay(command) == 2


@pytest.mark.process
async def test_plan_and_reload_of_a_running_krelay_show_and_apply_an_edit(tmp_path: Path) -> None:
    file = tmp_path / "krelay.yaml"
    async with rig.tcp_target(rig.echo) as a, rig.tcp_target(rig.echo) as b:
        async with up(file, {"web": f"ip/127.0.0.1 :{a}"}, args=("--no-watch",)) as running:
            done = await run("plan", "-f", str(file))
            assert (done.code, done.out) == (0, "nothing would change\n")
            async with rig.connect(running.ports["web"]) as (reader, writer):
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
                before = file.read_text()
                file.write_text(before.replace(f":{a}", f":{b}") + f"  new: ip/127.0.0.1 :{a}\n")
                moved = f"ip/127.0.0.1:{a} -> ip/127.0.0.1:{b}"
                expected = [
                    f"~ web: re-routed {moved}, 1 live connection stays",
                    f"+ new: added 127.0.0.1:<free> -> ip/127.0.0.1:{a}",
                ]
                done = await run("plan", "--exit-code", "-f", str(file))
                assert (done.code, done.out.splitlines()) == (3, expected)
                done = await run("plan", "-f", str(file), "-", stdin=before.encode())
                assert (done.code, done.out) == (0, "nothing would change\n")
                done = await run("reload", "--output", "json", "-f", str(file))
                texts = [c["sign"] + " " + c["text"] for c in json.loads(done.out)["changes"]]
                assert texts == expected
                done = await run("reload", "-f", str(file))
                assert (done.code, done.out) == (0, "nothing changed\n")
                writer.write(b"y")
                assert await reader.readexactly(1) == b"y"
            await rig.until(lambda: "new" in running.ports)
            assert await rig.exchange(running.ports["new"], b"x") == b"x"
            file.write_text("nonsense")
            done = await run("reload", "-f", str(file))
            assert done.code == 2
            assert re.search(r"krelay\.yaml:1:1: .*\n.*\nerror: .*1 problem\n", done.err)
            second = await run("up", "-f", str(file))
            assert second.code == 2
            file.write_text(before)
            second = await run("up", "-f", str(file))
            assert second.code == 1
            assert (
                f"already running for this file (pid {running.process.pid}, since 2" in second.err
            )
            assert await running.stop() == 0


async def test_plan_sends_its_context_and_namespace_to_the_running_krelay(tmp_path: Path) -> None:
    file = tmp_path / "krelay.yaml"
    file.write_text(GOOD)
    bodies: list[Any] = []

    def plan(body: Any) -> dict[str, Any]:
        bodies.append(body)
        return {"changes": []}

    async with answering(file, POST_plan=plan):
        for context, namespace in ((None, None), ("prod", None), ("prod", "shop")):
            selection = Selection(str(file), context=context, namespace=namespace)
            await asyncio.to_thread(file_commands.plan, selection, None, json=False)
    assert bodies == [{}, {"context": "prod"}, {"context": "prod", "namespace": "shop"}]


def test_check_takes_the_context_and_the_namespace(
    krelay: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("krelay.yaml").write_text(GOOD)
    assert krelay("check", "--context", "prod", "--kubeconfig", "none", "-n", "shop") == 0
    assert krelay("check", "-n", "My_Shop") == 2
    assert "`My_Shop` cannot be a namespace" in capsys.readouterr().err


TEXT = """\
apiVersion: krelay/v1
targets:
  web: svc/web 8080:80
  db: {target: svc/db, port: 5432, namespace: data, context: other}
"""


@pytest.fixture
def two_contexts(
    krelay: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Write a file with two contexts where `krelay` runs."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    Path("krelay.yaml").write_text(TEXT)


@pytest.mark.usefixtures("two_contexts")
def test_rbac_prints_roles_by_context(
    krelay: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert krelay("rbac") == 0
    out, err = capsys.readouterr()
    assert "# context (the current one)\n---\n" in out
    assert "# context other\n---\n" in out
    found = list(yaml.safe_load_all(out))
    assert [(d["kind"], d["metadata"]["namespace"]) for d in found] == [
        ("Role", "default"),
        ("Role", "default"),
        ("Role", "data"),
    ]
    assert err.count("assuming the namespace `default`") == 2


@pytest.mark.usefixtures("two_contexts")
def test_rbac_prints_bindings_for_the_given_subjects(
    krelay: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--user", "jane", "--group", "devs", "--serviceaccount", "ci:bot", "--optional"]
    assert krelay("rbac", *args, "web") == 0
    role, binding = yaml.safe_load_all(capsys.readouterr().out)
    assert any(rule["resources"] == ["events"] for rule in role["rules"])
    assert [(s["kind"], s["name"], s.get("namespace")) for s in binding["subjects"]] == [
        ("User", "jane", None),
        ("Group", "devs", None),
        ("ServiceAccount", "bot", "ci"),
    ]


@pytest.mark.usefixtures("two_contexts")
@pytest.mark.parametrize(
    ("args", "namespaces"),
    [
        (["svc/web", "8080:80", "-n", "shop"], ["shop"]),
        (["svc/web", "8080:80", "-n", "shop", "--agent-namespace", "tools"], ["tools", "shop"]),
        (["proxy", "-n", "shop"], ["shop"]),
        (
            ["svc/web", "80", "-n", "shop", "--agent-namespace", "tools", "--via", "direct"],
            ["shop"],
        ),
        (["-f", "krelay.yaml", "-n", "shop", "web"], ["shop"]),
        (["--context", "other", "-n", "shop"], ["shop", "data"]),
        (["--agent-namespace", "tools", "db"], ["tools", "data"]),
    ],
)
def test_rbac_takes_the_words_of_a_command_line(
    args: list[str],
    namespaces: list[str],
    krelay: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert krelay("rbac", *args, "--user", "jane", "--name", "mine") == 0
    out, err = capsys.readouterr()
    found = [document["metadata"] for document in yaml.safe_load_all(out)]
    assert list(dict.fromkeys(document["namespace"] for document in found)) == namespaces
    assert {document["name"] for document in found} == {"mine"}
    assert err == ""


@pytest.mark.usefixtures("two_contexts")
def test_rbac_for_another_context_has_the_targets_that_name_none(
    krelay: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    context = {"name": "prod", "context": {"cluster": "c", "user": "u", "namespace": "live"}}
    server = {"name": "c", "cluster": {"server": "https://127.0.0.1"}}
    user = {"name": "u", "user": {}}
    entries = {"contexts": [context], "clusters": [server], "users": [user]}
    kubeconfig.write_text(json.dumps(entries))
    assert krelay("rbac", "--context", "prod", "--kubeconfig", str(kubeconfig)) == 0
    out, err = capsys.readouterr()
    found = {document["metadata"]["namespace"] for document in yaml.safe_load_all(out)}
    assert (found, err) == ({"live"}, "")
    assert krelay("rbac", "svc/web", "80", "--context", "nowhere") == 0
    assert "assuming the namespace `default`" in capsys.readouterr().err
    Path("krelay.yaml").write_text(
        "apiVersion: krelay/v1\ntargets:\n"
        "  a: {target: svc/a, port: 80, context: a}\n  b: {target: svc/b, port: 81, context: b}\n"
    )
    assert krelay("rbac", "--context", "nowhere") == 0
    assert capsys.readouterr().out.startswith("# no rights are needed")


Krelay = Callable[..., int]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The requests for objects; each namespace has a Service and a Deployment."""
    asked: list[tuple[Any, ...]] = []

    async def listed(namespaces: Any, context: str | None, path: None, kinds: list[str]) -> Any:
        asked.append((list(namespaces), context, kinds))
        items = {"services": [service("web", 80)], "deployments": [workload("Deployment", "job")]}
        return {name: [items.get(kind, []) for kind in kinds] for name in namespaces or ["own"]}

    monkeypatch.setattr(file_commands, "_list", listed)
    return asked


def test_import_converts_a_file_and_standard_input(
    krelay: Krelay, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("targets.txt").write_text("svc/web 8080:80\n")
    assert krelay("import", "targets.txt") == 0
    first = capsys.readouterr()
    assert krelay("import", "-", stdin=b"svc/web 8080:80\n") == 0
    second = capsys.readouterr()
    assert first.out.replace("targets.txt", "<stdin>") == second.out
    assert first.err == ""
    assert parse(second.out, "krelay.yaml", {}).targets[0].name == "web"


def test_import_prints_warnings_on_stderr(
    krelay: Krelay, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krelay("import", "-", stdin=b'[{"workload_type": "pod"}]') == 0
    out, err = capsys.readouterr()
    assert "warning" not in out
    assert err.startswith("warning: pod: it selects a pod by labels")
    assert err.endswith("warning: no target could be converted\n")


def test_import_refuses_unknown_formats(krelay: Krelay, capsys: pytest.CaptureFixture[str]) -> None:
    assert krelay("import", "missing") == 2
    for wrong in (b"[", b"{}", b"[]", b'[{"foo": 1}]'):
        assert krelay("import", "-", stdin=wrong) == 2
    assert krelay("import") == 2
    assert capsys.readouterr().out == ""


def test_import_kubefwd_converts_the_services_of_namespaces(
    krelay: Krelay, cluster: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert krelay("import", "kubefwd", "-n", "a", "-n", "b", "--context", "c") == 0
    assert cluster == [(["a", "b"], "c", ["services"])]
    config = parse(capsys.readouterr().out, "krelay.yaml", {})
    assert (len(config.targets), config.context) == (2, "c")


@pytest.mark.parametrize("offline", [True, False])
def test_import_without_a_cluster_notes_the_ports_of_pods(
    offline: bool,
    krelay: Krelay,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    export = b'[{"workload_type": "service", "service": "web", "remote_port": 80, "context": "c"}]'
    assert krelay("import", "-", *(["--offline"] if offline else []), stdin=export) == 0
    out, err = capsys.readouterr()
    assert parse(out, "krelay.yaml", {}).targets[0].context == "c"
    assert err.startswith("warning: web: 80 was the port of its pods; here it is the port of")
    assert ('no context "c" in kubeconfig' in err) is not offline


def test_an_empty_namespace_is_an_error(
    krelay: Krelay, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The name is probably misspelt, and an invented file would not help."""

    async def listed(namespaces: Any, context: str | None, path: None, kinds: list[str]) -> Any:
        return {name: [[] for _ in kinds] for name in namespaces}

    monkeypatch.setattr(file_commands, "_list", listed)
    assert krelay("init", "--from-namespace", "shpo") == 4
    assert 'namespace "shpo" has no Services' in capsys.readouterr().err
    assert not Path("krelay.yaml").exists()
    assert krelay("import", "kubefwd", "-n", "shpo") == 4
    out, err = capsys.readouterr()
    assert (out, "no Services in shpo" in err) == ("", True)


def test_init_overwrites_a_file_only_with_force(
    krelay: Krelay, cluster: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert krelay("init", "--context", "prod") == 0
    assert capsys.readouterr().out == (
        "krelay.yaml: written; next: `krelay add svc/NAME`, then `krelay up`\n"
    )
    assert krelay("check") == 2
    assert "`targets` is empty" in capsys.readouterr().err
    assert "\ncontext: prod\n" in Path("krelay.yaml").read_text()
    before = Path("krelay.yaml").read_text()
    assert before.startswith("# yaml-language-server: $schema=krelay.schema.json\n")
    assert json.loads(Path("krelay.schema.json").read_text())["title"] == "krelay.yaml"
    Path("krelay.schema.json").write_text("mine")
    assert krelay("init", "--from-namespace", "shop") == 2
    assert "hint: `--force` overwrites it" in capsys.readouterr().err
    assert Path("krelay.yaml").read_text() == before
    assert not cluster
    assert krelay("init", "-f", "other.yaml") == 0
    assert Path("krelay.schema.json").read_text() == "mine"
    assert krelay("init", "--from-namespace", "shop", "--context", "prod", "--force") == 0
    assert "written; next: `krelay check`, then" in capsys.readouterr().out
    assert krelay("check") == 0
    assert Path("krelay.schema.json").read_text() == schema_text()
    text = Path("krelay.yaml").read_text()
    assert "\ncontext: prod\nnamespace: shop\n" in text
    assert text.startswith("# yaml-language-server: $schema=krelay.schema.json\n")
    assert "  web: svc/web 8080:80\n" in text
    assert "  # job: deploy/job :PORT\n" in text
    assert krelay("init", "-f", "my other.yaml") == 0
    assert "`krelay add -f 'my other.yaml' svc/NAME`, then" in capsys.readouterr().out
    assert krelay("init", "-f", "no/such/directory.yaml") == 2
