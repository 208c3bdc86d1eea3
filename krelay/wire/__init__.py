"""The protocol, sans-I/O: bytes and the time go in, events and bytes come out.

Client and agent share this package, so it uses the standard library only: no sockets, no clock, no
asyncio. `docs/protocol.md` is normative; comments cite its sections.
"""

from __future__ import annotations
