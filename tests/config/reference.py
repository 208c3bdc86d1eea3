"""Write the tables of docs/config.md from the schema: `python -m tests.config.reference`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from krelay.config.schema import load_schema

PAGE = Path(__file__).parents[2] / "docs" / "config.md"
_TABLES = "\n## Keys\n"


def updated(page: str) -> str:
    """Return the page with the tables of keys that the schema has now."""
    parts = [page[: page.index(_TABLES)], _TABLES]
    for path, properties in _sections((), load_schema(), load_schema()["definitions"]):
        parts.append(f"\n### {path}\n\n| key | type | default | description |\n|---|---|---|---|\n")
        parts += [_row(key, rules) for key, rules in properties.items()]
    return "".join(parts)


def _sections(
    path: tuple[str, ...], rules: dict[str, Any], definitions: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every mapping of the format under its name, outermost first."""
    if properties := rules.get("properties"):
        yield f"`{'.'.join(path)}`" if path else "The file", properties
    for key, child in rules.get("properties", {}).items():
        yield from _sections((*path, key), child, definitions)
    for step in ("items", "additionalProperties"):
        child = rules.get(step)
        if isinstance(child, dict):
            if "$ref" in child:
                child = definitions[child["$ref"].rpartition("/")[2]]
            name = f"{path[-1]}[]" if step == "items" else f"{path[-1]}.NAME"
            yield from _sections((*path[:-1], name), child, definitions)


def _row(key: str, rules: dict[str, Any]) -> str:
    if "enum" in rules:
        kind = ", ".join(word and f"`{word}`" or json.dumps(word) for word in rules["enum"])
    elif "type" in rules:
        kind = rules["type"] if isinstance(rules["type"], str) else " or ".join(rules["type"])
    else:
        kind = "any" if "allOf" not in rules else "as in `ports`"
    default = "" if rules["default"] is None else f"`{json.dumps(rules['default'])}`"
    return f"| `{key}` | {kind} | {default} | {rules['description'].replace('|', '/')} |\n"


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text("utf-8")), "utf-8")
