"""`krelay add` and `krelay remove`."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from krelay.cli.edit import ports, targets, write
from krelay.cli.options import Cluster
from krelay.config import edit, load, schema_text
from krelay.errors import NotFoundError, UnreachableError, UsageError
from tests import rig
from tests.cli.asked import answering
from tests.integration.product import ROOT, environment, run, up

Krelay = Callable[..., int]

HEAD = "apiVersion: krelay/v1\n"
TEXT = HEAD + "# mine\ntargets:\n  web: svc/web 8080:80  # the page\n"


@pytest.fixture
def file(krelay: Krelay) -> Path:
    """Write a file where `krelay` runs."""
    path = Path("krelay.yaml")
    path.write_text(TEXT)
    return path


def test_add_writes_a_line_and_leaves_the_rest(
    krelay: Krelay, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.chmod(0o640)
    assert krelay("add", "-n", "data", "statefulset/db", "5432") == 0
    assert file.read_text() == TEXT + "  db: -n data sts/db 5432\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "krelay.yaml: added db: -n data sts/db 5432\n"
        "krelay is not running for krelay.yaml: `krelay up` relays it\n"
    )
    assert krelay("add", "--name", "dns", "svc/kube-dns", ":53/udp", ":53/tcp") == 0
    assert file.read_text().endswith("  dns: svc/kube-dns :53/udp :53/tcp\n")
    assert krelay("add", "host/redis.example.com", "6379", "--context", "prod") == 0
    assert file.read_text().endswith(
        "  redis: {target: host/redis.example.com, ports: [6379], context: prod}\n"
    )
    assert krelay("add", "ip/10.0.0.1", "1:2", "-n", "x", "--context", "prod") == 0
    assert "\n  10.0.0.1: {target: ip/10.0.0.1, ports: ['1:2'], " in file.read_text()


def test_add_makes_a_missing_file(krelay: Krelay, capsys: pytest.CaptureFixture[str]) -> None:
    assert krelay("add", "svc/web", "8080:80", "--context", "prod") == 0
    text = Path("krelay.yaml").read_text()
    assert "\ncontext: prod\n" in text
    assert text.endswith("\n  web: svc/web 8080:80\n")
    assert Path("krelay.schema.json").read_text() == schema_text()
    assert krelay("check") == 0
    assert krelay("add", "svc/web", "80", "-f", "new.txt") == 0
    assert Path("new.txt").read_text() == "svc/web 80\n"
    capsys.readouterr()
    assert krelay("add", "svc/web", "80", "-f", "no/such/file.yaml") == 2
    assert "cannot write no/such/file.yaml: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["targets:\n", "targets: {}\n", ""])
def test_add_mends_a_file_without_targets(text: str, krelay: Krelay) -> None:
    Path("krelay.yml").write_text(HEAD + text)
    assert krelay("add", "svc/web", "80") == 0
    assert [target.name for target in load("krelay.yml", environ={}).targets] == ["web"]
    assert not Path("krelay.yaml").exists()


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        ([], "TYPE/NAME is required", "`krelay add svc/web 8080:80`"),
        (["svc/web", "1"], "krelay.yaml has a target `web` already", "with `--name`"),
        (["svc/x", "8080:1"], "`127.0.0.1:8080/tcp` is taken by target `web`", "one: `:1`"),
        (["svc/x", "--name", "A b", "1"], "`A b` cannot be the name of a target", "lower-case"),
        (["svc/x", "99999"], "out of range", "65535"),
        (["nope/x", "1"], "`nope`", "svc"),
        (["svc/x", "1", "-n", "A_B"], "cannot be a namespace", "lower-case"),
        (["host/x"], "`host/x` has no port", "`krelay add host/x 8080:80`"),
    ],
)
def test_a_target_that_cannot_be_added_changes_nothing(
    args: list[str],
    message: str,
    hint: str,
    krelay: Krelay,
    file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = file.stat()
    assert krelay("add", *args) == 2
    err = capsys.readouterr().err
    assert message in err
    assert hint in err.partition("hint: ")[2]
    assert file.read_text() == TEXT
    assert file.stat().st_ino == before.st_ino
    assert os.listdir() == ["krelay.yaml"]


def test_only_a_valid_file_is_edited(
    krelay: Krelay, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(HEAD + "nonsense: 1\n")
    assert krelay("add", "svc/x", "1") == 2
    assert "krelay.yaml:2:1: unknown key `nonsense`" in capsys.readouterr().err
    file.write_text(TEXT + "nonsense: 1\n")
    assert krelay("add", "svc/x", "1") == 2
    assert "unknown key `nonsense`" in capsys.readouterr().err
    assert krelay("add", "svc/x", "1", "-f", "-") == 2
    assert "only a file can be edited" in capsys.readouterr().err
    file.write_text(HEAD)
    assert krelay("remove", "a") == 2


def test_an_edit_that_does_more_than_it_should_is_not_written(
    krelay: Krelay, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(TEXT + "  b: svc/b 1\n")
    before = file.read_text()
    monkeypatch.setattr(
        edit, "insert", lambda text, *_: text.replace("8080", "1") + "  x: svc/x 1\n"
    )
    assert krelay("add", "svc/x", "1") == 2
    monkeypatch.setattr(edit, "remove", lambda text, *_: TEXT.replace("8080", "1"))
    assert krelay("remove", "b") == 2
    assert file.read_text() == before


def test_a_targets_txt_gets_a_line(krelay: Krelay, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("t.txt")
    path.write_text("# mine\nsvc/a 80")
    assert krelay("add", "-f", "t.txt", "svc/b", "81", "-n", "shop") == 0
    assert path.read_text() == "# mine\nsvc/a 80\nsvc/b 81 -n shop\n"
    assert krelay("add", "-f", "t.txt", "svc/b", "81", "-n", "shop") == 2
    assert "has the line `svc/b 81 -n shop` already" in capsys.readouterr().err
    assert krelay("add", "-f", "t.txt", "svc/b", "82", "--name", "b") == 2
    assert "hint: `krelay import t.txt` makes a krelay.yaml" in capsys.readouterr().err


def test_remove_deletes_the_lines_of_a_target(
    krelay: Krelay, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krelay("add", "svc/b", "81") == 0
    assert krelay("remove", "b") == 0
    assert file.read_text() == TEXT
    assert "krelay.yaml: removed b" in capsys.readouterr().err
    assert krelay("remove", "wbe") == 2
    assert "hint: did you mean `web`?" in capsys.readouterr().err
    assert krelay("remove", "web") == 2
    assert "`web` is the only target of krelay.yaml" in capsys.readouterr().err
    assert file.read_text() == TEXT


# -- ports of the cluster --------------------------------------------------------------------------


def answer(monkeypatch: pytest.MonkeyPatch, item: Any) -> list[tuple[Any, ...]]:
    """Have the cluster answer with this object, or fail with this error."""
    asked: list[tuple[Any, ...]] = []

    async def get(target: Any, config: Any, kubeconfig: Any) -> Any:
        asked.append((target.context or config.context, target.namespace, kubeconfig))
        if isinstance(item, Exception):
            raise item
        return item

    monkeypatch.setattr(ports, "_get", get)
    return asked


SERVICE = {
    "spec": {
        "ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}, {"port": 9, "protocol": "SCTP"}]
    }
}
POD = {"containers": [{"ports": [{"containerPort": 8080}]}, {}]}


@pytest.mark.parametrize(
    ("target", "item", "line"),
    [
        ("svc/x", SERVICE, "svc/x 8081:80 10053:53/udp"),
        ("pod/x", {"spec": POD}, "pod/x 8081:8080"),
        ("deploy/x", {"spec": {"template": {"spec": POD}}}, "deploy/x 8081:8080"),
    ],
)
def test_ports_left_out_are_those_of_the_object(
    target: str,
    item: Any,
    line: str,
    krelay: Krelay,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file.write_text(TEXT.replace("# mine", "context: prod\ndefaults: {namespace: shop}"))
    asked = answer(monkeypatch, item)
    assert krelay("add", target, "--kubeconfig", "k") == 0
    assert asked == [("prod", "shop", "k")]
    assert file.read_text().endswith(f"  x: {line}\n")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"spec": {}}, "`svc/x` declares no ports"),
        ({}, "cannot look up the ports of `svc/x`"),
        (UnreachableError("no server"), "cannot look up the ports of `svc/x`: no server"),
        (TimeoutError(), "no answer within 10 s"),
        (NotFoundError("no such thing"), "no such thing"),
    ],
)
def test_ports_that_cannot_be_looked_up_are_asked_for(
    item: Any,
    message: str,
    krelay: Krelay,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer(monkeypatch, item)
    code = NotFoundError.exit_code if isinstance(item, NotFoundError) else UsageError.exit_code
    assert krelay("add", "-f", "krelay.yaml", "svc/x") == code
    err = capsys.readouterr().err
    assert message in err
    assert "name them: `krelay add -f krelay.yaml svc/x 8080:80`" in err
    assert file.read_text() == TEXT


# -- writing ---------------------------------------------------------------------------------------


def test_a_link_to_the_file_stays(krelay: Krelay, tmp_path: Path) -> None:
    real = tmp_path / "real" / "file.yaml"
    real.parent.mkdir()
    real.write_text(TEXT)
    Path("krelay.yaml").symlink_to(real)
    assert krelay("add", "svc/x", "1") == 0
    assert Path("krelay.yaml").is_symlink()
    assert real.read_text() == TEXT + "  x: svc/x 1\n"
    assert os.listdir(real.parent) == ["file.yaml"]


def test_an_edit_of_another_program_is_not_lost(file: Path) -> None:
    with pytest.raises(UsageError, match="has changed meanwhile"):
        write.replace(str(file), b"something else", b"new")
    assert file.read_text() == TEXT
    with pytest.raises(UsageError, match="krelay.yaml has changed meanwhile"):
        write.create(str(file), b"new")
    assert os.listdir() == ["krelay.yaml"]
    with pytest.raises(UsageError, match="cannot write missing: no such file"):
        write.replace("missing", b"", b"new")


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_has_its_content_from_the_beginning(
    links: bool, krelay: Krelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, found = os.link, []

    def link(source: str, path: str) -> None:
        if not links:
            raise OSError(errno.EPERM, "no links here")
        found.append((Path(source).read_text(), os.path.lexists(path)))
        real(source, path)

    monkeypatch.setattr(os, "link", link)
    write.create("krelay.yaml", b"new")
    assert found == ([("new", False)] if links else [])
    assert Path("krelay.yaml").read_text() == "new"
    with pytest.raises(UsageError, match="krelay.yaml has changed meanwhile"):
        write.create("krelay.yaml", b"newer")
    assert os.listdir() == ["krelay.yaml"]
    with pytest.raises(UsageError, match="cannot write krelay.yaml/x: "):
        write.create("krelay.yaml/x", b"new")


def test_an_edit_begins_again_if_another_program_edits_the_file(
    krelay: Krelay,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    insert, edits = edit.insert, iter(range(100))

    def beside(*args: Any) -> str:
        text = insert(*args)
        if next(edits) < most:
            file.write_text(file.read_text() + f"  other{next(edits)}: svc/other :1\n")
        return text

    monkeypatch.setattr(edit, "insert", beside)
    most = 4
    assert krelay("add", "svc/x", "1") == 0
    names = [target.name for target in load(str(file), environ={}).targets]
    assert names == ["web", "other1", "other3", "x"]
    most = 1_000
    assert krelay("add", "svc/y", ":1") == 2
    assert "krelay.yaml has changed meanwhile\n  hint: try again" in capsys.readouterr().err
    assert "svc/y" not in file.read_text()


def test_an_edit_waits_for_another_one_but_only_so_long(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "_LOCK_DEADLINE", 0.05)
    folder = os.open(".", os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    write.replace(str(file), TEXT.encode(), b"new")
    os.close(folder)
    assert file.read_text() == "new"


def test_a_folder_that_cannot_be_locked_is_written_to(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    write.replace(str(file), TEXT.encode(), b"new")
    assert file.read_text() == "new"


EACH = """
import os, sys
from krelay.cli import main
from krelay.cli.edit import targets
from krelay.config import parse
go, number = int(sys.argv[1]), sys.argv[2]
os.read(go, 1)
sys.argv = ["krelay", "add", f"svc/s{number}", f":{number}"]
sys.exit(main.main())
"""


@pytest.mark.process
@pytest.mark.parametrize("new", [False, True])
async def test_edits_at_the_same_time_are_all_in_the_file(new: bool, tmp_path: Path) -> None:
    path = tmp_path / "krelay.yaml"
    if not new:
        path.write_text(TEXT)
    go, start = os.pipe()
    environ = environment(PYTHONPATH=str(ROOT))
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", EACH, str(go), str(number)),
            cwd=tmp_path,
            env=environ,
            pass_fds=(go,),
            stderr=asyncio.subprocess.PIPE,
        )
        for number in range(1, 6)
    ]
    os.close(go)
    os.close(start)  # each one reads the end now
    for process in processes:
        _, err = await process.communicate()
        assert process.returncode == 0, err
    config = await asyncio.to_thread(load, str(path), environ={})
    names = {target.name for target in config.targets}
    assert names == {f"s{number}" for number in range(1, 6)} | (set() if new else {"web"})


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EACCES])
def test_a_file_that_cannot_be_replaced_is_overwritten_if_it_is_a_mount(
    code: int, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, "no")

    monkeypatch.setattr(os, "replace", fail)
    if code == errno.EBUSY:
        write.replace(str(file), TEXT.encode(), b"short")
        assert file.read_text() == "short"
    else:
        with pytest.raises(UsageError, match="cannot write krelay.yaml: no"):
            write.replace(str(file), TEXT.encode(), b"short")
        assert file.read_text() == TEXT
    assert os.listdir() == ["krelay.yaml"]


def test_a_temporary_file_that_cannot_be_written_is_removed(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="no space left"):
        write.replace(str(file), TEXT.encode(), b"short")
    assert os.listdir() == ["krelay.yaml"]


def test_the_owner_of_the_file_stays(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.getuid():
        pytest.skip("only root may change owners")
    os.chown(file, 1234, 1234)
    write.replace(str(file), TEXT.encode(), b"new")
    assert (file.stat().st_uid, file.stat().st_gid) == (1234, 1234)


# -- a running krelay ------------------------------------------------------------------------------


@pytest.mark.process
async def test_a_running_krelay_relays_an_added_target_at_once(tmp_path: Path) -> None:
    path = tmp_path / "krelay.yaml"
    async with (
        rig.tcp_target(rig.echo) as port,
        up(path, {"web": f"ip/127.0.0.1 :{port}"}, args=("--no-watch",)) as running,
    ):
        done = await run("add", "-f", str(path), "ip/127.0.0.1", f":{port}", "--name", "two")
        assert done.code == 0, done.err
        name, _, rest = done.out.partition(": ")
        local, arrow, to = rest.strip().partition(" -> ")
        assert (name, arrow, to) == ("two", " -> ", f"ip/127.0.0.1:{port} (tcp)")
        assert await rig.exchange(int(local.rpartition(":")[2]), b"hello") == b"hello"
        closed = rig.closed_port()
        done = await run(
            *("add", "-f", str(path), "ip/127.0.0.1", f":{closed}"),
            *("--name", "three", "--timeout", "4s"),
        )
        assert done.code == 3
        assert done.out.startswith("three: 127.0.0.1:")
        assert "three: failed: refused" in done.err
        done = await run("remove", "-f", str(path), "three")
        assert done.code == 0
        done = await run("status", "-f", str(path), "--output", "json")
        assert {found["target"] for found in json.loads(done.out)["forwards"]} == {"web", "two"}
        assert await running.stop() == 0


async def added(name: str, timeout: float = 30.0) -> int:
    """Add a target while this process answers as the running krelay."""
    given = (None, (f"svc/{name}", "1"), None, Cluster())
    return await asyncio.to_thread(targets.add, *given, timeout=timeout)


async def test_add_prints_each_address_once_all_are_ready(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states = iter(["pending", "pending", "ready", "ready"])

    def status(body: Mapping[str, Any]) -> Any:
        since = "2026-01-01T00:00:00+00:00"
        listen = ["127.0.0.1:1", "[::1]:1"]
        known = {"target": "x", "index": 0, "name": "x", "to": "svc/x:1", "protocol": "tcp"}
        return {"forwards": [{**known, "state": next(states), "since": since, "listen": listen}]}

    async with answering(file, POST_reload=lambda body: {"changes": []}, GET_status=status):
        assert await added("x") == 0
        out = capsys.readouterr().out
        assert out == "x: 127.0.0.1:1 -> svc/x:1 (tcp)\nx: [::1]:1 -> svc/x:1 (tcp)\n"


async def test_a_krelay_that_relays_other_targets_only_is_reported(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def status(body: Mapping[str, Any]) -> Any:
        return {"forwards": []}

    async with answering(file, POST_reload=lambda body: {"changes": []}, GET_status=status):
        assert await added("x") == 0
    assert "krelay relays only some targets of krelay.yaml, without x" in capsys.readouterr().err
