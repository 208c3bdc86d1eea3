"""The commands of `krelay`, by task: their options and arguments."""

from __future__ import annotations
