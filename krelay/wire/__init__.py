"""The protocol, sans-I/O: bytes and the time go in, events and bytes come out.

Shared with the agent, so standard library only; no sockets, no clock, no asyncio. The normative
text is `docs/protocol.md`; section numbers in comments are its own.
"""

from __future__ import annotations
