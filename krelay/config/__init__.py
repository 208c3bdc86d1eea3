"""Read what to relay: a krelay.yaml, a targets.txt or a command line becomes a Config."""

from __future__ import annotations

from krelay.config.load import load, parse, parse_target
from krelay.config.schema import load_schema, schema_text

__all__ = ["load", "load_schema", "parse", "parse_target", "schema_text"]
