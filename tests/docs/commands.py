"""Write the tables of docs/commands.md from the parser: `python -m tests.docs.commands`."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

from krelay.cli.kubectl import relay
from krelay.cli.main import cli
from tests.docs import pages

PAGE = pages.DOCS / "commands.md"


def updated(page: str) -> str:
    """Return the page with the commands and options that the parser has now."""
    known = [*_commands()]
    rows = [f"| [`{path}`](#{path.replace(' ', '-')}) | {_text(c)[0]} |" for path, c in known]
    page = _between(page, "commands", ["| command | |", "|---|---|", *rows])
    return _between(page, "options", [line for path, c in known for line in _section(path, c)])


def _between(page: str, name: str, lines: list[str]) -> str:
    """Return the page with these lines between the two comments called `name`."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    head, _, rest = page.partition(begin)
    _, _, tail = rest.partition(end)
    return head + begin + "\n" + "\n".join(lines).strip() + "\n\n" + end + tail


def _commands() -> Iterator[tuple[str, click.Command]]:
    for name, command in cli.commands.items():
        if not command.hidden:
            yield f"krelay {name}", command
    yield "kubectl relay", relay


def _text(command: click.Command) -> list[str]:
    """Return the paragraphs of a command's help, without those that keep their lines."""
    text = "\n".join(line.strip() for line in (command.help or "").splitlines())
    found = [" ".join(part.split()) for part in text.split("\n\n") if "\b" not in part]
    return [_plain(part) for part in found if part]


def _section(path: str, command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=path, help_option_names=["-h", "--help"])
    usage = " ".join(command.get_usage(context).split()).removeprefix("Usage: ")
    yield "\n\n".join([f"### {path}", f"```\n{usage}\n```", *_text(command)])
    yield ""
    options = [p for p in command.get_params(context) if isinstance(p, click.Option)]
    records = [p.get_help_record(context) for p in options if "--help" not in p.opts]
    if rows := [_row(*record) for record in records if record]:
        yield from ("| option | default | |", "|---|---|---|", *rows, "")


def _row(option: str, help_text: str) -> str:
    text, _, extra = help_text.partition("  [")
    extras = dict(part.split(": ", 1) for part in extra.rstrip("]").split("; ") if ": " in part)
    if variable := extras.get("env var"):
        text = f"{text} Variable: `{variable}`."
    default = extras.get("default", "")
    code = default and (f"`{default}`" if re.fullmatch(r"\S+", default) else default)
    option = option.replace("|", "\\|")
    return f"| `{option}` | {code} | {_plain(text)} |"


def _plain(text: str) -> str:
    """Return a text in which Markdown finds no HTML."""
    return re.sub(r"(?<!`)(\w*<[^`\s]*>\w*)", r"`\1`", text).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(updated(pages.text(PAGE)), "utf-8")
