"""Rules for every test: no blocking call on the loop, no task left behind, no stray warning."""

from __future__ import annotations

import asyncio
import gc
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

from tests.signals import unignore


def pytest_configure() -> None:
    unignore()


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
        yield Path(directory)


@pytest.fixture(autouse=True, scope="session")
def prompt_ends() -> Iterator[None]:
    """An agent in a test's own process stops at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agent.server._LAST_CALL", 0.0)
        yield


@pytest.fixture(autouse=True)
def no_blocking_calls() -> Iterator[BlockBuster]:
    """A call that blocks while the loop runs fails the test, where it is made by krelay itself."""
    with blockbuster_ctx(["krelay", "agent"]) as blockbuster:
        # /proc is memory: it answers at once.
        blockbuster.functions["os.stat"].can_block_in("krelay/mux/descriptors.py", {"open_files"})
        yield blockbuster


@pytest.fixture(autouse=True)
async def no_leaked_tasks(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Tasks that outlive an async test were nobody's: that is a leak."""
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0)
    mine = asyncio.current_task()
    leaked = [t for t in asyncio.all_tasks() - before if t is not mine and not t.done()]
    for task in leaked:
        task.cancel()
    await asyncio.gather(*leaked, return_exceptions=True)
    gc.collect()
    assert not leaked, f"tasks left behind: {leaked}"
