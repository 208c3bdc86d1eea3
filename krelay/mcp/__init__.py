"""An MCP server: a language model asks and, if allowed, controls the krelays of this user.

It needs the extra `krelay[mcp]`, the SDK of the Model Context Protocol. Nothing else of krelay
imports this package.
"""

from __future__ import annotations

OPTIONAL = ("plan", "reload", "run")
"""The tools that the user has to allow."""
