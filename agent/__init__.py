"""The program in the cluster. It uses only the standard library, `krelay.wire` and `krelay.mux`."""

from __future__ import annotations
