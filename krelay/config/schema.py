"""Load the JSON Schema of krelay.yaml, and answer which of its keys are secret or renamed."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = "krelay.schema.json"


@functools.cache
def schema_text() -> str:
    """Return the schema (draft-07) as its file has it, for editors; it includes the old keys."""
    package = Path(__file__).parents[1]
    inside = package / "schema" / FILE  # in a wheel
    found = inside if inside.is_file() else package.parent / "schema" / FILE  # in a checkout
    return found.read_text("utf-8")


def load_schema() -> dict[str, Any]:
    """Return the schema as a fresh copy, without the old keys."""
    loaded: dict[str, Any] = json.loads(schema_text())
    for section, names in renamed_keys().items():
        for old in names:
            del loaded["properties"][section]["properties"][old]
    return loaded


@functools.cache
def renamed_keys() -> dict[str, dict[str, str]]:
    """Return the old keys of each section with their new names: the schema's `renamedTo`."""
    sections = json.loads(schema_text()).get("properties", {})
    return {
        section: {
            key: child["renamedTo"]
            for key, child in rules.get("properties", {}).items()
            if "renamedTo" in child
        }
        for section, rules in sections.items()
    }


@functools.cache
def secret_keys() -> frozenset[str]:
    """Return the keys, in lower case, whose values krelay never shows: those with `writeOnly`."""
    return frozenset(name.lower() for name in _write_only(load_schema()))


def is_secret(key: str | None) -> bool:
    """Return whether a key holds a secret, wherever it stands and in whatever case."""
    return key is not None and key.lower() in secret_keys()


def _write_only(rules: Any) -> Iterator[str]:
    if isinstance(rules, dict):
        for key, child in rules.items():
            if isinstance(child, dict) and child.get("writeOnly") is True:
                yield key
            yield from _write_only(child)
    elif isinstance(rules, list):
        for child in rules:
            yield from _write_only(child)
