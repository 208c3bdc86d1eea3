"""Build the wheel and the sdist, twice, and require the same bytes: `python -m release.build`."""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def build(directory: Path, *, sdist: bool = True) -> list[Path]:
    """Return the paths of the wheel and the sdist in `directory`; older ones there are removed.

    Raises:
        RuntimeError: two builds differ.
    """
    for pattern in ("krelay-*.whl", "krelay-*.tar.gz"):
        for old in directory.glob(pattern):
            old.unlink()
    targets = ["wheel", *(["sdist"] if sdist else [])]
    made = hatchling(directory, targets)
    with tempfile.TemporaryDirectory() as again:
        hatchling(Path(again), targets)
        for path in made:
            if digest(path) != digest(Path(again) / path.name):
                raise RuntimeError(f"two builds of {path.name} differ")
    return made


def hatchling(directory: Path, targets: list[str]) -> list[Path]:
    """Build with the hatchling of this environment, without the network."""
    for target in targets:
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", directory],
            cwd=ROOT,
            env={**os.environ, "SOURCE_DATE_EPOCH": commit_time()},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
    return sorted(path for path in directory.glob("krelay-*") if path.suffix in (".whl", ".gz"))


def commit_time() -> str:
    """Return the time of the last commit, which archives carry; in an sdist, a fixed time."""
    done = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "1580601600"


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the wheel and the sdist reproducibly.")
    parser.add_argument("--directory", type=Path, default=ROOT / "dist")
    parser.add_argument("--wheel", action="store_true", help="Build the wheel only.")
    args = parser.parse_args()
    args.directory.mkdir(exist_ok=True)
    for path in build(args.directory, sdist=not args.wheel):
        print(f"{path}: sha256 {digest(path)}")


if __name__ == "__main__":
    main()
