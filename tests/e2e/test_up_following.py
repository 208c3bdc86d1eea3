"""Routes follow the cluster as it changes, and no request fails."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e import kit
from tests.e2e.kit import Krelay

Make = Callable[..., str]


class Load:
    """New requests, one after the other, from several threads, until the block ends."""

    def __init__(self, *addresses: kit.Address, threads: int = 2) -> None:
        self.results: Counter[str] = Counter()
        self._stop = threading.Event()
        self._progress = threading.Condition()
        self._threads = [
            threading.Thread(target=self._ask, args=(address,))
            for address in addresses
            for _ in range(threads)
        ]

    def _ask(self, address: kit.Address) -> None:
        while not self._stop.is_set():
            try:
                kit.http_get(address, "/")
                result = "ok"
            except (OSError, AssertionError) as exc:
                result = repr(exc)
            with self._progress:
                self.results[result] += 1
                self._progress.notify_all()

    def wait(self, more: int) -> None:
        """Wait until so many requests more were answered, whatever came of them."""
        with self._progress:
            goal = self.results.total() + more
            assert self._progress.wait_for(lambda: self.results.total() >= goal, 60)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


@pytest.fixture
def place(namespace: Make) -> str:
    """A namespace with a Deployment of two pods and a StatefulSet of two behind Services."""
    name = namespace()
    kit.apply(
        name,
        kit.program(),
        kit.workload("Deployment", "web", 2),
        kit.workload("StatefulSet", "db", 2),
        kit.service("web", "web"),
        kit.service("local", "web", internalTrafficPolicy="Local"),
        kit.service("db", "db", clusterIP="None"),
    )
    kit.kubectl("-n", name, "rollout", "status", "deploy/web", "--timeout=170s")
    kit.kubectl("-n", name, "rollout", "status", "sts/db", "--timeout=170s")
    return name


def config(namespace: str, targets: str) -> str:
    lines = "".join(f"  {line.strip()}\n" for line in targets.strip().splitlines())
    return f"apiVersion: krelay/v1\nnamespace: {namespace}\ntargets:\n{lines}"


def test_no_request_fails_in_a_rolling_update_and_a_pod_deletion(
    place: str, tmp_path: Path
) -> None:
    text = config(
        place,
        """
        svc: svc/web :80
        deploy: deploy/web :8000
        sts: sts/db :8000
        headless: svc/db :http
        local: svc/local :80
        mine: {target: svc/web, port: ":80", affinity: client}
        """,
    )
    with kit.up(text, tmp_path, 6) as krelay:
        names = ("svc", "deploy", "sts", "headless", "local", "mine")
        addresses = [krelay.address(name) for name in names]
        with Load(*addresses) as load:
            load.wait(100)
            kit.kubectl("-n", place, "rollout", "restart", "deploy/web", "sts/db")
            kit.kubectl("-n", place, "rollout", "status", "deploy/web", "--timeout=170s")
            kit.kubectl("-n", place, "rollout", "status", "sts/db", "--timeout=170s")
            load.wait(100)
            pods = [pod["metadata"]["name"] for pod in kit.get(place, "pods")["items"]]
            doomed = [next(p for p in pods if p.startswith(kind)) for kind in ("web", "db")]
            kit.kubectl("-n", place, "delete", "pod", *doomed)
            load.wait(100)
        assert set(load.results) == {"ok"}, f"{load.results}\n{krelay.told()}"


def test_a_live_connection_to_a_pod_that_stays_is_left_alone(place: str, tmp_path: Path) -> None:
    with kit.up(config(place, "db: sts/db :9000"), tmp_path, 1) as krelay:
        with kit.command(krelay.address("db"), "tick") as sock:
            lines = sock.makefile()
            assert lines.readline() == "0\n"
            used = "db-0" if any("pod db-0" in line for line in krelay.log) else "db-1"
            other = "db-1" if used == "db-0" else "db-0"
            kit.kubectl("-n", place, "delete", "pod", other, "--wait=false")
            for number in range(1, 101):
                assert lines.readline() == f"{number}\n"


def test_endpoints_from_none_to_some(place: str, tmp_path: Path) -> None:
    kit.kubectl("-n", place, "scale", "deploy/web", "--replicas=0")
    kit.kubectl("-n", place, "wait", "--for=delete", "pod", "-l", "app=web", "--timeout=170s")
    with kit.up(
        config(place, "web: svc/web :80\n deploy: deploy/web :8000"), tmp_path, 2
    ) as krelay:
        krelay.wait_log("no ready endpoint")
        with Load(krelay.address("web"), krelay.address("deploy"), threads=1) as load:
            kit.kubectl("-n", place, "scale", "deploy/web", "--replicas=1")
            load.wait(4)
        assert set(load.results) == {"ok"}, f"{load.results}\n{krelay.told()}"


def test_nobody_there_is_a_reset_after_the_parking_time(place: str, tmp_path: Path) -> None:
    text = config(place, "web: svc/nobody 0:80") + "tunnel: {openTimeout: 500ms}\n"
    with kit.up(text, tmp_path, 1) as krelay:
        with pytest.raises(ConnectionResetError), kit.dial(krelay.address("web")) as sock:
            kit.read_all(sock)
        krelay.wait_log('services "nobody" not found')


def test_a_service_that_is_made_anew(place: str, tmp_path: Path) -> None:
    with kit.up(config(place, "web: svc/web :80"), tmp_path, 1) as krelay:
        before = kit.get(place, "svc", "web")["spec"]["clusterIP"]
        assert kit.http_get(krelay.address("web"))
        kit.kubectl("-n", place, "delete", "svc", "web")
        krelay.wait_log('services "web" not found')
        # Another one may not get the same address: that is the point.
        kit.apply(place, kit.service("taker", "web", clusterIP=before))
        kit.apply(place, kit.service("web", "web"))
        assert kit.get(place, "svc", "web")["spec"]["clusterIP"] != before
        try:
            assert kit.http_get(krelay.address("web"))
        except ConnectionError as exc:
            raise AssertionError(krelay.told()) from exc


def test_a_lost_agent_is_replaced(place: str, tmp_path: Path) -> None:
    with kit.up(config(place, "web: svc/web :80"), tmp_path, 1) as krelay:
        assert kit.http_get(krelay.address("web"))
        kit.kubectl("-n", place, "delete", "pod", "-l", "app=krelay-server", "--wait=false")
        krelay.wait_log("is being deleted")
        krelay.wait_log("tunnel lost")
        assert kit.http_get(krelay.address("web"))


def test_two_namespaces_in_one_file(place: str, world: str, tmp_path: Path) -> None:
    text = config(place, f"here: svc/web :80\n there: svc/bare :80 -n {world}")
    with kit.up(text, tmp_path, 2) as krelay:
        assert kit.http_get(krelay.address("here")).startswith(b"web-")
        assert kit.http_get(krelay.address("there")) == b"solo\n"


def test_krelay_follows_a_rollout_of_a_daemonset(world: str, relay: Krelay) -> None:
    with Load(relay.address("ds")) as load:
        load.wait(10)
        kit.kubectl("-n", world, "rollout", "restart", "ds/node")
        kit.kubectl("-n", world, "rollout", "status", "ds/node", "--timeout=170s")
        load.wait(10)
    assert set(load.results) == {"ok"}, f"{load.results}\n{relay.told()}"
