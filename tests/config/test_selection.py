"""A file, or some of its targets, as often as it changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from krelay.config.sources import Selection
from krelay.errors import ConfigError, UsageError
from krelay.model import AgentConfig

TEXT = """\
apiVersion: krelay/v1
targets:
  web: svc/web 8080:80
  db: sts/postgres 5432
  cache: host/redis.test ${PORT:-6379}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "krelay.yaml"
    path.write_text(TEXT)
    return path


def names(selection: Selection) -> list[str]:
    return [target.name for target in selection.load().targets]


def test_all_targets_where_none_is_named(file: Path) -> None:
    assert names(Selection(str(file))) == ["web", "db", "cache"]


def test_those_named_in_the_file_s_order(file: Path) -> None:
    assert names(Selection(str(file), ("cache", "web", "web"))) == ["web", "cache"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("wbe", "did you mean `web`?"), ("nothing", "it has: `web`, `db`, `cache`")],
)
def test_a_name_that_the_file_has_not(name: str, hint: str, file: Path) -> None:
    with pytest.raises(UsageError, match=f"krelay.yaml has no target `{name}`") as caught:
        Selection(str(file), ("web", name)).load()
    assert caught.value.hint == hint


def test_an_embedded_agent_reaches_no_cluster(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Selection(str(file), embedded=True).load()
    assert [(p.line, p.message) for p in caught.value.problems] == [
        (3, "`svc/web` is in a cluster, but the agent is embedded"),
        (4, "`sts/postgres` is in a cluster, but the agent is embedded"),
    ]
    assert all(p.hint for p in caught.value.problems)
    # Whoever mends it edits the file.
    assert caught.value.files == (str(file),)


def test_an_embedded_agent_for_the_named_ones_alone(file: Path) -> None:
    assert Selection(str(file), ("cache",), embedded=True).load().agent == AgentConfig(
        embedded=True
    )


def test_it_is_read_anew_each_time(file: Path) -> None:
    selection = Selection(str(file), environ={"PORT": "1"})
    assert selection.load().targets[2].ports[0].remote == 1
    file.write_text(TEXT.replace("8080:80", "8081:80"))
    assert selection.load().targets[0].ports[0].local == 8081
    file.unlink()
    with pytest.raises(UsageError, match="cannot read"):
        selection.load()


def test_its_file(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert Selection(str(file)).file == str(file)
    assert Selection("-", text=TEXT.encode()).file is None
    assert names(Selection("-", text=TEXT.encode())) == ["web", "db", "cache"]
    monkeypatch.chdir(tmp_path)
    assert Selection(None).file == "krelay.yaml"
    file.unlink()
    with pytest.raises(UsageError, match="no krelay.yaml in this directory"):
        _ = Selection(None).file
