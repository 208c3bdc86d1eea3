"""examples/shop as its README says: backends, tests with and without `krelay run`, an edit."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e import kit

SHOP = kit.ROOT / "examples" / "shop"
IMAGE = "krelay.test/tools:1"
"""Has a redis-server, and is on the cluster's node."""
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
KRELAY = (sys.executable, "-m", "krelay")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A clone of the sample, but for its local ports, which must be free here."""
    folder = tmp_path / "shop"
    shutil.copytree(SHOP, folder, ignore=shutil.ignore_patterns("__pycache__", ".pytest_cache"))
    file = folder / "krelay.yaml"
    file.write_text(re.sub(r"\$\{(REDIS|STATS)_PORT:-\d+\}:", ":", file.read_text()))
    return folder


def run(shop: Path, *command: str, **environ: str) -> str:
    """Run a command in the sample; return both of its output streams."""
    done = subprocess.run(
        command,
        cwd=shop,
        env={**os.environ, "PYTEST_ADDOPTS": "", "PYTHONPATH": str(kit.ROOT), **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_sample_is_tested_both_ways_and_edited(
    namespace: Callable[..., str], shop: Path
) -> None:
    place = namespace()
    for manifest in sorted((shop / "k8s").iterdir()):
        text = manifest.read_text().replace("redis:7-alpine", IMAGE)
        kit.kubectl("apply", "-n", place, "-f", "-", stdin=text)
    for name in ("redis", "stats"):
        kit.kubectl("-n", place, "rollout", "status", f"deploy/{name}", "--timeout=170s")

    found = run(shop, *KRELAY, "run", "--", *PYTEST, SHOP_NAMESPACE=place)
    assert "4 passed" in found
    found = run(shop, *PYTEST, "--krelay-required", SHOP_NAMESPACE=place)
    assert "4 passed" in found
    kit.assert_no_agents(place)

    file = shop / "krelay.yaml"
    environ = {"SHOP_NAMESPACE": place}
    with kit.Krelay("up", "-f", str(file), environ=environ).wait_lines(3) as krelay:
        with kit.dial(krelay.address("redis")) as redis:
            assert ping(redis)
            edited = file.with_name("krelay.yaml.new")
            edited.write_text(f"{file.read_text()}  again: svc/redis :6379\n")
            edited.rename(file)
            krelay.wait_lines(4)
            assert ping(redis)
        with kit.dial(krelay.address("again")) as redis:
            assert ping(redis)
    kit.assert_no_agents(place)


def ping(redis: socket.socket) -> bool:
    redis.sendall(b"PING\r\n")
    return redis.recv(100) == b"+PONG\r\n"


def test_the_compose_file_is_valid() -> None:
    if not shutil.which("docker-compose"):
        pytest.skip("no docker-compose")
    run(SHOP, "docker-compose", "config", "--quiet")
