"""`krelay rbac`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

TEXT = """\
apiVersion: krelay/v1
targets:
  web: svc/web 8080:80
  db: {target: svc/db, port: 5432, namespace: data, context: other}
"""


@pytest.fixture(autouse=True)
def file(krelay: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file in the directory that `krelay` runs in."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    Path("krelay.yaml").write_text(TEXT)


def test_roles_by_context(krelay: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert krelay("rbac") == 0
    out, err = capsys.readouterr()
    assert "# context (the current one)\n---\n" in out
    assert "# context other\n---\n" in out
    found = list(yaml.safe_load_all(out))
    assert [(d["kind"], d["metadata"]["namespace"]) for d in found] == [
        ("Role", "default"),
        ("Role", "default"),
        ("Role", "data"),
    ]
    assert err.count("the namespace `default` is assumed") == 2


def test_bindings_for_those_that_are_given(
    krelay: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--user", "jane", "--group", "devs", "--serviceaccount", "ci:bot", "--optional"]
    assert krelay("rbac", *args, "web") == 0
    role, binding = yaml.safe_load_all(capsys.readouterr().out)
    assert any(rule["resources"] == ["events"] for rule in role["rules"])
    assert [(s["kind"], s["name"], s.get("namespace")) for s in binding["subjects"]] == [
        ("User", "jane", None),
        ("Group", "devs", None),
        ("ServiceAccount", "bot", "ci"),
    ]
