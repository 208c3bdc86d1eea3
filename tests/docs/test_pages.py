"""The documentation: links lead somewhere, and what it shows is accepted."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest
import yaml

from krelay import config
from krelay.cli.kubectl import relay as kubectl_relay
from krelay.cli.main import cli
from krelay.errors import ConfigError, UsageError
from tests.docs import commands, pages, pictures

SITE = runpy.run_path(str(pages.ROOT / ".ci" / "site.py"))


def test_every_link_leads_somewhere() -> None:
    lost = []
    for page in pages.PAGES:
        for path, anchor in pages.links(page):
            target = (page.parent / path).resolve() if path else page
            if not target.exists() or (anchor and anchor not in pages.anchors(target)):
                lost.append(f"{pages.name(page)}: {path}#{anchor}")
    assert lost == []


def test_every_page_is_in_the_navigation_once() -> None:
    """`zensical.toml` names each page of docs/."""
    assert sorted(pages.navigation()) == sorted(SITE["sources"]().values())


def test_every_page_begins_with_its_title() -> None:
    odd = [page for page in pages.PAGES if not re.match(r"# \S.*\n\n", pages.text(page))]
    assert odd == []


KEYS = config.load_schema()["properties"].keys()
SNIPPETS = [
    block
    for block in pages.blocks("yaml")
    if isinstance(parsed := yaml.safe_load(block.text), dict) and parsed.keys() <= KEYS
]


def test_there_are_snippets_of_the_file() -> None:
    assert len(SNIPPETS) > 5


@pytest.mark.parametrize("block", SNIPPETS, ids=str)
def test_a_snippet_of_the_file_loads(block: pages.Block, tmp_path: Path) -> None:
    text = block.text
    if "targets:" not in text and "proxies:" not in text:
        text += "\ntargets: {web: svc/web 80}\n"
    if "apiVersion:" not in text:
        text = f"apiVersion: krelay/v1\n{text}"
    path = tmp_path / "krelay.yaml"
    path.write_text(text)
    variables = dict.fromkeys(re.findall(r"\$\{(\w+)", text), "long-enough-for-a-token")
    try:
        config.load(str(path), environ=variables)
    except ConfigError as exc:
        pytest.fail("\n".join(exc.report()), pytrace=False)


def parse(words: list[str]) -> None:
    """Parse a command line of krelay or kubectl relay; raise an error if it is not accepted."""
    with suppress(click.exceptions.Exit):  # --help, --version
        if words[0] == "kubectl":
            kubectl_relay.make_context("kubectl relay", words[2:])
            return
        context = click.Context(cli, info_name="krelay", **cli.context_settings)
        name, command, rest = cli.resolve_command(context, words[1:])
        assert command
        command.make_context(name, rest, parent=context)


def simple_commands(line: str) -> Iterator[list[str]]:
    """Yield the words of each simple command of a line of a shell, without assignments."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;()<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if not set(word) <= set("|&;<>()"):
            if words or not re.match(r"\w+=", word):
                words.append(word)
        else:
            yield words
            words = []


def test_every_command_line_is_accepted() -> None:
    refused, accepted = [], 0
    for place, line in pages.commands():
        for words in simple_commands(line):
            if words[:1] == ["krelay"] or words[:2] == ["kubectl", "relay"]:
                try:
                    parse(words)
                    accepted += 1
                except click.MissingParameter:
                    continue  # it names a command, without its argument
                except (click.ClickException, UsageError) as exc:
                    refused.append(f"{place}: {line}: {exc}")
    assert not refused, "\n".join(refused)
    assert accepted > 50


@pytest.mark.parametrize("line", ["krelay up --nonsense", "krelay nonsense", "kubectl relay --x 1"])
def test_another_command_line_is_not(line: str) -> None:
    with pytest.raises((click.ClickException, UsageError)):
        parse(line.split())


@pytest.mark.parametrize("block", pages.blocks("python"), ids=str)
def test_a_program_compiles(block: pages.Block) -> None:
    compile(block.text, str(block), "exec")


def test_the_options_are_those_of_the_parser() -> None:
    """`python -m tests.docs.commands` brings the page up to date."""
    page = pages.text(commands.PAGE)
    assert page == commands.updated(page)


@pytest.mark.parametrize("source", pictures.sources(), ids=lambda path: path.stem)
def test_a_picture_is_drawn_from_its_text(source: Path) -> None:
    """`python -m tests.docs.pictures` draws all of them."""
    drawing = source.with_suffix(".svg").read_text("utf-8")
    assert drawing == pictures.drawn(source.read_text("utf-8"))
    assert ElementTree.fromstring(drawing).tag.endswith("svg")


def test_every_picture_is_shown_somewhere() -> None:
    shown = {
        (page.parent / path).resolve() for page in pages.PAGES for path, _ in pages.links(page)
    }
    drawn = {path for path in pages.DOCS.rglob("*") if path.suffix in (".svg", ".png", ".gif")}
    assert drawn - shown == set()


@pytest.mark.parametrize("block", pages.blocks("json"), ids=str)
def test_json_is_json(block: pages.Block) -> None:
    json.loads(block.text)
