from __future__ import annotations

from tests.config.reference import PAGE, updated


def test_the_page_is_up_to_date() -> None:
    page = PAGE.read_text("utf-8")
    assert page == updated(page), "run `python -m tests.config.reference`"


def test_every_key_is_on_the_page() -> None:
    page = updated("# The file\n\n## Keys\nold")
    assert page.startswith("# The file\n\n## Keys\n\n### The file\n")
    for heading in ("`agent.patches[].patch[]`", "`targets.NAME.ports[]`"):
        assert f"\n### {heading}\n" in page
    assert '| `idleTimeout` | number or string | `"5m"` |' in page
    assert '| `effect` | "", `NoSchedule`' in page
    assert "park" not in page
