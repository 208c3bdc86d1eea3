"""Install krelay in each way that docs/install.md names, and start it: `make installs`.

Each installation is new and sees nothing of this checkout. It has started if bytes come back
through `krelay up --embedded` from a server that echoes. Every Python of this machine gets the
wheel and the zipapp; the other ways, which install the same, are tried on the newest one.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from release import boot, build, zipapp

ROOT = Path(__file__).parents[1]
TOOLS = Path(sys.executable).parent
PATIENCE = 120.0
"""Seconds for a start or an answer on a busy machine."""

_TEST = """
def test_a_fixture_relays(krelay):
    import socket
    web = krelay(web="ip/127.0.0.1 :{port}", embedded=True)["web"]
    with socket.create_connection((web.host, web.port), timeout=60) as connection:
        connection.sendall(b"hello")
        assert connection.recv(5) == b"hello"
"""


class Echo(socketserver.BaseRequestHandler):
    """Sends back what it receives."""

    def handle(self) -> None:
        while data := self.request.recv(4096):
            self.request.sendall(data)


@contextmanager
def echo() -> Iterator[int]:
    """Run a server that echoes; yield its port."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


def pythons() -> dict[str, Path]:
    """Return the Pythons of this machine that krelay supports, by version, the newest last."""
    home = Path(os.environ.get("PYENV_ROOT") or Path("~/.pyenv").expanduser())
    named = filter(None, (shutil.which(f"python3.{minor}") for minor in range(11, 20)))
    paths = [*home.glob("versions/3.*/bin/python"), Path("/usr/bin/python3"), *map(Path, named)]
    code = (
        "import platform, sys, sysconfig; "
        "ok = sys.version_info >= (3, 11) and not sysconfig.get_config_var('Py_GIL_DISABLED'); "
        "print(*([platform.python_version(), sys._base_executable] if ok else []))"
    )
    found: dict[str, Path] = {}
    for path in filter(Path.exists, [*paths, Path(sys.executable)]):
        done = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
        version, _, real = done.stdout.strip().partition(" ")
        if done.returncode == 0 and version:
            found.setdefault(version, Path(real))
    return dict(sorted(found.items(), key=lambda item: [int(n) for n in item[0].split(".")[:2]]))


def run(*command: str | Path, **environ: str) -> str:
    """Return what an installer prints; show it if it fails."""
    done = subprocess.run(
        command,
        cwd=environ.pop("cwd", "/"),
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        raise RuntimeError(f"`{' '.join(map(str, command))}` failed")
    return done.stdout


def starts(folder: Path, *command: str | Path) -> None:
    """Require that bytes come back through `COMMAND up --embedded`, and that it ends well."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(home), "TMPDIR": str(home)}
    environ |= {"XDG_RUNTIME_DIR": str(home), "KUBECONFIG": os.devnull, "PYTHONWARNINGS": "error"}
    with echo() as port, (home / "log").open("w+") as log:
        file = home / "krelay.yaml"
        file.write_text(f"apiVersion: krelay/v1\ntargets: {{web: ip/127.0.0.1 :{port}}}\n")
        process = subprocess.Popen(
            [*command, "up", "--embedded"],
            cwd=home,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        limit = threading.Timer(PATIENCE, process.kill)
        limit.start()
        with process:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.match(r"web: 127\.0\.0\.1:(\d+) -> ", line)
            received = exchange(int(found[1])) if found else b""
            process.terminate()
        limit.cancel()
        text = (home / "log").read_text()
        if received != b"hello" or process.returncode or "Traceback" in text:
            name = " ".join(map(str, command))
            raise RuntimeError(f"`{name}` relayed {received!r}: {process.returncode}\n{line}{text}")


def exchange(port: int) -> bytes:
    """Send five bytes; return what comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.sendall(b"hello")
        return connection.recv(5)


class Trial:
    """The files to install, and a new folder for each installation."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._uv = shutil.which("uv", path=str(TOOLS)) or "uv"
        sdist, wheel = sorted(build.build(folder), key=lambda path: path.suffix)
        self.sdist, self.wheel = sdist, wheel
        pins = re.findall(r"^(\S+==\S+)", (ROOT / "requirements-dev.lock").read_text(), re.M)
        self.pins = folder / "pins.txt"
        """The locked versions: the test is of krelay, not of what was published today."""
        self.pins.write_text("\n".join(pins) + "\n")

    def folder(self) -> Path:
        self._count += 1
        made = self._folder / str(self._count)
        made.mkdir()
        return made

    def environment(self, python: Path, *what: str | Path) -> Path:
        """Return the folder of the programs of a new environment with `what` in it."""
        place = self.folder() / "env"
        run(self._uv, "venv", "--quiet", "--python", python, place)
        installed = place / "bin" / "python"
        pip = (self._uv, "pip", "install", "--quiet", "--python", installed)
        run(*pip, "--constraint", self.pins, *what)
        return place / "bin"

    def wheel_with(self, extras: str) -> str:
        return f"krelay[{extras}] @ {self.wheel.as_uri()}"

    def uv_tool(self, python: Path) -> Path:
        place = self.folder()
        run(
            *(self._uv, "tool", "install", "--quiet", "--python", python),
            *("--constraint", self.pins, self.wheel),
            UV_TOOL_DIR=str(place / "tools"),
            UV_TOOL_BIN_DIR=str(place / "bin"),
        )
        return place / "bin"

    def pipx(self, python: Path) -> Path:
        place = self.folder()
        run(
            *(TOOLS / "pipx", "install", "--python", python),
            *("--pip-args", f"--constraint {self.pins}", self.wheel),
            PIPX_HOME=str(place / "home"),
            PIPX_BIN_DIR=str(place / "bin"),
            PIPX_MAN_DIR=str(place / "man"),
        )
        return place / "bin"


def main() -> None:
    clock = time.monotonic()
    os.environ.setdefault("UV_HTTP_TIMEOUT", "180")  # an index may be slow

    def tell(what: str) -> None:
        print(f"ok: {what} ({time.monotonic() - clock:.0f} s)", flush=True)

    found = pythons()
    newest = [*found.values()][-1]
    with tempfile.TemporaryDirectory(prefix="krelay-installs-") as folder:
        trial = Trial(Path(folder))
        file = Path(folder) / "krelay.pyz"
        releases = {".".join(version.split(".")[:2]) for version in found}
        zipapp.build(trial.wheel, file, boot.this_platform(), sorted(releases))
        for version, python in found.items():
            programs = trial.environment(python, trial.wheel_with("speed"))
            starts(programs.parent, programs / "krelay")
            tell(f"the wheel with krelay[speed] on Python {version}")
            starts(trial.folder(), python, file)
            tell(f"krelay.pyz on Python {version}")
        ways: dict[str, Callable[[], Path]] = {
            "the sdist": lambda: trial.environment(newest, trial.sdist),
            "uv tool install": lambda: trial.uv_tool(newest),
            "pipx install": lambda: trial.pipx(newest),
        }
        for way, install in ways.items():
            programs = install()
            starts(programs.parent, programs / "krelay")
            run(programs / "kubectl-relay", "--version")
            tell(way)
        programs = trial.environment(newest, trial.wheel_with("pytest,mcp"))
        with echo() as port:
            test = programs.parent / "test_relay.py"
            test.write_text(_TEST.format(port=port))
            run(programs / "python", "-m", "pytest", "-q", test, cwd=str(programs.parent))
        run(programs / "krelay", "mcp")  # its input is at its end
        tell("krelay[pytest,mcp]")


if __name__ == "__main__":
    main()
