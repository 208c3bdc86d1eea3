"""The kubeconfig reader of kubernetes_asyncio, without the thousand API models beside it.

`import kubernetes_asyncio` runs 900 files: 0.4 s and 40 MB that a relay has no use for. Its
`config` package needs two names of them, and only in functions that krelay never calls, so it
is imported with a stand-in for `kubernetes_asyncio.client`. The stand-in is gone again when the
import is done: whoever imports the library later gets all of it. Should a release of the library
not bear that, it is imported the usual way, and only the memory is lost.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

_LIBRARY = "kubernetes_asyncio"


@functools.cache
def kube_config() -> Any:
    """The module `kubernetes_asyncio.config.kube_config`. Takes 50 ms or more the first time."""
    if _LIBRARY not in sys.modules:
        try:
            return _alone()
        except (ImportError, AttributeError):
            pass
    return importlib.import_module(f"{_LIBRARY}.config.kube_config")


def _alone() -> ModuleType:
    spec = importlib.util.find_spec(_LIBRARY)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(_LIBRARY)
    package = ModuleType(_LIBRARY)
    package.__path__ = list(spec.submodule_search_locations)
    client = ModuleType(f"{_LIBRARY}.client")
    for name in ("ApiClient", "Configuration"):
        setattr(client, name, type(name, (), {}))
    sys.modules[_LIBRARY] = package
    sys.modules[client.__name__] = client
    try:
        return importlib.import_module(f"{_LIBRARY}.config.kube_config")
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == _LIBRARY]:
            del sys.modules[name]
