"""Take docs/status.png from a krelay that relays into a real cluster.

    python -m tests.docs.status_page                 # the picture of the docs
    python -m tests.docs.status_page --folder DIR    # those for a review of the page

The second one shows 1, 12 and 60 targets in three widths and both lights. Both need chromium,
kubectl, and a cluster (KUBECONFIG) that has the images of `tests/e2e`. They make the namespace
`shop`, and delete it at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.status.browser import Page, browser

ROOT = Path(__file__).parents[2]
STATUS_PORT = 19527
WATCHED = 60.0
"""Seconds for which the page watches the traffic that its charts show."""
SIZES = {400: 860, 1280: 900, 2560: 1440}

OBJECTS = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: web, image: "nginx:alpine", imagePullPolicy: IfNotPresent,
                    ports: [{name: http, containerPort: 80}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: search, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 9200}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: postgres, namespace: shop}
spec:
  serviceName: postgres
  selector: {matchLabels: {app: postgres}}
  template:
    metadata: {labels: {app: postgres}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: db, image: "krelay.test/tools:1", imagePullPolicy: IfNotPresent,
         command: [socat, "TCP-LISTEN:5432,fork,reuseaddr", "EXEC:cat"]}
      - {name: debug, image: "krelay.test/tools:1", imagePullPolicy: IfNotPresent,
         command: [socat, "TCP-LISTEN:6060,bind=127.0.0.1,fork,reuseaddr", "EXEC:cat"]}
---
apiVersion: v1
kind: Service
metadata: {name: postgres, namespace: shop}
spec: {selector: {app: postgres}, ports: [{port: 5432}]}
---
apiVersion: v1
kind: Service
metadata: {name: redis, namespace: shop}
spec: {selector: {app: postgres}, ports: [{port: 6379, targetPort: 5432}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: payments, namespace: shop}
spec:
  selector: {matchLabels: {app: payments}}
  template:
    metadata: {labels: {app: payments}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: app, image: "krelay.test/tools:1", imagePullPolicy: IfNotPresent,
                    command: [sh, -c, "exit 1"]}]
"""

HEAD = f"""
apiVersion: krelay/v1
namespace: shop
status: {{listen: "127.0.0.1:{STATUS_PORT}"}}
targets:
"""

TEN = """
  web: svc/web 8080:http
  admin: deploy/web 8081:80
  db: svc/postgres 5432
  cache: svc/redis 6379
  payments: deploy/payments 8090:8080
  search: svc/search 9200
  dns: -n kube-system svc/kube-dns 5353:53/udp
  debug: {target: pod/postgres-0, ports: [6060], via: direct}
  api-server: host/node.example.test 16443:6443
  reports: svc/reports 8099:80
"""
TWELVE = f"{TEN}  metrics: -n kube-system svc/kube-dns 9153\n  legacy: ip/10.98.0.7 2222:22\n"

CLIENT = """
import math, random, socket, sys, time
port, kind = int(sys.argv[1]), sys.argv[2]
query = b"\\x12\\x34\\1\\0\\0\\1" + bytes(6)
name = b"kube-dns.kube-system.svc.cluster.local."
query += b"".join(bytes([len(part)]) + part for part in name.split(b"."))
query += b"\\0\\1\\0\\1"
if kind == "pool":
    pool = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
while True:
    if kind == "pool":
        size = int(2000 * (1.3 + math.sin(time.time() / 5)) * random.uniform(0.7, 1.3))
        one = random.choice(pool)
        one.sendall(b"x" * size)
        while size:
            size -= len(one.recv(size))
    elif kind == "http":
        with socket.create_connection(("127.0.0.1", port)) as one:
            for _ in range(random.randint(5, 60)):
                one.sendall(b"GET / HTTP/1.1\\r\\nHost: shop\\r\\n\\r\\n")
                one.recv(65536)
                time.sleep(random.uniform(0, 0.2))
    else:
        with socket.socket(type=socket.SOCK_DGRAM) as one:
            one.connect(("127.0.0.1", port))
            for _ in range(50):
                one.send(query)
                one.recv(2048)
                time.sleep(0.5)
    time.sleep(0.1)
"""


def sixty() -> str:
    """Return sixty targets, most of which work."""
    names = "catalog orders users billing mail stock prices gateway reviews images shipping"
    lines, names_of = [], names.split()
    for number in range(60):
        name = (
            names_of[number % 11] + ["", "-staging", "-canary", "-eu", "-us", "-asia"][number // 11]
        )
        port = 21_001 + number
        target = f"svc/web {port}:http"
        if number in (17, 44):
            target = f"deploy/payments {port}:8080"
        elif number == 31:
            target = f"svc/search {port}:9200"
        elif number % 5 == 1:
            target = f"svc/postgres {port}:5432"
        elif number % 7 == 3:
            target = f"-n kube-system svc/kube-dns {port}:53/udp"
        lines.append(f"  {name}: {target}\n")
    return "".join(lines)


def kubectl(*args: str, stdin: str | None = None) -> None:
    subprocess.run(["kubectl", *args], input=stdin, text=True, check=True, stdout=sys.stderr)


@asynccontextmanager
async def relaying(folder: Path, targets: str, clients: dict[str, str]) -> AsyncIterator[None]:
    """Run krelay, and once it relays, the clients: `PORT KIND` by the name of the program."""
    folder = folder / "shop"
    folder.mkdir(exist_ok=True)
    (folder / "krelay.yaml").write_text(HEAD + targets)
    (folder / "client.py").write_text(CLIENT)
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "krelay", "up", "--plain", "-f", "shop/krelay.yaml"),
            cwd=folder.parent,
            env=environ,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    ]
    try:
        assert running[0].stdout is not None
        await running[0].stdout.readline()
        for name, words in clients.items():
            program = folder / name
            program.unlink(missing_ok=True)
            program.symlink_to(os.path.realpath(sys.executable))
            running.append(
                await asyncio.create_subprocess_exec(
                    program, folder / "client.py", *words.split(), stderr=asyncio.subprocess.DEVNULL
                )
            )
        yield
    finally:
        for process in running:
            if process.returncode is None:
                process.terminate()
        for process in running:
            await process.communicate()


@asynccontextmanager
async def page(folder: Path) -> AsyncIterator[Page]:
    """Open the page, and let it watch for a while."""
    async with browser(folder / "profile") as tab:
        await tab.shape(1280, 900)
        await tab.open(f"http://127.0.0.1:{STATUS_PORT}/")
        await asyncio.sleep(WATCHED)
        yield tab


POOLS = {"shop-api": "5432 pool", "cart": "6379 pool", "dlv": "6060 pool"}
CLIENTS = {**POOLS, "storefront": "8080 http", "resolver": "5353 dns"}
DETAILS = """
    const shown = [...rows.values()].find((row) => row.forward.target === 'db');
    toggle(shown, true); document.activeElement.blur();
"""


async def for_docs(folder: Path) -> None:
    """Take the picture of the docs: ten targets, one of them open."""
    async with relaying(folder, TEN, CLIENTS), page(folder) as tab:
        await tab.value(DETAILS)
        await asyncio.sleep(3)
        height = await tab.value(
            "document.querySelector('.targets').getBoundingClientRect().bottom"
        )
        await tab.shape(1280, int(height) + 24, scale=1.4)
        await tab.picture(ROOT / "docs" / "status.png", whole=False)


async def for_review(folder: Path, to: Path) -> None:
    """Take pictures of 1, 12 and 60 targets in all widths and both lights."""
    many = {"shop-api": "21002 pool", "cart": "21007 pool", "storefront": "21001 http"}
    one = {"storefront": "8080 http"}
    runs = {
        "1": (TEN.split("\n")[1] + "\n", one),
        "12": (TWELVE, CLIENTS),
        "60": (sixty(), many),
    }
    for name, (targets, clients) in runs.items():
        async with relaying(folder, targets, clients), page(folder) as tab:
            for details in ("", "-open"):
                if details:
                    await tab.value("open(rows.values().next().value)")
                    await asyncio.sleep(3)
                for width, height in SIZES.items():
                    for light in ("light", "dark"):
                        await tab.shape(width, height, dark=light == "dark")
                        await tab.picture(to / f"{name}{details}-{width}-{light}.png", whole=False)


def main() -> None:
    """Make what the page shows, take the pictures, and delete it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the pictures of all sizes go")
    given = parser.parse_args()
    kubectl("create", "namespace", "shop")  # fails if there is one, which is not to be deleted
    try:
        kubectl("apply", "-f", "-", stdin=OBJECTS)
        for name in ("deploy/web", "sts/postgres"):
            kubectl("-n", "shop", "rollout", "status", name, "--timeout=90s")
        with tempfile.TemporaryDirectory() as folder:
            if given.folder:
                given.folder.mkdir(exist_ok=True)
                asyncio.run(for_review(Path(folder), given.folder))
            else:
                asyncio.run(for_docs(Path(folder)))
    finally:
        kubectl("delete", "namespace", "shop", "--wait=false")


if __name__ == "__main__":
    main()
