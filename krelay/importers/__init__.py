"""Write a krelay.yaml from other tools' files or from a namespace: `krelay import` and `init`."""

from __future__ import annotations

from krelay.importers.entry import Converted
from krelay.importers.formats import convert
from krelay.importers.services import kubefwd, starter

__all__ = ["Converted", "convert", "kubefwd", "starter"]
