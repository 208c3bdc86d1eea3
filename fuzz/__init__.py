"""Fuzzing: hostile bytes for whatever reads what others wrote; `make fuzz` (docs/testing.md)."""

from __future__ import annotations
