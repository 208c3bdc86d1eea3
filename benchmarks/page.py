"""docs/performance.md: where the figures of a run go."""

from __future__ import annotations

import os
import sys

from benchmarks.place import ROOT

_PAGE = ROOT / "docs" / "performance.md"


def figure(value: float) -> str:
    """Three digits and no more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def write(name: str, text: str) -> None:
    """Put `text` between the page's marks for `name`; not in CI, and not with `--dry`."""
    if os.environ.get("CI") or "--dry" in sys.argv:
        return
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    page = _PAGE.read_text()
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    assert found, f"no {begin}"
    assert closed, f"no {end}"
    _PAGE.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
