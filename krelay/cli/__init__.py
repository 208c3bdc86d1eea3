"""The commands: arguments in, lines and exit codes out; what they do is done elsewhere."""

from __future__ import annotations
