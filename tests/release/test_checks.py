"""What must be true before a release, and the workflow that publishes it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from krelay import __version__
from release import checks

ROOT = Path(__file__).parents[2]
READY = "# Changelog\n\n## 1.2.0 (2026-11-30)\n\nAdded:\n\n- a\n\n## 1.1.0 (2026-10-30)\n\n- b\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A commit of version 1.2.0 that is ready, with its tag."""
    (tmp_path / "krelay").mkdir()
    (tmp_path / "krelay" / "__init__.py").write_text('__version__ = "1.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(READY)
    name = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    for args in (["init", "-q"], ["add", "."], [*name, "commit", "-qm", "a"], ["tag", "v1.2.0"]):
        subprocess.run(["git", *args], cwd=tmp_path, check=True)
    return tmp_path


def test_a_tagged_commit_that_is_ready_has_no_open_point(checkout: Path) -> None:
    assert checks.open_points("v1.2.0", checkout) == []
    assert checks.notes("1.2.0", READY) == "Added:\n\n- a"


def test_each_open_point_is_named(checkout: Path) -> None:
    (checkout / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n- a\n")
    assert checks.open_points("v1.3.0", checkout) == [
        "the tag v1.3.0 is not v1.2.0, which krelay/__init__.py has",
        "CHANGELOG.md has no section `## 1.2.0 (YYYY-MM-DD)`",
        "CHANGELOG.md has entries under `## Unreleased`",
        "1 files differ from the commit",
        "the commit has no tag v1.3.0",
    ]


def test_files_without_a_commit_are_an_open_point(tmp_path: Path, checkout: Path) -> None:
    (tmp_path / ".git").rename(tmp_path / "moved")
    (tmp_path / ".git").write_text("gitdir: nowhere\n")
    (point,) = checks.open_points("v1.2.0", checkout)
    assert point.startswith("git has no commit here: fatal: not a git repository")


def test_a_trial_needs_no_tag(checkout: Path) -> None:
    subprocess.run(["git", "tag", "-d", "v1.2.0"], cwd=checkout, check=True)
    assert checks.open_points(None, checkout) == []
    assert checks.open_points("v1.2.0", checkout) == ["the commit has no tag v1.2.0"]


def test_an_empty_section_of_what_is_unreleased_may_stay(checkout: Path) -> None:
    (checkout / "CHANGELOG.md").write_text(READY.replace("## 1.2.0", "## Unreleased\n\n## 1.2.0"))
    assert checks.open_points(None, checkout) == ["1 files differ from the commit"]


@pytest.mark.process
def test_a_tag_that_is_not_ready_stops_before_anything_is_built() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "release", "--tag", "v0.0.0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: the tag v0.0.0 is not " in done.stderr
    assert "Traceback" not in done.stderr


def test_the_version_is_that_of_the_package() -> None:
    assert checks.version() == __version__


def jobs(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows" / name).read_text())
    return found["jobs"]  # type: ignore[no-any-return]


def test_the_release_runs_only_actions_that_cannot_change() -> None:
    used = [
        step["uses"]
        for job in jobs("release.yml").values()
        for step in job["steps"]
        if "uses" in step
    ]
    assert used
    assert [each for each in used if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", each)] == []


def test_each_job_of_the_release_has_only_the_rights_that_it_needs() -> None:
    assert yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["permissions"] == {}
    writes = {
        name: {right for right, level in job["permissions"].items() if level == "write"}
        for name, job in jobs("release.yml").items()
    }
    assert writes == {
        "build": set(),
        "installs": set(),
        "pypi": {"id-token"},
        "image": {"attestations", "id-token", "packages"},
        "github": {"attestations", "contents", "id-token"},
    }


def test_nothing_is_published_before_everything_is_built_and_installed() -> None:
    for name in ("pypi", "image"):
        assert set(jobs("release.yml")[name]["needs"]) == {"build", "installs"}
    assert set(jobs("release.yml")["github"]["needs"]) == {"pypi", "image"}
