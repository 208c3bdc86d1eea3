"""The wire on asyncio, shared by both ends: a session's driver, its streams, and relays to sockets.

Ships with the agent, so standard library only.
"""

from __future__ import annotations
