"""The wheel, built and installed as a user gets it, away from this checkout."""

from __future__ import annotations

import asyncio
import configparser
import email
import json
import os
import signal
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests import rig
from tests.integration.product import document, environment, relays_to_echo

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[1]

# No .pth file is read (-S), so that nothing but the wheel and its dependencies is there.
RUN = f"""
import runpy, sys
sys.path[:0] = [sys.argv.pop(1)]
sys.path.append({sysconfig.get_path("purelib")!r})
{{}}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel; built without a network, and without a trace in the checkout."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the wheel is installed, alone."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run(
        [*pip, "--disable-pip-version-check", "--target", folder, wheel],
        check=True,
        capture_output=True,
    )
    return folder


def command(installed: Path, code: str, *args: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", RUN.format(code), str(installed), *args]


def run(installed: Path, code: str, *args: str) -> str:
    """What code prints there."""
    done = subprocess.run(
        command(installed, code, *args),
        cwd=installed,
        env=environment(),
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


KRELAY = "runpy.run_module('krelay', run_name='__main__', alter_sys=True)"


def test_the_wheel_has_what_belongs_in_it_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        scripts = configparser.ConfigParser()
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        scripts.read_string(archive.read(entry_points).decode())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        extras = email.message_from_bytes(archive.read(metadata)).get_all("Provides-Extra")
    assert {"speed", "pytest"} <= set(extras or ())
    assert dict(scripts["console_scripts"])["krelay"] == "krelay.cli.entry:krelay"
    assert dict(scripts["pytest11"]) == {"krelay": "krelay.pytest_plugin"}
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"krelay"}
    assert "krelay/schema/krelay.schema.json" in names
    assert "krelay/status/dashboard.html" in names
    assert "krelay/py.typed" in names
    assert "krelay/schema/status.schema.json" in names
    packed = {name for name in names if name.endswith(".py")}
    source = {str(path.relative_to(ROOT)) for path in (ROOT / "krelay").rglob("*.py")}
    agent = {f"krelay/_agent/{path.name}" for path in (ROOT / "agent").glob("*.py")}
    assert packed == source | agent
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_the_agent_travels_with_it_and_is_no_module_of_its_own(installed: Path) -> None:
    found = json.loads(
        run(
            installed,
            "import importlib.util, json\nfrom krelay import payload\n"
            "print(json.dumps([importlib.util.find_spec('agent') is None,"
            " payload.__file__, payload.sources()]))",
        )
    )
    alone, file, sources = found
    assert alone
    assert Path(file).parent.parent == installed
    for path in (ROOT / "agent").glob("*.py"):
        assert sources[f"agent/{path.name}"] == path.read_text()


def test_the_schema_and_the_example_are_understood_there(installed: Path) -> None:
    schema = ROOT / "schema" / "krelay.schema.json"
    assert json.loads(run(installed, KRELAY, "schema")) == json.loads(schema.read_text())
    example = ROOT / "krelay.yaml.example"
    assert run(installed, KRELAY, "check", str(example)).startswith(f"{example}: ok, ")


def test_the_console_script_runs(installed: Path) -> None:
    done = subprocess.run(
        [installed / "bin" / "krelay", "--version"],
        env=environment(PYTHONPATH=str(installed)),
        text=True,
        capture_output=True,
        check=True,
    )
    assert done.stdout.startswith("krelay ")


@pytest.mark.parametrize("extra", ["", "import sys; sys.modules['aiofastnet'] = None\n"])
async def test_it_relays_from_there_with_the_agent_that_it_carries(
    installed: Path, tmp_path: Path, extra: str
) -> None:
    """With the extra `speed` and without it."""
    async with rig.tcp_target(rig.echo) as target:
        file = tmp_path / "krelay.yaml"
        await asyncio.to_thread(file.write_text, document({"web": f"ip/127.0.0.1 :{target}"}))
        process = await asyncio.create_subprocess_exec(
            *command(installed, extra + KRELAY, "up", "-f", str(file)),
            cwd=installed,
            env={**environment(), "PATH": os.environ["PATH"]},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        await relays_to_echo(process, signal.SIGTERM)
