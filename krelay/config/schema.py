"""The JSON Schema of krelay.yaml: where it is, and which of its keys are secret."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

FILE = "krelay.schema.json"


@functools.cache
def _text() -> str:
    inside = resources.files("krelay").joinpath("schema", FILE)  # a wheel brings it along
    if inside.is_file():
        return inside.read_text("utf-8")
    return (Path(__file__).parents[2] / "schema" / FILE).read_text("utf-8")  # a checkout


def schema() -> dict[str, Any]:
    """The schema, draft-07, as a fresh copy: of the wheel, or of an editable install's checkout."""
    loaded: dict[str, Any] = json.loads(_text())
    return loaded


@functools.cache
def secret_keys() -> frozenset[str]:
    """The keys, in lower case, whose values are shown nowhere: those that are `writeOnly`."""
    return frozenset(name.lower() for name in _write_only(schema()))


def is_secret(key: str | None) -> bool:
    """Whether a key of that name holds a secret, wherever it stands and in whatever case."""
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
