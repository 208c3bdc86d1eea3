"""Rules for every test: no blocking call on the loop, no task left behind, no stray warning."""

from __future__ import annotations

import asyncio
import gc
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from inspect import isasyncgenfunction, iscoroutinefunction
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from blockbuster import BlockBuster, BlockBusterFunction, blockbuster_ctx
from coverage import Coverage

from krelay.net.engine import VARIABLE, choose
from tests.signals import unignore

# A busy machine makes no example wrong.
hypothesis.settings.register_profile(
    "krelay", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("krelay")


def pytest_configure() -> None:
    unignore()
    # Else a plugin that asks for the current loop makes one, and no one closes it.
    asyncio.set_event_loop(None)


def pytest_xdist_auto_num_workers() -> int:
    """Tests wait for clocks and processes more than they compute."""
    return 2 * (os.cpu_count() or 1)


def pytest_collection_finish() -> None:
    """What was imported stays: a collection after each test need not look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def runtime_directory() -> Iterator[Path]:
    """Where sockets go, also those of programs that tests start: short, as their paths must be."""
    with (
        tempfile.TemporaryDirectory(prefix="kr-") as directory,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("XDG_RUNTIME_DIR", directory)
        patch.setenv("XDG_STATE_HOME", f"{directory}/state")
        yield Path(directory)


@pytest.fixture(autouse=True, scope="session")
def prompt_ends() -> Iterator[None]:
    """An agent in a test's own process stops at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agent.server._LAST_CALL", 0.0)
        yield


@pytest.fixture(autouse=True, scope="session")
def blockbuster() -> Iterator[BlockBuster]:
    """A call that blocks while the loop runs fails the test, where it is made by krelay itself."""
    with blockbuster_ctx(["krelay", "agent"]) as blockbuster:
        # /proc is memory: it answers at once.
        blockbuster.functions["os.stat"].can_block_in("krelay/mux/descriptors.py", {"open_files"})
        _spare_coverage(blockbuster.functions["threading.Lock.acquire"])
        yield blockbuster


def _spare_coverage(acquire: BlockBusterFunction) -> None:
    """Coverage locks its data at each call of a function; to look at the stack each time takes
    several times as long as the tests."""
    measuring = Coverage.current()
    if measuring is not None and measuring._collector is not None:
        own, known = measuring._collector.data_lock, acquire.can_block_predicate
        acquire.deactivate()
        acquire.can_block_predicate = lambda lock, *args, **kw: (
            lock is own or known(lock, *args, **kw)
        )
        acquire.activate()


@pytest.fixture(params=["asyncio", "aiofastnet"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The engine of the connections to the cluster: a test with this fixture runs on both."""
    name: str = request.param
    monkeypatch.setenv(VARIABLE, "asyncio" if name == "asyncio" else "auto")
    monkeypatch.setattr("krelay.net.engine._chosen", None)
    if not choose().name.startswith(name):
        lack = choose().reason or "aiofastnet is not installed"
        assert not os.environ.get("KRELAY_TEST_ALL"), lack
        pytest.skip(lack)
    return name


@pytest.fixture
def blocking_calls(blockbuster: BlockBuster) -> Iterator[None]:
    """A loop that hangs is what this test is about."""
    blockbuster.deactivate()
    yield
    blockbuster.activate()


@pytest.fixture(autouse=True, scope="module")
def survivors_stay() -> Iterator[None]:
    """What a module left is in use: the collections after later tests need not look at it."""
    yield
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def programs() -> Iterator[list[str]]:
    """The programs in Python that a test has started."""
    started: list[str] = []
    real = subprocess.Popen.__init__

    def start(self: subprocess.Popen[Any], args: Any, *more: Any, **options: Any) -> None:
        if not isinstance(args, str) and sys.executable in args:
            started.append(shlex.join(map(str, args)))
        real(self, args, *more, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", start)
        yield started


@pytest.fixture(autouse=True)
def marked(request: pytest.FixtureRequest, programs: list[str]) -> Iterator[None]:
    """A test that starts a program in Python says so: `make test-fast` leaves it out."""
    programs.clear()
    yield
    if not any(map(request.node.get_closest_marker, ("process", "browser", "e2e"))):
        assert not programs, "no `process` mark"


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest, survivors_stay: None) -> Iterator[None]:
    """What a test forgot in a cycle warns in that test. Only a test with a loop has tasks."""
    if _has_loop(request.node):
        request.getfixturevalue("no_leaked_tasks")
    yield
    gc.collect()


def _has_loop(item: pytest.Function) -> bool:
    definitions = item._fixtureinfo.name2fixturedefs.values()
    functions = item.function, *(each[-1].func for each in definitions)
    return any(map(iscoroutinefunction, functions)) or any(map(isasyncgenfunction, functions))


@pytest.fixture
async def no_leaked_tasks() -> AsyncIterator[None]:
    """Fail an async test that leaves tasks behind."""
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0)
    mine = asyncio.current_task()
    leaked = [t for t in asyncio.all_tasks() - before if t is not mine and not t.done()]
    for task in leaked:
        task.cancel()
    await asyncio.gather(*leaked, return_exceptions=True)
    assert not leaked, f"tasks left behind: {leaked}"
