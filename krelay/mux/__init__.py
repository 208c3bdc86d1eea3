"""The wire on asyncio, for both ends: connections, their streams, and relays to sockets.

Ships with the agent, so it uses the standard library only.
"""

from __future__ import annotations
