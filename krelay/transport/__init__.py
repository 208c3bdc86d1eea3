"""Transport: the byte pipe under a tunnel, to a pod's port by way of the API server or by TCP.

`portforward.open_portforward` -> `connect` (sockets, `proxy`, TLS; `dialogue` while both ends
still take turns) -> `upgrade` (`http`, the two carriers; `refusal` where it is refused) -> `pipe`,
which is a transport to the protocol above. `spdy` is what both carriers carry, `tcp` the way to
an agent on this machine.
"""

from __future__ import annotations
