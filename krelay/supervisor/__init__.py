"""Control stage 3, what runs: Configs -> forwards, watches and agents; owns every lifetime."""

from __future__ import annotations
