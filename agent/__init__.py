"""The program in the cluster: standard library, `krelay.wire` and `krelay.mux` alone."""

from __future__ import annotations
