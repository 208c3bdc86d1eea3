"""docs/troubleshooting.md: it has every error and warning, and no message that krelay lacks."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import pytest

from krelay import errors
from krelay.datapath import direct, pool
from tests.docs import pages

PAGE = pages.DOCS / "troubleshooting.md"
ENTRIES = re.findall(
    r"^##+ ([^\n]+)\n\n```\n(.+?)```\n\n(.+?)(?=\n##|\Z)",
    pages.text(PAGE),
    re.MULTILINE | re.DOTALL,
)
MESSAGES = [line for _, messages, _ in ENTRIES for line in messages.splitlines()]
EXPLAINED = ("UsageError", "ConfigError", "Problem")
"""Errors of the command line and of files: the message itself says where and what."""


def template(node: ast.AST | None) -> str:
    """Return a text of the code with `…` for each part that differs; alternatives on lines."""
    match node:
        case ast.Constant(value=str(text)):
            return re.sub(r"%\.?\d*[sdrg]", "…", text)
        case ast.JoinedStr(values=values):
            return "".join(map(template, values))
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return template(left) + template(right)
        case ast.IfExp(body=body, orelse=orelse):
            return f"{template(body)}\n{template(orelse)}"
    return "…"


def pattern(message: str) -> re.Pattern[str]:
    """Return what finds a message of the page in the texts of the code.

    `…` stands for anything, but in `… by …` and the like, which would stand for too much.
    """
    if message.startswith("…") and len(re.findall("[a-z]", message)) < 8:
        return re.compile(f"^{re.escape(message)}$", re.MULTILINE)
    return re.compile(f"^{'.+'.join(map(re.escape, message.split('…')))}$", re.MULTILINE)


class Code(NamedTuple):
    """The texts in the code: all of them, and those of errors and warnings with their place."""

    texts: set[str]
    errors: list[tuple[str, str]]
    warnings: list[tuple[str, str]]


@cache
def code() -> Code:
    found = Code(set(), [], [])
    folders = (pages.ROOT / "krelay", pages.ROOT / "agent")
    paths = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    sources = {pages.name(path): path.read_text("utf-8") for path in paths}
    known = {name for name, kind in vars(errors).items() if _is_error(kind)}
    everything = "\n".join(sources.values())
    for name, line in re.findall(r"^class (\w+)\((.*\w+Error)\):$", everything, re.MULTILINE):
        bases = re.findall(r"\w+", line)
        if known.intersection(bases):
            known.add(name)
    known.difference_update(EXPLAINED)
    # The trees would slow down every collection of garbage: none is kept.
    for place, source in sources.items():
        _read(place, ast.parse(source), known, found)
    return found


def _is_error(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, errors.KrelayError)


def _read(place: str, module: ast.Module, known: set[str], found: Code) -> None:
    scopes: list[ast.AST] = []
    for node in ast.walk(module):
        if isinstance(node, ast.Constant | ast.JoinedStr):
            found.texts.add(template(node))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            scopes.append(node)
        elif isinstance(node, ast.Call) and node.args and _is_warning(node.func):
            found.warnings.append((f"{place}:{node.lineno}", template(node.args[0])))
    for scope in scopes:
        for call, given in _calls(scope, known):
            if isinstance(given, ast.Name):
                given = _assigned([*module.body, *ast.walk(scope)]).get(given.id)
            found.errors.append((f"{place}:{call.lineno}", template(given)))


def _is_warning(function: ast.expr) -> bool:
    return isinstance(function, ast.Attribute) and function.attr in ("warning", "error")


def _calls(scope: ast.AST, names: set[str]) -> list[tuple[ast.Call, ast.expr | None]]:
    """Return the calls that make an error or a diagnosis, each with the argument for its text."""
    found = []
    for call in ast.walk(scope):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
            place = 1 if call.func.id == "Diagnosis" else 0
            if place or call.func.id in names:
                found.append((call, call.args[place] if len(call.args) > place else None))
    return found


def _assigned(nodes: Iterable[ast.AST]) -> dict[str, ast.expr]:
    return {
        target.id: node.value
        for node in nodes
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def without_entry(texts: Iterable[tuple[str, str]]) -> str:
    """Return the texts with words that no message of the page stands for, a line each."""
    known = [pattern(message) for message in MESSAGES]
    return "\n".join(
        f"{place}: {text}"
        for place, text in texts
        if re.search(r"\w{2}", text) and not any(message.search(text) for message in known)
    )


def test_each_entry_has_messages_a_cause_and_a_cure() -> None:
    titles = re.findall(r"^### (.+)$", pages.text(PAGE), re.MULTILINE)
    assert [title for title, *_ in ENTRIES] == [*titles, "A bug"]
    without = [title for title, _, text in ENTRIES[:-1] if "\n\n**Cure:** " not in text]
    assert without == []


def test_no_message_is_there_twice() -> None:
    assert sorted(MESSAGES) == sorted(set(MESSAGES))


def test_the_page_has_every_error_and_diagnosis() -> None:
    """An error that is new to krelay gets an entry, or a line in one."""
    assert len(code().errors) > 200
    assert not without_entry(code().errors)


def test_the_page_has_every_warning() -> None:
    assert not without_entry(code().warnings)


def test_the_page_has_every_reason_of_a_refused_dial() -> None:
    reasons = [*pool._MEANINGS.items(), *direct._MEANINGS.items()]
    assert not without_entry((reason.name, text) for reason, text in reasons)


def test_the_page_has_no_other_message() -> None:
    lines = "\n".join(code().texts)
    assert [message for message in MESSAGES if not pattern(message).search(lines)] == []


@pytest.mark.parametrize(
    ("message", "text", "found"),
    [
        ("cannot read …: …", "cannot read …: …", True),
        ("cannot … …", "cannot … in …", True),
        ("cannot … …", "it cannot … …", False),
        ("… by …", "… by …", True),
        ("… by …", "… as by …", False),
        ("cannot read …: …", "cannot write …: …", False),
    ],
)
def test_a_message_stands_for_a_text(message: str, text: str, found: bool) -> None:
    assert bool(pattern(message).search(text)) == found
