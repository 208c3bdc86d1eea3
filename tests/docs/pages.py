"""The pages of the documentation: their links, headings, blocks of code and command lines."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
OUTSIDE = (
    *("README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/shop/README.md"),
    "CHANGELOG.md",
)
PAGES = [*sorted(DOCS.rglob("*.md")), *(ROOT / name for name in OUTSIDE)]

_BLOCK = re.compile(r"^( *)```(\S*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^]]*\]\(([^)\s]+)\)")
_FORM = re.compile(r"\[|…|\.\.\.|^krelay [A-Z]")
_COMMAND = re.compile(r"`((?:krelay|kubectl relay) [^`]+)`")


@dataclass(frozen=True)
class Block:
    """A block of code: its page, its language, its line, and its text without indentation."""

    page: Path
    language: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{name(self.page)}:{self.line}"


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@cache
def text(page: Path) -> str:
    return page.read_text("utf-8")


@cache
def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return _BLOCK.sub("", text(page))


def blocks(*languages: str) -> list[Block]:
    """Return the blocks of code of these languages."""
    found_blocks = []
    for page in PAGES:
        for found in _BLOCK.finditer(text(page)):
            indent, language, body = found.groups()
            if language in languages:
                line = text(page).count("\n", 0, found.start()) + 2
                body = re.sub(f"^{indent}", "", body, flags=re.MULTILINE)
                found_blocks.append(Block(page, language, line, body))
    return found_blocks


def links(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the path and the anchor of each link to a file of the repository."""
    for found in _LINK.finditer(re.sub(r"`[^`\n]*`", "", prose(page))):
        if not re.match(r"[a-z]+:", found[1]):
            path, _, anchor = found[1].partition("#")
            yield path, anchor


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and Python-Markdown both make them."""
    found = set()
    for title in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).lower()
        github = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        markdown = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip())
        if github == markdown:
            found.add(github)
    return found


def commands() -> Iterator[tuple[str, str]]:
    """Yield the place and the text of each command line of krelay, in blocks and in the prose.

    A line that shows a form (`[NAME...]`, `…`, `FILE`) is not one.
    """
    yield from ((where, line) for where, line in _lines() if not _FORM.search(line))


def _lines() -> Iterator[tuple[str, str]]:
    for block in blocks("console", "sh"):
        lines = re.sub(r"\\\n\s*", " ", block.text).splitlines()
        for line in lines:
            if block.language == "sh" or line.startswith("$ "):
                yield str(block), line.removeprefix("$ ")
    for page in PAGES[:-1]:  # the change log tells of past ones
        for found in _COMMAND.finditer(re.sub(r"\n\s*", " ", prose(page))):
            yield name(page), found[1]


def navigation() -> list[str]:
    """Return the pages of the site's navigation."""
    project = tomllib.loads((ROOT / "zensical.toml").read_text("utf-8"))["project"]
    return [place for section in project["nav"] for places in section.values() for place in places]
