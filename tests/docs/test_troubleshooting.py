"""docs/troubleshooting.md: it has the message of every error, and no message that krelay lacks."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from krelay import errors
from tests.docs import pages

PAGE = pages.DOCS / "troubleshooting.md"
CODE = [
    (path, ast.parse(path.read_text("utf-8")))
    for folder in ("krelay", "agent")
    for path in sorted((pages.ROOT / folder).rglob("*.py"))
]
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
    """Return what finds a message of the page in the texts of the code."""
    return re.compile(f"^{'.+'.join(map(re.escape, message.split('…')))}$", re.MULTILINE)


def errors_and_diagnoses() -> Iterator[tuple[str, str]]:
    """Yield the place and the text of each error that is made, and of each diagnosis."""
    names = {name for name, kind in vars(errors).items() if _is_error(kind)}
    for _, tree in CODE:
        for cls in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
            if any(isinstance(base, ast.Name) and base.id in names for base in cls.bases):
                names.add(cls.name)
    names.difference_update(EXPLAINED)
    for path, tree in CODE:
        for scope in ast.walk(tree):
            if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _made(path, scope, tree, names)


def _is_error(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, errors.KrelayError)


def _made(
    path: Path, scope: ast.AST, tree: ast.Module, names: set[str]
) -> Iterator[tuple[str, str]]:
    known = {
        target.id: assign.value
        for owner in (tree, scope)
        for assign in (ast.walk(scope) if owner is scope else tree.body)
        if isinstance(assign, ast.Assign)
        for target in assign.targets
        if isinstance(target, ast.Name)
    }
    for call in (node for node in ast.walk(scope) if isinstance(node, ast.Call)):
        kind = call.func.id if isinstance(call.func, ast.Name) else ""
        if kind in names or kind == "Diagnosis":
            place = 1 if kind == "Diagnosis" else 0
            given = call.args[place] if len(call.args) > place else None
            text = template(known.get(given.id) if isinstance(given, ast.Name) else given)
            if re.search(r"\w{2}", text):
                yield f"{pages.name(path)}:{call.lineno}", text


def test_each_entry_has_messages_a_cause_and_a_cure() -> None:
    titles = re.findall(r"^### (.+)$", pages.text(PAGE), re.MULTILINE)
    assert [title for title, *_ in ENTRIES] == [*titles, "A bug"]
    without = [title for title, _, text in ENTRIES[:-1] if "\n\n**Cure:** " not in text]
    assert without == []


def test_the_page_has_every_error() -> None:
    """An error that is new to krelay gets an entry, or a line in one."""
    known = [pattern(message) for message in MESSAGES]
    missing = [
        f"{place}: {text}"
        for place, text in errors_and_diagnoses()
        if not any(message.search(text) for message in known)
    ]
    assert not missing, "\n".join(missing)


def test_the_page_has_no_other_message() -> None:
    nodes = (node for _, tree in CODE for node in ast.walk(tree))
    texts = {template(node) for node in nodes if isinstance(node, ast.Constant | ast.JoinedStr)}
    code = "\n".join(texts)
    assert [message for message in MESSAGES if not pattern(message).search(code)] == []


@pytest.mark.parametrize(
    ("message", "text", "found"),
    [
        ("cannot read …: …", "cannot read …: …", True),
        ("cannot … …", "cannot … in …", True),
        ("cannot … …", "it cannot … …", False),
        ("cannot read …: …", "cannot write …: …", False),
    ],
)
def test_a_message_stands_for_a_text(message: str, text: str, found: bool) -> None:
    assert bool(pattern(message).search(text)) == found
