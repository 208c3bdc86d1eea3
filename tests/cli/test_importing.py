"""`krelay import` and `krelay init`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from krelay.cli import importing
from krelay.config import parse
from tests.importers.test_services import service, workload

Krelay = Callable[..., int]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What was asked for; each namespace has a Service and a Deployment."""
    asked: list[tuple[Any, ...]] = []

    async def listed(namespaces: Any, context: str | None, kinds: list[str]) -> Any:
        asked.append((list(namespaces), context, kinds))
        items = {"services": [service("web", 80)], "deployments": [workload("Deployment", "job")]}
        return {name: [items.get(kind, []) for kind in kinds] for name in namespaces or ["own"]}

    monkeypatch.setattr(importing, "_listed", listed)
    return asked


def test_a_file_and_standard_input(krelay: Krelay, capsys: pytest.CaptureFixture[str]) -> None:
    Path("targets.txt").write_text("svc/web 8080:80\n")
    assert krelay("import", "targets.txt") == 0
    first = capsys.readouterr()
    assert krelay("import", "-", stdin=b"svc/web 8080:80\n") == 0
    second = capsys.readouterr()
    assert first.out.replace("targets.txt", "<stdin>") == second.out
    assert first.err == ""
    assert parse(second.out, "krelay.yaml", {}).targets[0].name == "web"


def test_warnings_are_no_data(krelay: Krelay, capsys: pytest.CaptureFixture[str]) -> None:
    assert krelay("import", "-", stdin=b'[{"workload_type": "pod"}]') == 0
    out, err = capsys.readouterr()
    assert "warning" not in out
    assert err.startswith("warning: pod: a pod by its labels")


def test_what_cannot_be_imported(krelay: Krelay, capsys: pytest.CaptureFixture[str]) -> None:
    assert krelay("import", "missing") == 2
    for wrong in (b"[", b"{}", b"[]", b'[{"foo": 1}]'):
        assert krelay("import", "-", stdin=wrong) == 2
    assert krelay("import") == 2
    assert capsys.readouterr().out == ""


def test_kubefwd(
    krelay: Krelay, cluster: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert krelay("import", "kubefwd", "-n", "a", "-n", "b", "--context", "c") == 0
    assert cluster == [(["a", "b"], "c", ["services"])]
    assert len(parse(capsys.readouterr().out, "krelay.yaml", {}).targets) == 2


def test_a_place_without_anything_is_an_error(
    krelay: Krelay, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is a misspelt name as a rule, and what is made up in its place helps nobody."""

    async def listed(namespaces: Any, context: str | None, kinds: list[str]) -> Any:
        return {name: [[] for _ in kinds] for name in namespaces}

    monkeypatch.setattr(importing, "_listed", listed)
    assert krelay("init", "--from-namespace", "shpo") == 4
    assert 'namespace "shpo" has no Services' in capsys.readouterr().err
    assert not Path("krelay.yaml").exists()
    assert krelay("import", "kubefwd", "-n", "shpo") == 4
    out, err = capsys.readouterr()
    assert (out, "no Services in shpo" in err) == ("", True)


def test_a_starter_never_writes_over_a_file_unasked(
    krelay: Krelay, cluster: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert krelay("init") == 0
    assert capsys.readouterr().out == (
        "krelay.yaml: written; next: `krelay check`, then `krelay up`\n"
    )
    assert krelay("check") == 0
    before = Path("krelay.yaml").read_text()
    assert krelay("init", "--from-namespace", "shop") == 2
    assert "hint: `--force` writes over it" in capsys.readouterr().err
    assert Path("krelay.yaml").read_text() == before
    assert not cluster
    assert krelay("init", "--from-namespace", "shop", "--force") == 0
    assert krelay("check") == 0
    text = Path("krelay.yaml").read_text()
    assert "  web: svc/web 8080:80\n" in text
    assert "  # job: deploy/job :PORT\n" in text
    assert krelay("init", "-f", "my other.yaml") == 0
    assert "next: `krelay check -f 'my other.yaml'`, then" in capsys.readouterr().out
    assert krelay("init", "-f", "no/such/directory.yaml") == 2
