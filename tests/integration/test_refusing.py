"""What `krelay up` says no to, before it starts anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import rig
from tests.integration.product import document, listens, run, up

pytestmark = pytest.mark.process

NOTHING = {"web": "ip/127.0.0.1 :9"}


async def write(folder: Path, text: str) -> str:
    path = folder / "krelay.yaml"
    path.write_text(text)
    return str(path)


async def test_all_problems_of_a_file_and_nothing_started(tmp_path: Path) -> None:
    port = rig.closed_port()
    file = await write(
        tmp_path,
        document({"web": f"ip/127.0.0.1 {port}:9", "bad": "ip/nowhere 80", "worse": "svc/x 99999"}),
    )
    done = await run("up", "-f", file)
    assert (done.code, done.out) == (2, "")
    assert f"{file}:5:" in done.err
    assert f"{file}:6:" in done.err
    assert "agent" not in done.err
    assert not listens(port)


async def test_no_file_names_the_command_that_writes_one(tmp_path: Path) -> None:
    done = await run("up", cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert "`krelay init` writes one" in done.err


async def test_an_unknown_target_says_which_there_are(tmp_path: Path) -> None:
    done = await run("up", "-f", await write(tmp_path, document(NOTHING)), "wbe")
    assert (done.code, done.out) == (2, "")
    assert "has no target `wbe`" in done.err
    assert "hint: did you mean `web`?" in done.err


async def test_embedded_with_a_cluster_s_target(tmp_path: Path) -> None:
    text = "apiVersion: krelay/v1\ntargets:\n  web: svc/web 8080:80\n"
    file = await write(tmp_path, text)
    done = await run("up", "--embedded", "-f", file)
    assert (done.code, done.out) == (2, "")
    assert f"{file}:3:3: `svc/web` is in a cluster, but the agent is embedded" in done.err


async def test_only_the_ports_in_use_are_left(tmp_path: Path) -> None:
    async with rig.tcp_target(rig.echo) as taken:
        file = await write(tmp_path, document({"web": f"ip/127.0.0.1 {taken}:9"}))
        done = await run("up", "-f", file)
    assert (done.code, done.out) == (1, "")
    assert f"error: cannot listen on 127.0.0.1:{taken}: Address already in use" in done.err
    assert "  hint: stop the program that uses it, or choose another local port" in done.err
    assert "Traceback" not in done.err


async def test_a_file_on_standard_input_and_some_of_its_targets(tmp_path: Path) -> None:
    async with rig.tcp_target(rig.echo) as target:
        targets = {"web": f"ip/127.0.0.1 :{target}", "other": f"ip/127.0.0.1 :{target}"}
        async with up(
            tmp_path / "krelay.yaml", targets, args=("other",), lines=1, piped=True
        ) as krelay:
            assert list(krelay.ports) == ["other"]
            assert krelay.out.count("\n") == 1
            assert await krelay.stop() == 0


@pytest.mark.parametrize("text", ["", "targets: [", "\x00"])
async def test_nonsense_on_standard_input(text: str) -> None:
    done = await run("up", "-f", "-", stdin=text.encode())
    assert (done.code, done.out) == (2, "")
    assert "<stdin>" in done.err


async def test_no_color_and_no_terminal_mean_no_escapes(tmp_path: Path) -> None:
    no_color: dict[str, Any] = {"NO_COLOR": "1"}
    for environ in ({}, no_color):
        done = await run("up", "-f", "nope.yaml", cwd=tmp_path, **environ)
        assert done.code == 2
        assert "\x1b" not in done.err


async def test_a_client_that_retries_does_not_fill_the_log(tmp_path: Path) -> None:
    async with up(
        tmp_path / "krelay.yaml", {"web": f"ip/127.0.0.1 :{rig.closed_port()}"}
    ) as krelay:
        for _ in range(30):
            # The reset may come before this loop has seen that it is connected.
            with pytest.raises(ConnectionError):
                async with rig.connect(krelay.ports["web"]) as (reader, _):
                    await reader.read()
        await krelay.stop()
    told = [line for line in krelay.err.splitlines() if "Connection refused" in line]
    assert len(told) <= 4, told
    assert " (29 more in the last " in told[-1]
