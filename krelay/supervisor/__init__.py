"""Make a config run: forwards, watchers and agents, through every edit until the end."""

from __future__ import annotations
