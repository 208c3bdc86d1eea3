"""docs/performance.md: where the figures of a run go."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benchmarks.place import ROOT

PAGE = ROOT / "docs" / "performance.md"


def replace(file: Path, name: str, text: str) -> None:
    """Put `text` between a file's marks for `name`."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found, rest = file.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{file.name} lacks {begin} or {end}")
    file.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


def write(name: str, text: str) -> None:
    """Put `text` into the page; not in CI, and not with `--dry`."""
    if not os.environ.get("CI") and "--dry" not in sys.argv:
        replace(PAGE, name, text)
