"""A tree held against the JSON Schema of krelay.yaml."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from krelay.config.complaints import Steps, find, translate
from krelay.config.schema import schema
from krelay.config.settle import settle
from krelay.config.yaml_reader import Node
from krelay.errors import Problem

if TYPE_CHECKING:
    from jsonschema import ValidationError

PATCH = ("properties", "agent", "properties", "patches", "items", "properties", "patch")
MAX_PROBLEMS = 100  # the nearest key to each of thousands would take minutes


def check(root: Node, *steps: str) -> tuple[Node | None, list[Problem]]:
    """Every problem that the schema sees, and the tree without the values that have one.

    `steps` lead to the part of the schema that holds for the tree, as `PATCH` does.
    What is left is as the schema says but for keys that are missing, so that whoever reads it
    next can find more problems and not the same ones again. Beyond MAX_PROBLEMS nothing is left.
    """
    problems: list[Problem] = []
    bad: set[Steps] = set()
    rules = schema()
    root = settle(root, _part(*steps), rules["definitions"], problems)
    for error in _validator(*steps).iter_errors(root.plain()):
        if find(root, tuple(error.absolute_path)).broken:
            continue
        for path, problem in translate(error, root, rules):
            problems.append(problem)
            if path is not None:
                bad.add(path)
            if len(problems) > MAX_PROBLEMS:
                return None, problems
    return _without(root, bad, ()), problems


@functools.cache
def _validator(*steps: str) -> Any:
    from jsonschema import Draft7Validator, ValidationError, validators

    def pattern(_: Any, wanted: str, instance: Any, __: Any) -> Iterator[ValidationError]:
        # Python's `$` also matches before a last line break; ECMA 262's does not. Each pattern is
        # anchored: `match` looks at the text's start, and `search` would at each place in it.
        if isinstance(instance, str) and (instance[-1:] == "\n" or not re.match(wanted, instance)):
            yield ValidationError("pattern")

    strict = validators.extend(Draft7Validator, {"pattern": pattern})  # type: ignore[no-untyped-call]
    return strict(_part(*steps))


def _part(*steps: str) -> dict[str, Any]:
    rules = schema()
    for step in steps:
        rules = rules[step]
    return rules


def _without(node: Node, bad: set[Steps], path: Steps) -> Node | None:
    """A copy of the tree without the values at the bad paths, and without broken ones."""
    if node.broken or path in bad:
        return None
    if isinstance(node.value, dict):
        kept = {key: _without(child, bad, (*path, key)) for key, child in node.value.items()}
        some = {key: child for key, child in kept.items() if child is not None}
        return Node(node.line, node.column, some, node.keys, secret=node.secret)
    if isinstance(node.value, list):
        items = [_without(item, bad, (*path, index)) for index, item in enumerate(node.value)]
        left = [item for item in items if item is not None]
        return Node(node.line, node.column, left, secret=node.secret)
    return node
