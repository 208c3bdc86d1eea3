"""Quick check: whether a value certainly matches the JSON Schema of krelay.yaml.

jsonschema judges every file that does not, and words what is wrong. Its import takes most of the
time of `krelay check` and a good part of a start, and a valid file needs no words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Rules = Mapping[str, Any]

_NOTES = {
    *("$schema", "title", "description", "default", "examples", "definitions", "writeOnly"),
    *("errorMessage", "patternErrorMessage", "renamedTo"),
}
"""Keywords that no value can violate."""


class UnknownKeywordError(Exception):
    """The schema has a keyword that is not known here."""


def matches(rules: Rules | bool, value: Any, root: Rules) -> bool:
    """Return whether `value` matches `rules`, a part of the schema `root` (draft-07).

    Raises:
        UnknownKeywordError: only jsonschema can tell.
    """
    if isinstance(rules, bool):
        return rules
    if "$ref" in rules:  # draft-07 ignores what is beside it
        part: Any = root
        for step in rules["$ref"].removeprefix("#/").split("/"):
            part = part[step]
        return matches(part, value, root)
    for keyword, wanted in rules.items():
        if keyword in _NOTES:
            continue
        if keyword not in _KEYWORDS:
            raise UnknownKeywordError(keyword)
        if not _KEYWORDS[keyword](wanted, value, rules, root):
            return False
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return _is_number(value) and (isinstance(value, int) or value.is_integer())


_TYPES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "number": _is_number,
    "integer": _is_integer,
}


def _type(wanted: Any, value: Any, rules: Rules, root: Rules) -> bool:
    names = [wanted] if isinstance(wanted, str) else wanted
    return any(_TYPES[name](value) for name in names)


def _properties(wanted: Any, value: Any, rules: Rules, root: Rules) -> bool:
    return not isinstance(value, dict) or all(
        matches(part, value[key], root) for key, part in wanted.items() if key in value
    )


def _additional(wanted: Any, value: Any, rules: Rules, root: Rules) -> bool:
    if not isinstance(value, dict):
        return True
    if "patternProperties" in rules:
        raise UnknownKeywordError("patternProperties")
    known = rules.get("properties", {})
    return all(matches(wanted, child, root) for key, child in value.items() if key not in known)


def _names(wanted: Any, value: Any, rules: Rules, root: Rules) -> bool:
    return not isinstance(value, dict) or all(matches(wanted, key, root) for key in value)


def _dependencies(wanted: Any, value: Any, rules: Rules, root: Rules) -> bool:
    if not isinstance(value, dict):
        return True
    for key, needs in wanted.items():
        if key in value:
            if isinstance(needs, list):
                if not all(need in value for need in needs):
                    return False
            elif not matches(needs, value, root):
                return False
    return True


def _items(wanted: Any, value: Any, rules: Rules, root: Rules) -> bool:
    if not isinstance(value, list):
        return True
    if isinstance(wanted, list):
        raise UnknownKeywordError("items")
    return all(matches(wanted, item, root) for item in value)


def _enum(wanted: Any, value: Any, rules: Rules, root: Rules) -> bool:
    if not all(isinstance(each, str | None) for each in wanted):
        raise UnknownKeywordError("enum")
    return isinstance(value, str | None) and value in wanted


def _pattern(wanted: Any, value: Any, rules: Rules, root: Rules) -> bool:
    # As `krelay.config.validation`: `$` does not match before a last line break.
    return not isinstance(value, str) or (
        value[-1:] != "\n" and re.match(wanted, value) is not None
    )


_KEYWORDS: dict[str, Callable[[Any, Any, Rules, Rules], bool]] = {
    "type": _type,
    "properties": _properties,
    "additionalProperties": _additional,
    "propertyNames": _names,
    "dependencies": _dependencies,
    "items": _items,
    "enum": _enum,
    "pattern": _pattern,
    "required": lambda wanted, value, *_: (
        not isinstance(value, dict) or all(key in value for key in wanted)
    ),
    "minProperties": lambda wanted, value, *_: not isinstance(value, dict) or len(value) >= wanted,
    "minItems": lambda wanted, value, *_: not isinstance(value, list) or len(value) >= wanted,
    "minLength": lambda wanted, value, *_: not isinstance(value, str) or len(value) >= wanted,
    "minimum": lambda wanted, value, *_: not _is_number(value) or value >= wanted,
    "maximum": lambda wanted, value, *_: not _is_number(value) or value <= wanted,
    "exclusiveMinimum": lambda wanted, value, *_: not _is_number(value) or value > wanted,
    "allOf": lambda wanted, value, _, root: all(matches(part, value, root) for part in wanted),
    "anyOf": lambda wanted, value, _, root: any(matches(part, value, root) for part in wanted),
    "not": lambda wanted, value, _, root: not matches(wanted, value, root),
}
