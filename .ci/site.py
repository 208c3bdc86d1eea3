"""Build the documentation site: `make docs`, `make docs-serve`.

The pages are those of docs/, whose links work in the repository. This stages a copy for Zensical,
in which links lead to pages of the site; a file that a page links to, but that is no page, goes to
files/. `llms.txt` lists the pages for language models, `llms-full.txt` holds them all, and the site
has each page as Markdown too.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build"
CONFIG = ROOT / "zensical.toml"
PROJECT = tomllib.loads(CONFIG.read_text("utf-8"))["project"]
PAGES = BUILD / PROJECT["docs_dir"]
SITE = BUILD / PROJECT["site_dir"]
OUTSIDE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "reporting.md",
    "examples/shop/README.md": "recipes/shop.md",
}
"""The pages that are not in docs/, and their place in the site."""
ZENSICAL = [sys.executable, "-m", "zensical"]
_LINK = re.compile(r"\[([^]]*)\]\(([^)\s#:]+)((?:#[^)\s]*)?)\)")


def sources() -> dict[str, str]:
    """Return the place in the site of each page, by its path in the repository."""
    docs = sorted((ROOT / "docs").rglob("*.md"))
    found = {path.relative_to(ROOT).as_posix(): path.relative_to(ROOT / "docs") for path in docs}
    return {**{source: place.as_posix() for source, place in found.items()}, **OUTSIDE}


def stage() -> None:
    """Write the pages and what they show, as the site has them."""
    pages = sources()
    wanted: dict[str, str | Path] = {"site.css": ROOT / ".ci" / "site.css"}
    for source, place in pages.items():
        wanted[place] = _moved((ROOT / source).read_text("utf-8"), source, place, pages, wanted)
    for old in PAGES.rglob("*"):
        if old.is_file() and old.relative_to(PAGES).as_posix() not in wanted:
            old.unlink()
    for place, content in wanted.items():
        data = content.encode() if isinstance(content, str) else content.read_bytes()
        path = PAGES / place
        # Leave alone what has not changed: a page that is served is built again when it is written.
        if not path.is_file() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def _moved(
    text: str, source: str, place: str, pages: dict[str, str], wanted: dict[str, str | Path]
) -> str:
    """Return a page with its links as they are in the site; add the files that it links to."""

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[2]))
        if (ROOT / target).is_dir():
            return found[1]
        if target in pages:
            to = pages[target]
        elif target == "README.md":
            to = "index.md"
        else:
            inside = target.startswith("docs/")
            # Zensical leaves out what begins with a dot.
            shown = re.sub(r"(^|/)\.", r"\1", target)
            to = target.removeprefix("docs/") if inside else f"files/{shown}"
            wanted[to] = ROOT / target
        to = posixpath.relpath(to, posixpath.dirname(place) or ".")
        return f"[{found[1]}]({to}{found[3]})"

    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in parts)


def navigation() -> Iterator[tuple[str, list[str]]]:
    """Yield each section of the navigation, with its pages."""
    for section in PROJECT["nav"]:
        yield from section.items()


def index() -> str:
    """Return llms.txt: the pages by section, each with its first sentence."""
    lines = [f"# {PROJECT['site_name']}", "", f"> {PROJECT['site_description']}"]
    for section, places in navigation():
        lines += ["", f"## {section}", ""]
        for place in places:
            title, first = _opening((PAGES / place).read_text("utf-8"))
            lines.append(f"- [{title}]({place}): {first}")
    return "\n".join([*lines, ""])


def _opening(page: str) -> tuple[str, str]:
    """Return the title of a page, and its first sentence without links."""
    title, _, rest = page.removeprefix("# ").partition("\n")
    rest = re.sub(r"^```.*?^```$", "", rest, flags=re.MULTILINE | re.DOTALL)
    paragraphs = (part for part in rest.split("\n\n") if re.match(r"\n*[\w`*\[]", part))
    first = " ".join(next(paragraphs, "").split())
    first = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", first)
    return title, re.split(r"(?<=\.)\s", first)[0].rstrip(":")


def publish() -> None:
    """Put what language models read beside the pages."""
    places = [place for _, section in navigation() for place in section]
    (SITE / "llms.txt").write_text(index(), "utf-8")
    texts = [(PAGES / place).read_text("utf-8") for place in places]
    (SITE / "llms-full.txt").write_text("\n\n".join(texts), "utf-8")
    for place in places:
        (SITE / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PAGES / place, SITE / place)


def serve() -> None:
    """Serve the site, and stage each edit, until Ctrl-C."""
    served = subprocess.Popen(ZENSICAL + ["serve"], cwd=BUILD)
    try:
        while served.poll() is None:
            time.sleep(1)
            stage()
    except KeyboardInterrupt:
        served.wait()


def build() -> None:
    """Build the site; raise an error for a link that leads nowhere."""
    shutil.rmtree(SITE, ignore_errors=True)
    built = subprocess.run(
        ZENSICAL + ["build", "--strict", "--clean"], cwd=BUILD, stderr=subprocess.PIPE, text=True
    )
    if built.returncode:
        # Behind the report there is a traceback of Zensical's own.
        sys.exit(built.stderr.partition("Traceback")[0])
    publish()


if __name__ == "__main__":
    stage()
    # Zensical keeps its cache beside its configuration.
    shutil.copyfile(CONFIG, BUILD / CONFIG.name)
    serve() if sys.argv[1:] == ["serve"] else build()
