from __future__ import annotations

from pathlib import Path

from krelay.config.reference import markdown


def test_the_page_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "config.md"
    assert page.read_text("utf-8") == markdown(), "run `python -m krelay.config.reference`"


def test_every_key_is_on_the_page() -> None:
    page = markdown()
    for heading in ("The file", "`agent.patches[].patch[]`", "`targets.NAME.ports[]`"):
        assert f"\n### {heading}\n" in page
    assert '| `idleTimeout` | number or string | `"5m"` |' in page
    assert '| `effect` | `""`, `NoSchedule`' in page or '| `effect` | "", `NoSchedule`' in page
