"""What must be true of a checkout before a release of it is published."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def version(root: Path = ROOT) -> str:
    """Return krelay's version, which `krelay/__init__.py` alone states."""
    text = (root / "krelay" / "__init__.py").read_text()
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert found is not None
    return found[1]


def notes(version: str, changelog: str) -> str | None:
    """Return the changelog's section of a version, without its heading: the notes of a release."""
    heading = rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)\n"
    found = re.search(rf"{heading}(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    return found[1].strip() or None if found else None


def open_points(tag: str | None, root: Path = ROOT) -> list[str]:
    """Return the reasons not to publish `tag` yet; None is a trial."""
    current = version(root)
    found = []
    if tag is not None and tag != f"v{current}":
        found.append(f"the tag {tag} is not v{current}, which krelay/__init__.py has")
    text = (root / "CHANGELOG.md").read_text()
    if notes(current, text) is None:
        found.append(f"CHANGELOG.md has no section `## {current} (YYYY-MM-DD)`")
    if re.search(r"^## Unreleased\n+(?!## )\S", text, re.MULTILINE):
        found.append("CHANGELOG.md has entries under `## Unreleased`")
    try:
        changed = git(root, "status", "--porcelain")
        tagged = tag is None or git(root, "tag", "--points-at", "HEAD", "--list", tag) == tag
    except subprocess.CalledProcessError as exc:
        return [*found, f"git has no commit here: {exc.stderr.strip()}"]
    if changed:
        found.append(f"{len(changed.splitlines())} files differ from the commit")
    if not tagged:
        found.append(f"the commit has no tag {tag}")
    return found


def git(root: Path, *args: str) -> str:
    """Return what a git command prints, without the last line end."""
    done = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()
