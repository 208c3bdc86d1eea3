"""krelay as its README installs it: a wheel of this checkout in a separate environment.

The packages are those of the lock, not those that developers have.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

from benchmarks.place import ROOT

FOLDER = ROOT / ".venv-bench"
LOCK = ROOT / "requirements.lock"
"""The packages that the README's install line brings, the extra `speed` among them."""
EXTRA = "speed"


def run(*command: str | Path) -> str:
    """Run a step; show what it said if it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise SystemExit(f"Installing krelay failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def krelay() -> Path:
    """Install this checkout, and return the program."""
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    stamp, python = FOLDER / "locks", FOLDER / "bin" / "python"
    pip = (python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install")
    if not stamp.exists() or stamp.read_text() != digest:
        venv.create(FOLDER, clear=True, with_pip=True)
        run(*pip, "--require-hashes", "--only-binary", ":all:", "-r", LOCK)
        stamp.write_text(digest)
    with tempfile.TemporaryDirectory() as folder:
        build = (sys.executable, "-m", "hatchling", "build", "--target", "wheel")
        run(*build, "--directory", folder)
        (wheel,) = Path(folder).glob("*.whl")
        run(*pip, "--no-index", "--no-deps", "--force-reinstall", wheel)
    return FOLDER / "bin" / "krelay"


def has_engine() -> bool:
    """Tell whether the README's install line brings the faster TLS engine."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return EXTRA in project["optional-dependencies"]


def versions() -> dict[str, str]:
    """Return the versions of what krelay's speed depends on."""
    listed = run(FOLDER / "bin" / "python", "-m", "pip", "list", "--format", "freeze")
    wanted = ("krelay", "aiofastnet", "websockets", "aiohttp")
    pairs = (line.partition("==") for line in listed.splitlines())
    return {name: version for name, _, version in pairs if name in wanted}
