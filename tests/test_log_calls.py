"""Log lines about a target, a tunnel or a stream name it in fields, for programs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEVELS = frozenset(("debug", "info", "warning", "error", "critical", "exception", "log"))

OTHER_SUBJECTS = {
    ("krelay/cli/up.py", "name"): "a signal",
    ("krelay/cluster/auth/exec_plugin.py", "self._name"): "a plugin and a line of its output",
    ("krelay/tasks.py", "what"): "a task",
    ("krelay/transport/portforward.py", "access.url"): "a URL of the API server",
    ("krelay/transport/portforward.py", "url"): "a URL of the API server",
}
"""Subjects that are no target, tunnel or stream, by file and expression."""


def plain_lines(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and subject of each call of a plain logger whose text begins with a name."""
    loggers = {"logger"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith(
            "logging.getLogger("
        ):
            loggers.update(ast.unparse(target) for target in node.targets)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr not in LEVELS or ast.unparse(node.func.value) not in loggers:
            continue
        text, *subject = node.args[1:] if node.func.attr == "log" else node.args
        words = text.value if isinstance(text, ast.Constant) else ""
        if isinstance(words, str) and words.startswith("%s: ") and subject:
            yield node.lineno, ast.unparse(subject[0])


def test_a_line_about_a_target_tunnel_or_stream_is_logged_through_about() -> None:
    found, allowed = [], set()
    for folder in ("krelay", "agent"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            file = path.relative_to(ROOT).as_posix()
            for line, subject in plain_lines(ast.parse(path.read_text())):
                if (file, subject) in OTHER_SUBJECTS:
                    allowed.add((file, subject))
                else:
                    found.append(
                        f'{file}:{line}: use about(logger, ...) instead of "%s: ", {subject}'
                    )
    assert not found, "\n" + "\n".join(found)
    assert allowed == set(OTHER_SUBJECTS), "an exception is no longer needed"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('logger.info("%s: up", name)', [(1, "name")]),
        ('logger.log(level, "%s: up", self.name)', [(1, "self.name")]),
        ('log = logging.getLogger("x")\nlog.exception("%s: failed", t.name)', [(2, "t.name")]),
        ('about(logger, tunnel=name).info("%s: %s", code, text)', []),
        ('logger.info("stopping: %s", name)', []),
        ('math.log(2, "%s: x")', []),
    ],
)
def test_a_name_before_a_colon_is_found(text: str, found: list[tuple[int, str]]) -> None:
    assert list(plain_lines(ast.parse(text))) == found
