"""`krelay up` before it starts anything; what it does then is in tests/integration."""

from __future__ import annotations

import io
import sys

import pytest

from krelay.cli import up as module
from krelay.cli.up import run
from krelay.errors import ConfigError, UsageError
from krelay.model import AgentConfig, Config, Kind, Port, Target
from krelay.supervisor import Supervisor

WEB = Target("web", Kind.SERVICE, "web", (Port(80, 8080),), line=3)
DB = Target("db", Kind.STATEFULSET, "postgres", (Port(5432, 5432),), line=4)
HOST = Target("cache", Kind.HOST, "redis.test", (Port(6379, 6379),), line=5)
CONFIG = Config((WEB, DB, HOST), path="krelay.yaml")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configs that a supervisor was to run; none is."""
    configs: list[Config] = []

    async def note(supervisor: Supervisor, stop: object) -> None:
        configs.append(supervisor._config)

    monkeypatch.setattr(Supervisor, "run", note)
    return configs


def test_all_targets_where_none_is_named(started: list[Config]) -> None:
    assert run(CONFIG, ()) == 0
    assert started == [CONFIG]


def test_those_named_in_the_file_s_order(started: list[Config]) -> None:
    assert run(CONFIG, ("cache", "web", "web")) == 0
    assert started[0].targets == (WEB, HOST)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("wbe", "did you mean `web`?"), ("nothing", "it has: web, db, cache")],
)
def test_a_name_that_the_file_has_not(name: str, hint: str, started: list[Config]) -> None:
    with pytest.raises(UsageError, match=f"krelay.yaml has no target `{name}`") as caught:
        run(CONFIG, ("web", name))
    assert caught.value.hint == hint
    assert not started


def test_an_embedded_agent_reaches_no_cluster(started: list[Config]) -> None:
    with pytest.raises(ConfigError) as caught:
        run(CONFIG, (), embedded=True)
    assert [(p.line, p.message) for p in caught.value.problems] == [
        (3, "target `web`: svc/web needs a cluster, and the agent is embedded"),
        (4, "target `db`: sts/postgres needs a cluster, and the agent is embedded"),
    ]
    assert all(p.hint for p in caught.value.problems)
    assert not started


def test_an_embedded_agent_for_the_named_ones_alone(started: list[Config]) -> None:
    assert run(CONFIG, ("cache",), embedded=True) == 0
    assert started[0].agent == AgentConfig(embedded=True)


def test_a_cancelled_run_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    async def cancelled(*_: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(Supervisor, "run", cancelled)
    assert run(CONFIG, ()) == 130


def test_what_nobody_reads_goes_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    hushed: list[bool] = []

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    monkeypatch.setattr(module, "hush", lambda: hushed.append(True))
    module._announce("web: 127.0.0.1:8080 -> svc/web:80 (tcp)")
    assert hushed == [True]
