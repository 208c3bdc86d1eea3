"""Check a tree against the JSON Schema of krelay.yaml, and word what it finds for people.

A message says what is wrong with which key. Its hint is the nearest known key or word, what is
allowed (`patternErrorMessage`, which editors show too), or the schema's example.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from krelay.config.grammar import quote
from krelay.config.quick_check import UnknownKeywordError, matches
from krelay.config.schema import load_schema, renamed_keys
from krelay.config.yaml_reader import Node, flow, is_old_octal, octal
from krelay.errors import Problem

if TYPE_CHECKING:
    from jsonschema import ValidationError

Steps = tuple[str | int, ...]
"""The way from the root of a tree to a value: keys and indices."""

PATCH = ("properties", "agent", "properties", "patches", "items", "properties", "patch")
MAX_PROBLEMS = 100  # finding the nearest key for thousands of keys would take minutes
_NUMBERS = {bool: {"boolean"}, int: {"integer", "number"}, float: {"number"}}
_TYPES = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "object": "a mapping",
    "array": "a list",
}


def check(root: Node, *steps: str) -> tuple[Node | None, list[Problem]]:
    """Return the tree without its invalid values, and every problem that the schema finds.

    `steps` lead to the part of the schema that applies to the tree, as `PATCH` does. The returned
    tree matches the schema except for missing keys, so the next stage reports other problems and
    not these again. Beyond MAX_PROBLEMS the tree is None.
    """
    problems: list[Problem] = []
    bad: set[Steps] = set()
    rules = load_schema()
    root = _settle(root, _part(*steps), rules["definitions"], problems)
    value = root.plain()
    for error in () if _is_valid(value, *steps) else _validator(*steps).iter_errors(value):
        if node_at(root, tuple(error.absolute_path)).broken:
            continue
        for path, problem in _schema_errors(error, root, rules):
            problems.append(problem)
            if path is not None:
                bad.add(path)
            if len(problems) > MAX_PROBLEMS:
                return None, problems
    return _without(root, bad, ()), problems


def rename_keys(root: Node, problems: list[Problem]) -> tuple[Node, list[tuple[int, str, str]]]:
    """Return the tree with new names in place of old ones; and the line, the old name and the new
    name of each old key, in the order of the file.

    An old key beside its new name is a problem, and is left out.
    """
    assert isinstance(root.value, dict)
    entries, found = dict(root.value), []
    for section, names in renamed_keys().items():
        node = entries.get(section)
        if node is None or not isinstance(node.value, dict):
            continue
        both = {old for old, new in names.items() if {old, new} <= node.keys.keys()}
        for old in sorted(both):
            message = f"{quote(old)} is the old name of {quote(names[old])}, which is set too"
            problems.append(Problem(*node.keys[old], message, "remove one of them"))
        used = (names.keys() & node.keys.keys()) - both
        found += [
            (node.keys[old][0], f"{section}.{old}", f"{section}.{names[old]}")
            for old in sorted(used)
        ]
        entries[section] = dataclasses.replace(
            node,
            value={names.get(k, k): child for k, child in node.value.items() if k not in both},
            keys={names.get(k, k): place for k, place in node.keys.items() if k not in both},
        )
    found.sort(key=lambda key: key[0])
    return dataclasses.replace(root, value=entries), found


def _is_valid(value: Any, *steps: str) -> bool:
    """Return whether the value is certainly valid, without the words of jsonschema."""
    part = _part(*steps)
    try:
        return matches(part, value, part)
    except UnknownKeywordError:
        return False


@functools.cache
def _validator(*steps: str) -> Any:
    from jsonschema import Draft7Validator, ValidationError, validators

    def pattern(_: Any, wanted: str, instance: Any, __: Any) -> Iterator[ValidationError]:
        # Python's `$` also matches before a last line break; ECMA 262's does not. Every pattern is
        # anchored, so `match` finds what `search` would try at each position of the text.
        if isinstance(instance, str) and (instance[-1:] == "\n" or not re.match(wanted, instance)):
            yield ValidationError("pattern")

    strict = validators.extend(Draft7Validator, {"pattern": pattern})  # type: ignore[no-untyped-call]
    return strict(_part(*steps))


def _part(*steps: str) -> dict[str, Any]:
    rules = load_schema()
    for step in steps:
        rules = rules[step]
    return rules


def _without(node: Node, bad: set[Steps], path: Steps) -> Node | None:
    """Return a copy of the tree without broken values and those at the bad paths."""
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


# -- what a variable's text means --------------------------------------------------------------


def _settle(
    node: Node, rules: Mapping[str, Any], definitions: Mapping[str, Any], problems: list[Problem]
) -> Node:
    """Return the tree with the values of variables as the rules want them.

    A value stays text where the rules allow text alone, even if it looks like a number; elsewhere
    it means what YAML would make of it. `definitions` are those that a rule may refer to.
    """
    rules = _followed(rules, definitions)
    if isinstance(node.value, dict):
        properties, others = rules.get("properties", {}), rules.get("additionalProperties")
        entries = {
            key: _settle(child, _rules(properties.get(key, others)), definitions, problems)
            for key, child in node.value.items()
        }
        if all(entries[key] is child for key, child in node.value.items()):
            return node
        return dataclasses.replace(node, value=entries)
    if isinstance(node.value, list):
        inner = _rules(rules.get("items"))
        items = [_settle(child, inner, definitions, problems) for child in node.value]
        if all(map(lambda one, other: one is other, items, node.value)):
            return node
        return dataclasses.replace(node, value=items)
    return node if node.raw is None else _settle_scalar(node, node.raw, rules, problems)


def _settle_scalar(node: Node, raw: str, rules: Mapping[str, Any], problems: list[Problem]) -> Node:
    wanted = rules.get("type", ())
    types = {wanted} if isinstance(wanted, str) else set(wanted)
    if is_old_octal(raw) and (not types or types & {"integer", "number"}):
        problems.append(octal(node, raw))
        return dataclasses.replace(node, broken=True)
    if isinstance(node.value, str) or "string" not in types:
        return node
    if node.value is None:
        fits = not raw and "null" in types
    else:
        fits = bool(_NUMBERS[type(node.value)] & types)
    return node if fits else dataclasses.replace(node, value=raw)


def _followed(rules: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    for part in (rules, *rules.get("allOf", ())):
        if "$ref" in part:
            return _rules(definitions[part["$ref"].rpartition("/")[2]])
    return rules


def _rules(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, dict) else {}


# -- wording -----------------------------------------------------------------------------------


def node_at(root: Node, path: Steps) -> Node:
    """Return the node at a path that exists."""
    node = root
    for step in path:
        value: Any = node.value
        node = value[step]
    return node


def _schema_errors(
    error: Any, root: Node, schema: dict[str, Any]
) -> Iterator[tuple[Steps | None, Problem]]:
    """Yield the problems of a `jsonschema.ValidationError`.

    Each comes with the path of the value that is wrong, or None if a key is missing.
    """
    path: Steps = tuple(error.absolute_path)
    found, wanted, rules = error.instance, error.validator_value, error.schema
    name = _dotted(path)
    if error.validator == "additionalProperties":
        known = list(rules["properties"])
        for key in [key for key in found if key not in known]:
            message, hint = _unknown(key, known, schema)
            if node_at(root, path).secret:
                message = "unknown key"
            yield (*path, key), _at_key(root, (*path, key), message, hint)
    elif "propertyNames" in error.absolute_schema_path:
        shown = "this" if node_at(root, path).secret else quote(found)
        message = f"{shown} cannot be the name of a target"
        yield (*path, found), _at_key(root, (*path, found), message, rules["patternErrorMessage"])
    elif error.validator == "required":
        for key in [key for key in wanted if key not in found]:
            example = _for_example(rules["properties"][key], f"{key}: ")
            yield None, _at_key(root, path, f"{name} has no {quote(key)}", example)
    elif error.validator in ("anyOf", "not"):
        problem = _at_key(root, path, f"{name} {rules['errorMessage']}", _for_example(rules))
        yield path if error.validator == "not" else None, problem
    else:
        node = node_at(root, path)
        hidden = node.secret or _holds_secrets(rules)
        message, advice = _about_value(error.validator, wanted, found, rules, hidden=hidden)
        yield path, Problem(node.line, node.column, f"{name} {message}", advice)


def _about_value(
    keyword: str, wanted: Any, found: Any, rules: dict[str, Any], *, hidden: bool
) -> tuple[str, str | None]:
    hint = _for_example(rules)
    if keyword == "type":
        allowed = [wanted] if isinstance(wanted, str) else wanted
        words = [_TYPES[kind] for kind in allowed if kind != "null"]
        if found is None:
            return "is empty", hint
        if words == ["text"] and isinstance(found, bool | int | float):
            hint = "put the value in quotes"
        return f"must be {_either(words)}, not {_described(found, hidden=hidden)}", hint
    if keyword == "enum":
        texts = [value for value in wanted if value]
        near = None if hidden else _nearest(str(found), texts)
        hint = f"did you mean {quote(near)}?" if near else f"it is one of {_listed(texts)}"
        if hidden:
            return "has an invalid value", hint
        return f"cannot be {quote(found) if isinstance(found, str) else _described(found)}", hint
    if keyword == "pattern":
        message = "has an invalid value" if hidden else f"cannot be {quote(found)}"
        return message, rules["patternErrorMessage"]
    if keyword in ("minLength", "minItems", "minProperties"):
        return "is empty", hint
    # minimum, exclusiveMinimum, maximum
    low = f"at least {rules['minimum']}" if "minimum" in rules else "more than 0"
    message = "is out of range" if hidden else f"is out of range: {quote(found)}"
    return message, f"{low}, at most {rules['maximum']}"


def _holds_secrets(rules: dict[str, Any]) -> bool:
    """Return whether a value may hold a secret.

    A mapping with a secret key counts: a user may write the secret in the place of the mapping.
    """
    return any(one.get("writeOnly") for one in (rules, *rules.get("properties", {}).values()))


def _unknown(key: str, known: list[str], schema: dict[str, Any]) -> tuple[str, str]:
    message = f"unknown key {quote(key)}"
    top = schema["properties"]
    for section, rules in top.items():
        if known == list(top) and key in rules.get("properties", {}):
            return message, f"{quote(key)} belongs in {quote(section)}"
    if near := _nearest(key, known):
        return message, f"did you mean {quote(near)}?"
    return message, f"known here: {_listed(known)}"


def _nearest(word: str, known: Iterable[str]) -> str | None:
    lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word[:80].lower(), lower, n=1)
    return lower[near[0]] if near else None


def _for_example(rules: dict[str, Any], prefix: str = "") -> str | None:
    if "examples" not in rules:
        return None
    first = rules["examples"][0]
    if isinstance(first, dict) and len(first) == 1 and not prefix:
        ((key, first),) = first.items()  # as a line below the key
        prefix = f"{key}: "
    if not isinstance(first, str):
        first = flow(first) if isinstance(first, dict | list) else json.dumps(first)
    return f"for example {quote(prefix + first, 100)}"


def _listed(words: Iterable[str]) -> str:
    return ", ".join(map(quote, words))


def _either(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if words[1:] else words[0]


def _described(value: Any, *, hidden: bool = False) -> str:
    if isinstance(value, bool):
        return "true or false" if hidden else quote(str(value).lower())
    if isinstance(value, int | float):
        return "a number" if hidden else f"the number {quote(value)}"
    if isinstance(value, str):
        return "a text" if hidden else f"the text {quote(value)}"
    if value is None:
        return "empty"
    return "a mapping" if isinstance(value, dict) else "a list"


def _dotted(path: Steps) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return quote(text.removeprefix("."), 100) if text else "the file"


def _at_key(root: Node, path: Steps, message: str, hint: str | None) -> Problem:
    """Return a problem at the last key of the path, or at the item if it ends in a list."""
    node = node_at(root, path)
    line, column = node.line, node.column
    if path:
        line, column = node_at(root, path[:-1]).keys.get(str(path[-1]), (line, column))
    return Problem(line, column, message, hint)
