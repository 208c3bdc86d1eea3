"""Write a krelay.yaml from other tools' files or from a namespace: `krelay import` and `init`."""

from __future__ import annotations

from krelay.importers.entry import Converted
from krelay.importers.formats import Foreign, read
from krelay.importers.pod_ports import Place, Services, places
from krelay.importers.services import kubefwd, local_ports, starter

__all__ = [
    "Converted",
    "Foreign",
    "Place",
    "Services",
    "kubefwd",
    "local_ports",
    "places",
    "read",
    "starter",
]
