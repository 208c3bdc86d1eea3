"""A validator's complaint -> problems in plain words, at the place in the file that they mean.

The words are: what is wrong with which key, then, as the hint, the nearest known key or word,
what is allowed (`patternErrorMessage`, which editors show as well), or the schema's example.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator
from typing import Any

from krelay.config.parse_error import quote
from krelay.config.yaml_reader import Node
from krelay.errors import Problem

Steps = tuple[str | int, ...]

_TYPES = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "object": "a mapping",
    "array": "a list",
}


def find(root: Node, path: Steps) -> Node:
    """The node at a path that exists."""
    node = root
    for step in path:
        value: Any = node.value
        node = value[step]
    return node


def translate(
    error: Any, root: Node, schema: dict[str, Any]
) -> Iterator[tuple[Steps | None, Problem]]:
    """The problems that a `jsonschema.ValidationError` stands for.

    Each comes with the path of the value that is to blame, or None where one is missing.
    """
    path: Steps = tuple(error.absolute_path)
    found, wanted, rules = error.instance, error.validator_value, error.schema
    name = _dotted(path)
    if error.validator == "additionalProperties":
        known = list(rules["properties"])
        for key in [key for key in found if key not in known]:
            message, hint = _unknown(key, known, schema)
            if find(root, path).secret:
                message = "unknown key"
            yield (*path, key), _at_key(root, (*path, key), message, hint)
    elif "propertyNames" in error.absolute_schema_path:
        shown = "this" if find(root, path).secret else quote(found)
        message = f"{shown} cannot be the name of a target"
        yield (*path, found), _at_key(root, (*path, found), message, rules["patternErrorMessage"])
    elif error.validator == "required":
        for key in [key for key in wanted if key not in found]:
            example = _for_example(rules["properties"][key], f"{key}: ")
            yield None, _at_key(root, path, f"{name} has no {quote(key)}", example)
    elif error.validator == "anyOf":
        yield None, _at_key(root, path, f"{name} {rules['errorMessage']}", _for_example(rules))
    elif error.validator == "not":
        yield path, _at_key(root, path, f"{name} {rules['errorMessage']}", _for_example(rules))
    else:
        node = find(root, path)
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
            return "cannot be what it is", hint
        return f"cannot be {quote(found) if isinstance(found, str) else _described(found)}", hint
    if keyword == "pattern":
        return f"cannot be {'what it is' if hidden else quote(found)}", rules["patternErrorMessage"]
    if keyword in ("minLength", "minItems", "minProperties"):
        return "is empty", hint
    # minimum, exclusiveMinimum, maximum
    low = f"at least {rules['minimum']}" if "minimum" in rules else "more than 0"
    return "is out of range" + (
        f": {quote(found)}" if not hidden else ""
    ), f"{low}, at most {rules['maximum']}"


def _holds_secrets(rules: dict[str, Any]) -> bool:
    """Whether a value is secret, or a mapping with one: who writes the secret in the mapping's
    place has written a secret."""
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
    text = first if isinstance(first, str) else json.dumps(first)
    return f"for example {quote(prefix + text, 100)}"


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
    """A problem at the key that the path ends in, or at the item where it ends in a list."""
    node = find(root, path)
    line, column = node.line, node.column
    if path:
        line, column = find(root, path[:-1]).keys.get(str(path[-1]), (line, column))
    return Problem(line, column, message, hint)
