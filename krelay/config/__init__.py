"""Control stage 1, what you asked for: a krelay.yaml, a targets.txt or a command line -> Config."""

from __future__ import annotations

from krelay.config.load import load, parse, parse_target
from krelay.config.schema import schema

__all__ = ["load", "parse", "parse_target", "schema"]
