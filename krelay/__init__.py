"""krelay: local TCP and UDP ports, relayed into a Kubernetes cluster.

`krelay.relay` keeps forwards for as long as a `with` block lasts. It is imported at its first use:
the agent ships only this package's `wire` and `mux`, and pytest loads `pytest_plugin` in each run.
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from krelay.api import relay as relay


def __getattr__(name: str) -> object:
    if name == "relay":
        from krelay.api import relay

        return relay
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
