"""The bytes: listener -> route -> pool -> tunnel. What they mean is decided elsewhere."""

from __future__ import annotations
