"""In-cluster: the API server and the service account of the pod that krelay runs in.

As client-go's rest/config.go (InClusterConfig) and clientcmd/client_config.go
(inClusterClientConfig). All functions block: call them in a thread.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from krelay.cluster.auth.files import read_file
from krelay.errors import CredentialsError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def is_possible(environ: Mapping[str, str], folder: Path = SERVICE_ACCOUNT) -> bool:
    """Return whether krelay runs in a pod with a service account."""
    named = all(environ.get(f"KUBERNETES_SERVICE_{part}") for part in ("HOST", "PORT"))
    return named and (folder / "token").is_file()


def namespace(environ: Mapping[str, str], folder: Path = SERVICE_ACCOUNT) -> str:
    """Return the namespace of the pod: what POD_NAMESPACE says, else the service account's."""
    if given := environ.get("POD_NAMESPACE"):
        return given
    try:
        return read_file(folder / "namespace").decode().strip() or "default"
    except (OSError, UnicodeError):
        return "default"


def server_and_entries(
    environ: Mapping[str, str], folder: Path = SERVICE_ACCOUNT
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the URL of the API server, and entries of a cluster and a user as in kubeconfig.

    Raises:
        CredentialsError: the pod has no usable service account.
    """
    library = incluster_config()
    found = SimpleNamespace(host="", ssl_ca_cert="", api_key={})
    try:
        # The library reads the token once; krelay reads its file again when it may have changed.
        library.InClusterConfigLoader(
            token_filename=str(folder / "token"),
            cert_filename=str(folder / "ca.crt"),
            try_refresh_token=False,
            environ=environ,
        ).load_and_set(found)
    except (library.ConfigException, OSError, UnicodeError) as exc:
        raise CredentialsError(f"the pod's service account in {folder}: {exc}") from exc
    return (
        found.host,
        {"certificate-authority": found.ssl_ca_cert},
        {"tokenFile": f"{folder}/token"},
    )


_LIBRARY = "kubernetes_asyncio"
_MODULE = f"{_LIBRARY}.config.incluster_config"


def incluster_config() -> Any:
    """Return the module `kubernetes_asyncio.config.incluster_config`, without the API models.

    `import kubernetes_asyncio` runs 900 files: 0.4 s and 40 MB. Its package `config` uses two
    names of them, in functions that krelay never calls, so it is imported with a stand-in for
    `kubernetes_asyncio.client`, which is removed afterwards. If a release of the library does not
    allow this, it is imported as usual.
    """
    if _LIBRARY not in sys.modules:
        with contextlib.suppress(ImportError, AttributeError):
            return _import_without_models()
    return importlib.import_module(_MODULE)


def _import_without_models() -> ModuleType:
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
        return importlib.import_module(_MODULE)
    finally:
        # A copy, since another thread may import a module meanwhile.
        for name in [name for name in list(sys.modules) if name.split(".")[0] == _LIBRARY]:
            del sys.modules[name]
