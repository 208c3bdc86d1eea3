"""The image of the applications: Debian with their servers and clients, made once a machine.

The clients run on this machine from the same root file system, by chroot.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

NAME = "krelay.test/apps:1"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "krelay-apps"

SUITE = "bookworm"
PACKAGES = [
    *("postgresql", "postgresql-client", "mariadb-server", "mariadb-client"),
    *("redis-server", "redis-tools", "etcd-server", "etcd-client"),
    *("mosquitto", "mosquitto-clients", "nats-server", "rabbitmq-server"),
    *("openssh-server", "openssh-client", "rsync", "git", "curl", "bind9-dnsutils"),
    *("python3", "procps", "ca-certificates"),
]
LIBRARIES = ["grpcio", "aioquic", "hypercorn", "nats-py", "pika", "debugpy", "websockets"]
DELVE = "github.com/go-delve/delve/cmd/dlv@v1.27.2"
_UNUSED = ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man")

DEBUGGED = """package main

import (
	"fmt"
	"time"
)

func main() {
	for n := 0; ; n++ {
		fmt.Println(n)
		time.Sleep(time.Second)
	}
}
"""


def root() -> Path:
    """Return the root file system, made if it is missing. Takes some minutes the first time."""
    parts = json.dumps([SUITE, PACKAGES, LIBRARIES, DELVE, DEBUGGED])
    digest = hashlib.sha256(parts.encode()).hexdigest()[:12]
    found = CACHE / digest
    if found.is_dir():
        return found
    shutil.rmtree(CACHE, ignore_errors=True)
    CACHE.mkdir(parents=True)
    new = CACHE / "new"
    _run("debootstrap", "--variant=minbase", SUITE, str(new))
    # Services must not start while they are installed.
    policy = new / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    apt = ["chroot", str(new), "apt-get", "-qq"]
    for name in ("etc/apt/apt.conf.d", "etc/apt/auth.conf.d"):
        shutil.copytree(f"/{name}", new / name, dirs_exist_ok=True)
    _run(*apt, "update", environ=environ)
    _run(*apt, "install", "-y", "--no-install-recommends", *PACKAGES, environ=environ)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
    _run(*pip, "--python-version", "3.11", "--target", str(new / "opt/python"), *LIBRARIES)
    _add_go_programs(new)
    for name in _UNUSED:
        shutil.rmtree(new / name, ignore_errors=True)
    new.rename(found)
    return found


def _add_go_programs(root: Path) -> None:
    """Add Delve, and a program that it debugs."""
    source = CACHE / "debugged"
    source.mkdir()
    (source / "main.go").write_text(DEBUGGED)
    (source / "go.mod").write_text("module debugged\n\ngo 1.21\n")
    environ = os.environ | {"CGO_ENABLED": "0", "GOBIN": str(root / "usr/local/bin")}
    _run("go", "install", DELVE, environ=environ)
    program = str(root / "usr/local/bin/debugged")
    _run("go", "build", "-gcflags=all=-N -l", "-o", program, ".", environ=environ, at=source)


def _run(*words: str, environ: dict[str, str] | None = None, at: Path | None = None) -> None:
    done = subprocess.run(
        words, env=environ, cwd=at, capture_output=True, text=True, timeout=1800, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words[:4])}: {done.stderr[-2000:] or done.stdout[-2000:]}")
