"""`.ci/site.py`: the pages that it hands to Zensical, and what it gives language models."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from tests.docs import pages


@pytest.fixture
def site() -> dict[str, Any]:
    """Return the script's names."""
    return runpy.run_path(str(pages.ROOT / ".ci" / "site.py"))


def test_links_lead_to_the_places_of_the_site(site: dict[str, Any]) -> None:
    wanted: dict[str, object] = {}
    text = (
        "[a](../guide.md#run), [b](../../CONTRIBUTING.md), [c](../../Dockerfile),"
        " ![d](../live.svg), [e](https://example.com/x.md), [f](#here), [g](../../examples/)\n\n"
        "```\n[code](../guide.md)\n```\n"
    )
    moved = site["_moved"](text, "docs/recipes/x.md", "recipes/x.md", site["sources"](), wanted)
    assert moved == (
        "[a](../guide.md#run), [b](../contributing.md), [c](../files/Dockerfile),"
        " ![d](../live.svg), [e](https://example.com/x.md), [f](#here), g\n\n"
        "```\n[code](../guide.md)\n```\n"
    )
    assert wanted == {
        "files/Dockerfile": pages.ROOT / "Dockerfile",
        "live.svg": pages.ROOT / "docs" / "live.svg",
    }


def test_pages_from_outside_lead_into_docs(site: dict[str, Any]) -> None:
    moved = site["_moved"](
        "[a](docs/guide.md)", "CONTRIBUTING.md", "contributing.md", site["sources"](), {}
    )
    assert moved == "[a](guide.md)"


def test_every_page_is_staged_and_told_to_language_models(
    site: dict[str, Any], tmp_path: Path
) -> None:
    names = site["stage"].__globals__
    names["PAGES"] = tmp_path
    (tmp_path / "gone.md").write_text("a page of an earlier build")
    site["stage"]()
    assert not (tmp_path / "gone.md").exists()
    assert [place for place in pages.navigation() if not (tmp_path / place).is_file()] == []
    lines = site["index"]().splitlines()
    for place in pages.navigation():
        (line,) = (line for line in lines if f"]({place}): " in line)
        assert line.partition("): ")[2], line


def test_a_page_opens_with_a_sentence(site: dict[str, Any]) -> None:
    page = "# A title\n\n<!-- made -->\n\n```\ncode\n```\n\nOne [link](x.md) is\nhere. Two.\n"
    assert site["_opening"](page) == ("A title", "One link is here.")
