"""`krelay plan` and `krelay reload`, with a krelay that runs and without."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import rig
from tests.integration.product import run, up

GOOD = "apiVersion: krelay/v1\nagent: {embedded: true}\ntargets:\n  web: ip/127.0.0.1 8080:80\n"


@pytest.fixture(autouse=True)
def file(krelay: Callable[..., int]) -> None:
    """A file in the directory that `krelay` runs in."""
    Path("krelay.yaml").write_text(GOOD)


def test_where_none_runs_all_would_start(
    krelay: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert krelay("plan") == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "+ agent: added embedded",
        "+ web: added 127.0.0.1:8080 -> ip/127.0.0.1:80",
    ]
    assert err == "no krelay runs krelay.yaml; this is what `krelay up` would start:\n"
    assert krelay("plan", "--exit-code", "--output", "json") == 3
    found = json.loads(capsys.readouterr().out)
    assert [change["change"] for change in found["changes"]] == ["added", "added"]
    Path("other.txt").write_text("svc/a 1\nsvc/b 2\n")
    assert krelay("plan", "other.txt") == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_there_is_nothing_to_reload(
    krelay: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert krelay("reload") == 1
    assert capsys.readouterr().err == (
        "error: no krelay runs for krelay.yaml\n  hint: start one: `krelay up -f krelay.yaml`\n"
    )


def test_a_plan_is_for_a_file(
    krelay: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert krelay("plan", "-f", "-") == 2
    assert "hint: write `krelay plan -`" in capsys.readouterr().err
    Path("krelay.yaml").write_text("nonsense")
    assert krelay("plan") == 2
    assert krelay("plan", "missing.yaml") == 2
    Path("krelay.yaml").unlink()
    for command in ("plan", "reload"):
        assert krelay(command) == 2


async def test_one_that_runs(tmp_path: Path) -> None:
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
            assert f"already (pid {running.process.pid}, since 2" in second.err
            assert await running.stop() == 0
