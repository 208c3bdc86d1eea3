"""Settle what a variable's text is: text where the schema wants text, else what YAML makes of it.

`token: ${T}` is the text that T holds, also where that has digits alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from krelay.config.yaml_reader import Node, is_old_octal, octal
from krelay.errors import Problem

_NAMES = {bool: {"boolean"}, int: {"integer", "number"}, float: {"number"}}


def settle(
    node: Node, rules: Mapping[str, Any], definitions: Mapping[str, Any], problems: list[Problem]
) -> Node:
    """Return the tree with each variable's text as the rules want it; `definitions` are those that
    a rule may refer to."""
    rules = _followed(rules, definitions)
    if isinstance(node.value, dict):
        properties, others = rules.get("properties", {}), rules.get("additionalProperties")
        entries = {
            key: settle(child, _rules(properties.get(key, others)), definitions, problems)
            for key, child in node.value.items()
        }
        if all(entries[key] is child for key, child in node.value.items()):
            return node
        return dataclasses.replace(node, value=entries)
    if isinstance(node.value, list):
        inner = _rules(rules.get("items"))
        items = [settle(child, inner, definitions, problems) for child in node.value]
        if all(map(lambda one, other: one is other, items, node.value)):
            return node
        return dataclasses.replace(node, value=items)
    return node if node.raw is None else _scalar(node, node.raw, rules, problems)


def _scalar(node: Node, raw: str, rules: Mapping[str, Any], problems: list[Problem]) -> Node:
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
        fits = bool(_NAMES[type(node.value)] & types)
    return node if fits else dataclasses.replace(node, value=raw)


def _followed(rules: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    for part in (rules, *rules.get("allOf", ())):
        if "$ref" in part:
            return _rules(definitions[part["$ref"].rpartition("/")[2]])
    return rules


def _rules(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, dict) else {}
