"""The program in the cluster. It uses only the standard library, `krelay.wire` and `krelay.mux`."""

from __future__ import annotations

HOST, PORT = "127.0.0.1", 9527
"""Where an agent listens by default."""
