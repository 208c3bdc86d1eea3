"""The Go krelay's targets.txt: a line each, with its comments."""

from __future__ import annotations

from collections.abc import Iterator

from krelay.config.grammar import parse_line, split
from krelay.config.validation import MAX_PROBLEMS
from krelay.errors import ConfigError, Problem
from krelay.importers.entry import Entry


def read(text: str, path: str) -> Iterator[Entry]:
    """An entry for each line, with the comments above it.

    Raises:
        ConfigError: lines that are wrong; all of them.
    """
    problems: list[Problem] = []
    entries: list[Entry] = []
    notes: list[str] = []
    for number, content in enumerate(text.split("\n"), start=1):
        stripped = content.strip()
        if stripped.startswith(("#", "//")):
            notes.append(stripped.lstrip("#/").strip())
        if len(problems) > MAX_PROBLEMS:
            break
        words = split(content)
        if not words:
            if not stripped:
                notes.clear()
            continue
        line, errors = parse_line(words)
        problems += [error.at(number, 1) for error in errors]
        if line is None:
            continue
        entries.append(
            Entry(
                name=line.resource,
                target=f"{line.kind}/{line.resource}",
                ports=tuple(map(str, line.ports)),
                namespace=line.namespace,
                listen=line.listen,
                comments=tuple(note for note in notes if note),
            )
        )
        notes.clear()
    if problems:
        raise ConfigError(path, problems)
    return iter(entries)
