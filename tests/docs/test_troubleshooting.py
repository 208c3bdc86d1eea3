"""docs/troubleshooting.md: it has every error and warning, and no message that krelay lacks."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

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


@cache
def code() -> dict[Path, list[ast.AST]]:
    """Return the nodes of each module, the module itself first."""
    paths = (p for folder in ("krelay", "agent") for p in (pages.ROOT / folder).rglob("*.py"))
    return {path: [*ast.walk(ast.parse(path.read_text("utf-8")))] for path in sorted(paths)}


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


def errors_and_diagnoses() -> Iterator[tuple[str, str]]:
    """Yield the place and the text of each error that is made, and of each diagnosis."""
    names = {name for name, kind in vars(errors).items() if _is_error(kind)}
    classes = [n for nodes in code().values() for n in nodes if isinstance(n, ast.ClassDef)]
    for cls in classes:
        if any(isinstance(base, ast.Name) and base.id in names for base in cls.bases):
            names.add(cls.name)
    names.difference_update(EXPLAINED)
    for path, (module, *nodes) in code().items():
        scopes = [
            node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        assert isinstance(module, ast.Module)
        for scope in scopes:
            calls = _calls(scope, names)
            known = _assigned([*module.body, *ast.walk(scope)]) if calls else {}
            for call, given in calls:
                text = template(known.get(given.id) if isinstance(given, ast.Name) else given)
                if re.search(r"\w{2}", text):
                    yield f"{pages.name(path)}:{call.lineno}", text


def _is_error(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, errors.KrelayError)


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


def test_each_entry_has_messages_a_cause_and_a_cure() -> None:
    titles = re.findall(r"^### (.+)$", pages.text(PAGE), re.MULTILINE)
    assert [title for title, *_ in ENTRIES] == [*titles, "A bug"]
    without = [title for title, _, text in ENTRIES[:-1] if "\n\n**Cure:** " not in text]
    assert without == []


def test_no_message_is_there_twice() -> None:
    assert sorted(MESSAGES) == sorted(set(MESSAGES))


def test_the_page_has_every_error() -> None:
    """An error that is new to krelay gets an entry, or a line in one."""
    known = [pattern(message) for message in MESSAGES]
    missing = [
        f"{place}: {text}"
        for place, text in errors_and_diagnoses()
        if not any(message.search(text) for message in known)
    ]
    assert not missing, "\n".join(missing)


def test_the_page_has_every_warning() -> None:
    known = [pattern(message) for message in MESSAGES]
    missing = [
        f"{pages.name(path)}:{call.lineno}: {text}"
        for path, nodes in code().items()
        for call in nodes
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
        if call.func.attr in ("warning", "error") and call.args
        for text in [template(call.args[0])]
        if re.search(r"\w{2}", text) and not any(message.search(text) for message in known)
    ]
    assert not missing, "\n".join(missing)


def test_the_page_has_every_reason_of_a_refused_dial() -> None:
    known = [pattern(message) for message in MESSAGES]
    reasons = [*pool._MEANINGS.values(), *direct._MEANINGS.values()]
    assert [text for text in reasons if not any(m.search(text) for m in known)] == []


def test_the_page_has_no_other_message() -> None:
    nodes = (node for nodes in code().values() for node in nodes)
    texts = {template(node) for node in nodes if isinstance(node, ast.Constant | ast.JoinedStr)}
    lines = "\n".join(texts)
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
