"""A start and an edit: what binds before anything is made, and what holds up nothing else."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e import kit

Make = Callable[..., str]
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def write(tmp_path: Path, place: str, *targets: str) -> Path:
    file = tmp_path / "krelay.yaml"
    lines = "".join(f"  {target}\n" for target in targets)
    file.write_text(f"apiVersion: krelay/v1\nnamespace: {place}\ntargets:\n{lines}")
    return file


@pytest.mark.parametrize("command", ["up", "relay"])
def test_a_port_in_use_makes_nothing_in_the_cluster(
    command: str, namespace: Make, world: str, tmp_path: Path
) -> None:
    place = namespace()
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket(socket.AF_INET6) as other:
        port = taken.getsockname()[1]
        # kubectl is content with one of the two families.
        other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        other.bind(("::1", port))
        other.listen()
        if command == "up":
            file = write(tmp_path, place, f"web: svc/web {port}:80 -n {world}")
            done = kit.run("up", "-f", str(file))
        else:
            words = ("-n", world, "--agent-namespace", place, "svc/web", f"{port}:80")
            done = kit.Krelay(*words, program=("kubectl", "relay"), environ={"PATH": PATH})
            done.finish()
            theirs = ["port-forward", "-n", world, "svc/web", f"{port}:80"]
            assert kit.kubectl(*theirs, check=False) == ""
    assert done.process.returncode == 1, done.told()
    told = [line for line in done.log if "Address already in use by " in line]
    assert len(told) == 1, done.told()
    assert "(pid " in told[0]
    assert kit.agents(place) == []
    assert not [event for event in kit.get(place, "events")["items"] if "krelay" in str(event)]


def is_reset(krelay: kit.Krelay, name: str) -> bool:
    """Whether a connection is reset long before `openTimeout` is over."""
    try:
        # krelay may be so fast that connect() already reports the reset.
        with kit.dial(krelay.address(name), timeout=10.0) as sock:
            return bool(kit.read_all(sock))
    except ConnectionResetError:
        return True


def test_what_does_not_exist_holds_up_nothing_else(
    namespace: Make, world: str, tmp_path: Path
) -> None:
    place = namespace()
    missing = (
        "service: svc/missing :80",
        "pod: pod/missing :80",
        f"port: svc/web :81 -n {world}",
        f"name: svc/web 0:nope -n {world}",
        "place: svc/web :80 -n no-such-place",
    )
    file = write(tmp_path, place, *missing, f"web: svc/web :80 -n {world}")
    with kit.Krelay("up", "-f", str(file)) as krelay:
        krelay.wait_lines(6)
        assert kit.http_get(krelay.address("web"))
        for line in missing:
            name = line.partition(":")[0]
            assert is_reset(krelay, name), name
            krelay.wait_log(f"{name}: connection reset: ")
        # An edit is not held up, either.
        write(
            tmp_path,
            place,
            *missing,
            f"web: svc/web :80 -n {world}",
            f"more: svc/web :80 -n {world}",
        )
        kit.run("reload", "-f", str(file))
        krelay.wait_lines(7)
        assert kit.http_get(krelay.address("more"))
        kit.apply(
            place,
            kit.program(),
            kit.workload("Deployment", "late", 1),
            kit.service("missing", "late"),
        )
        kit.eventually(lambda: "service: ready" in "\n".join(krelay.log), "the service", 60.0)
        assert kit.http_get(krelay.address("service"))
