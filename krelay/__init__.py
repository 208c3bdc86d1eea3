"""krelay: local TCP and UDP ports, relayed into a Kubernetes cluster.

Import-free on purpose: the agent ships this package's `wire` and `mux` alone.
"""

from __future__ import annotations

__version__ = "0.1.0"
