"""The images, in a pod and by docker-compose.yml as it is: what is beside krelay reaches the
cluster."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e import kit
from tests.e2e.conftest import STARTER
from tests.e2e.docker import Docker, daemon, kubeconfig, missing

AGENT = "krelay.test/krelay-server:1"
KRELAY = "krelay.test/krelay:1"
USER = 12_345
"""The owner of the kubeconfig, a user id that no image knows."""

# The Dockerfiles' own base is one of a registry, by its digest.
BASE = ("--build-arg", f"BASE={kit.IMAGE}")

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}

pytestmark = pytest.mark.timeout(400)

GET = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=10).read().decode())"

# Asks the DNS server at krelay:5353; argv[1] is the question.
ASK = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(10)
sock.sendto(bytes.fromhex(sys.argv[1]), ("krelay", 5353))
print(socket.inet_ntoa(sock.recv(512)[-4:]))
"""

PRISON = """
import errno, os
for line in open("/proc/1/status"):
    if line.split(":")[0] in ("Uid", "CapPrm", "CapEff", "CapBnd", "NoNewPrivs"):
        print(*line.split()[:2])
for path in ("/x", "/etc/krelay/x", "/opt/krelay/x", "/tmp/x", "/kube/config"):
    try:
        open(path, "a")
    except OSError as exc:
        print(path, errno.errorcode[exc.errno])
open(os.environ["XDG_RUNTIME_DIR"] + "/x", "w")
"""


def question(name: str) -> bytes:
    """A DNS query for a name's IPv4 address."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return b"kr\1\0\0\1" + bytes(6) + labels + b"\0\0\1\0\1"


def starter() -> Path:
    """The program that keeps the cluster; it has the images' archives, and takes more images."""
    return (kit.ROOT / STARTER).resolve()


def ship(docker: Docker, image: str, folder: Path) -> None:
    """Give an image to the cluster's node."""
    archive = folder / "image.tar"
    docker.run("docker", "save", "-o", archive, image)
    subprocess.run(
        [starter(), "image", image, archive], check=True, capture_output=True, timeout=60
    )


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    """A daemon with the images' base."""
    lacks = missing() + ([] if starter().exists() else [f"images to load ({starter()})"])
    if lacks:
        assert not os.environ.get("KRELAY_TEST_ALL"), f"this machine lacks {', '.join(lacks)}"
        pytest.skip(f"this machine lacks {', '.join(lacks)}")
    found = subprocess.run([starter(), "images"], check=True, capture_output=True, text=True)
    with tempfile.TemporaryDirectory(prefix="kr-") as folder, daemon(Path(folder)) as running:
        running.load(Path(found.stdout.strip()), kit.IMAGE)
        yield running


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as it is cloned, and a wheelhouse in it, since no index is reachable."""
    folder = tmp_path_factory.mktemp("project") / "krelay"
    hidden = shutil.ignore_patterns(".*", "__pycache__", "wheelhouse")
    shutil.copytree(kit.ROOT, folder, ignore=hidden)
    shutil.copy(kit.ROOT / ".dockerignore", folder)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    pip += ["--dest", "wheelhouse", "--only-binary", ":all:", "--require-hashes"]
    pip += ["--python-version", "3.11"]  # the base's
    for lock in ("requirements.lock", "requirements-build.lock"):
        subprocess.run([*pip, "-r", lock], cwd=folder, check=True, timeout=180)
    return folder


class Compose:
    """docker-compose in a checkout of the project."""

    def __init__(self, docker: Docker, checkout: Path, namespace: str) -> None:
        self._docker = docker
        self._checkout = checkout
        self.file = checkout / "examples" / "compose" / "krelay.yaml"
        key = checkout.parent / "kubeconfig"
        kubeconfig(key)
        os.chown(key, USER, USER)
        self._environ: dict[str, Any] = {
            "KRELAY_KUBECONFIG": str(key),
            "KRELAY_USER": f"{USER}:{USER}",
            "KRELAY_NAMESPACE": namespace,
        }

    def __call__(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self._docker.run(
            "docker-compose", *args, cwd=self._checkout, check=check, **self._environ
        )

    def python(self, service: str, code: str, *args: str, check: bool = True) -> str:
        """What a program prints in a container."""
        done = self("exec", "-T", service, "python3", "-c", code, *args, check=check)
        return done.stdout.strip()

    def container(self, service: str) -> str:
        """Its id."""
        return self("ps", "-q", service).stdout.strip()


@pytest.fixture
def compose(
    docker: Docker, checkout: Path, namespace: Callable[..., str]
) -> Iterator[tuple[Compose, str]]:
    """What docker-compose.yml describes, up, and the namespace that it leads to."""
    place = namespace()
    kit.apply(place, kit.program(), kit.workload("Deployment", "web"), kit.service("web", "web"))
    made = Compose(docker, checkout, place)
    made("build", *BASE)
    kit.kubectl("-n", place, "rollout", "status", "deploy/web", "--timeout=170s")
    try:
        made("up", "-d")
        yield made, place
    except BaseException:
        print(made("logs", "--no-color", check=False).stdout)
        raise
    finally:
        made("down", "--volumes")


def test_an_app_reaches_the_cluster_through_the_sidecar(
    docker: Docker, compose: tuple[Compose, str]
) -> None:
    do, place = compose
    krelay = do.container("krelay")

    # The app was started when krelay was healthy, and not before.
    state = docker.inspect(krelay)["State"]
    assert state["Health"]["Status"] == "healthy"
    assert state["Health"]["Log"][-1]["End"] <= docker.inspect(do.container("app"))["Created"]

    pod = kit.get(place, "pods", "-l", "app=web")["items"][0]["metadata"]["name"]
    assert do.python("app", GET, "http://krelay:8080/") == pod
    assert do.python("app", GET, "http://web:8080/") == pod
    address = kit.get(place, "service", "web")["spec"]["clusterIP"]
    asked = question(f"web.{place}.svc.cluster.local").hex()
    assert do.python("app", ASK, asked) == address
    kit.eventually(lambda: "200 " in do("logs", "app").stdout, "the app's own request")

    # No user's rights, no capabilities, nothing to write to but the socket's directory.
    assert do.python("krelay", PRISON).splitlines() == [
        f"Uid: {USER}",
        "CapPrm: 0000000000000000",
        "CapEff: 0000000000000000",
        "CapBnd: 0000000000000000",
        "NoNewPrivs: 1",
        *(f"{path} EROFS" for path in ("/x", "/etc/krelay/x", "/opt/krelay/x", "/tmp/x")),
        "/kube/config EROFS",
    ]
    assert (
        "No module named" in do("exec", "-T", "krelay", "python3", "-m", "pip", check=False).stderr
    )

    # Saved on the host as editors do it, by renaming.
    text = do.file.read_text()
    edited = do.file.with_name("krelay.yaml.new")
    edited.write_text(f"{text}  more: svc/web 8081:80\n")
    edited.rename(do.file)
    kit.eventually(
        lambda: do.python("app", GET, "http://krelay:8081/", check=False) == pod, "the edit"
    )
    assert do("exec", "-T", "krelay", "krelay", "wait", "more").returncode == 0
    do.file.write_text(f"{text}  dead: svc/nowhere 8082:80\n")
    kit.eventually(
        lambda: "dead" in do("exec", "-T", "krelay", "krelay", "status").stdout, "the second edit"
    )
    assert (
        do("exec", "-T", "krelay", "krelay", "wait", "--timeout", "1s", check=False).returncode == 3
    )

    assert len(kit.agents(place)) == 2
    do("stop")
    assert docker.inspect(krelay)["State"]["ExitCode"] == 0
    kit.assert_no_agents(place)


def test_an_agent_from_an_image_of_its_own(
    docker: Docker, checkout: Path, namespace: Callable[..., str], tmp_path: Path
) -> None:
    build = ("docker", "build", *BASE, "-f", "agent/Dockerfile", "-t", AGENT, ".")
    docker.run(*build, cwd=checkout)
    ship(docker, AGENT, tmp_path)
    place = namespace(**RESTRICTED)
    config = f"""
apiVersion: krelay/v1
namespace: {place}
agent: {{image: {AGENT}}}
targets: {{dns: -n kube-system svc/kube-dns :53/tcp}}
"""
    with kit.up(config, tmp_path, 1) as krelay:
        (pod,) = kit.get(place, "pods", "-l", "app=krelay-server")["items"]
        (container,) = pod["spec"]["containers"]
        assert container["image"] == AGENT
        assert "command" not in container
        assert {variable["name"] for variable in container["env"]} == {
            "KRELAY_KEY_SHA256",
            "KRELAY_POD_IP",
        }
        query = question("kubernetes.default.svc.cluster.local")
        with kit.dial(krelay.address("dns")) as sock:
            sock.sendall(len(query).to_bytes(2, "big") + query)
            answer = sock.recv(1024)
        service = kit.get("default", "service", "kubernetes")
        assert socket.inet_ntoa(answer[-4:]) == service["spec"]["clusterIP"]


def test_a_wheel_that_is_not_the_locked_one_is_refused(docker: Docker, checkout: Path) -> None:
    """It would install without a word otherwise: nothing but its content is another."""
    (wheel,) = (checkout / "wheelhouse").glob("h11-*.whl")
    original = wheel.read_bytes()
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("h11/_more.py", "print('not of h11')\n")
    try:
        build = ("docker", "build", *BASE, "-t", "krelay.test/changed", ".")
        done = docker.run(*build, cwd=checkout, check=False)
    finally:
        wheel.write_bytes(original)
    assert done.returncode
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in done.stdout + done.stderr


def documented() -> dict[str, Any]:
    """The pod of docs/running.md, with the image that was built."""
    section = (kit.ROOT / "docs" / "running.md").read_text().split("## In a pod\n")[1]
    pod: dict[str, Any] = yaml.safe_load(section.split("```yaml\n")[1].split("```")[0])
    pod["spec"]["containers"][0]["image"] = KRELAY
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "krelay"}, **pod}


def test_in_a_pod_it_is_the_service_account(
    docker: Docker, checkout: Path, namespace: Callable[..., str], tmp_path: Path
) -> None:
    docker.run("docker", "build", *BASE, "-t", KRELAY, ".", cwd=checkout)
    ship(docker, KRELAY, tmp_path)
    web, place = namespace(), namespace(**RESTRICTED)
    kit.apply(web, kit.program(), kit.workload("Deployment", "web"), kit.service("web", "web"))

    config = f"""
apiVersion: krelay/v1
defaults: {{listen: 0.0.0.0}}
targets: {{web: -n {web} svc/web 8080:80}}
"""
    rbac = [sys.executable, "-m", "krelay", "rbac", "-f", "-"]
    roles = subprocess.run(
        [*rbac, "--serviceaccount", f"{place}:krelay"],
        input=f"namespace: {place}\n{config}",
        check=True,
        capture_output=True,
        text=True,
    )
    kit.kubectl("apply", "-f", "-", stdin=roles.stdout)
    kit.apply(
        place,
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "krelay"}},
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "krelay"},
            "data": {"krelay.yaml": config},
        },
        documented(),
    )
    kit.kubectl("-n", web, "rollout", "status", "deploy/web", "--timeout=170s")
    kit.kubectl("-n", place, "wait", "--for=condition=Ready", "pod/krelay", "--timeout=170s")

    # Its agent is in its own namespace; what asks it is another pod.
    assert len(kit.agents(place)) == 2
    address = kit.get(place, "pod", "krelay")["status"]["podIP"]
    pod = kit.get(web, "pods", "-l", "app=web")["items"][0]["metadata"]["name"]
    asked = ["exec", pod, "--", "python3", "-c", GET, f"http://{address}:8080/"]
    assert kit.kubectl("-n", web, *asked).strip() == pod
    kit.kubectl("-n", place, "delete", "pod", "krelay", "--timeout=50s")
    kit.assert_no_agents(place)
