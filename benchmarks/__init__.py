"""Measurements on the real cluster, side by side with kubectl port-forward."""

from __future__ import annotations
