"""Transport: the byte pipe under a tunnel, to a pod's port through the API server, or by TCP.

`portforward` opens it: `connect` dials, passes a proxy and TLS; `upgrade` asks for the
port-forward by `http` and returns the carrier (plain, or `websocket`) of its `spdy`; `pipe` is the
asyncio transport on top.
"""

from __future__ import annotations
