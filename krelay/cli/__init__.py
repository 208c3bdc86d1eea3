"""The command line: arguments in, lines and exit codes out."""

from __future__ import annotations
