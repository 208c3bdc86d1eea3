"""The pod that krelay runs in. kubectl gave its answers in a private mount namespace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from krelay.cluster.auth.kubeconfig import Login, Overrides, load
from krelay.errors import CredentialsError

KUBECONFIG = """
current-context: dev
clusters: [{name: c, cluster: {server: "https://dev.test"}}]
contexts:
- {name: dev, context: {cluster: c, user: u}}
- {name: team, context: {cluster: c, user: u, namespace: default}}
users: [{name: u, user: {token: t}}]
"""
POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


@pytest.fixture
def service_account(tmp_path: Path) -> Path:
    folder = tmp_path / "serviceaccount"
    folder.mkdir()
    for name, text in (("token", "t"), ("namespace", "team\n"), ("ca.crt", "x")):
        (folder / name).write_text(text)
    return folder


def logged_in(folder: Path, *, context: str | None = None, **environ: str) -> Login:
    """Return the login of a pod whose home is empty."""
    return load(
        context, environ={"HOME": str(folder / "none"), **POD, **environ}, service_account=folder
    )


def test_a_pod_uses_its_service_account(service_account: Path) -> None:
    login = logged_in(service_account)
    assert (login.server, login.namespace, login.context) == ("https://10.96.0.1:443", "team", None)
    assert login.user == {"tokenFile": str(service_account / "token")}
    assert login.cluster["certificate-authority"] == str(service_account / "ca.crt")
    assert logged_in(service_account, KUBERNETES_SERVICE_HOST="fd00::1").server == (
        "https://[fd00::1]:443"
    )


def test_the_variable_of_a_pod_beats_the_service_accounts_namespace(service_account: Path) -> None:
    assert logged_in(service_account, POD_NAMESPACE="other").namespace == "other"
    assert logged_in(service_account, POD_NAMESPACE="").namespace == "team"
    (service_account / "namespace").unlink()
    assert logged_in(service_account).namespace == "default"


def test_a_pod_needs_the_port_of_the_api_server(service_account: Path) -> None:
    with pytest.raises(CredentialsError, match="no kubeconfig"):
        logged_in(service_account, KUBERNETES_SERVICE_PORT="")


def test_a_service_account_without_an_authority_is_an_error(service_account: Path) -> None:
    (service_account / "ca.crt").unlink()
    with pytest.raises(CredentialsError, match="service account"):
        logged_in(service_account)


def test_a_kubeconfig_wins_over_the_service_account(service_account: Path, tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(KUBECONFIG)
    assert logged_in(service_account, KUBECONFIG=str(path)).context == "dev"
    path.write_text(KUBECONFIG.replace("current-context: dev", ""))
    assert logged_in(service_account, KUBECONFIG=str(path)).server == "https://10.96.0.1:443"
    assert logged_in(service_account, KUBECONFIG=str(path), context="dev").context == "dev"
    assert logged_in(service_account, KUBECONFIG="/none").server == "https://10.96.0.1:443"


def test_a_context_without_a_namespace_has_the_pods(service_account: Path, tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(KUBECONFIG)
    file = str(path)
    assert logged_in(service_account, KUBECONFIG=file).namespace == "team"
    assert logged_in(service_account, KUBECONFIG=file, POD_NAMESPACE="x").namespace == "x"
    named = logged_in(service_account, KUBECONFIG=file, context="team")
    assert named.namespace == "default"
    outside = load(environ={"KUBECONFIG": file, "POD_NAMESPACE": "x"}, service_account=tmp_path)
    assert outside.namespace == "default", "the variable counts in a pod only"


def test_a_server_on_the_command_line_gets_no_service_account(service_account: Path) -> None:
    login = load(
        overrides=Overrides(server="https://h"), environ=POD, service_account=service_account
    )
    assert (login.server, login.user) == ("https://h", {})


def run(script: str) -> str:
    """Return the output of a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


USE = """
import sys
from krelay.cluster.auth.in_cluster import incluster_config
print(incluster_config().InClusterConfigLoader.__name__, end=' ')
"""


@pytest.mark.process
def test_the_models_of_the_library_are_not_imported() -> None:
    """This fails if a release of the library needs more than the stand-in has."""
    script = USE + "print([name for name in sys.modules if name.startswith('kubernetes_asyncio')])"
    assert run(script) == "InClusterConfigLoader []"
    script = USE + "print('kubernetes_asyncio.client.models' in str(vars(incluster_config())))"
    assert run(script) == "InClusterConfigLoader False"


@pytest.mark.process
def test_the_whole_library_can_be_imported_after() -> None:
    script = USE + "import kubernetes_asyncio; print(kubernetes_asyncio.client.CoreV1Api.__name__)"
    assert run(script).endswith(" CoreV1Api")


@pytest.mark.process
def test_a_library_that_is_imported_already_is_used() -> None:
    script = (
        "import kubernetes_asyncio.config.incluster_config as theirs\n"
        + USE
        + "print(incluster_config() is theirs)"
    )
    assert run(script).endswith(" True")


@pytest.mark.process
def test_a_library_that_does_not_allow_the_stand_in_is_imported_whole() -> None:
    script = (
        "import krelay.cluster.auth.in_cluster as module\n"
        "def fails(): raise AttributeError\n"
        "module._import_without_models = fails\n"
        + USE
        + "print('kubernetes_asyncio.client' in sys.modules)"
    )
    assert run(script) == "InClusterConfigLoader True"
