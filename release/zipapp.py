"""Build krelay.pyz: one file with krelay and its packages for several releases of CPython.

    python -m release.zipapp [--platform linux-x86_64] [--python 3.11 ...] WHEEL FILE

The packages have native modules, so a file is for one platform. It holds two kinds of archives:
the files that all releases of Python share, and those of each release; see `release/boot.py`.
Everything but krelay itself comes from requirements.lock, by hash. The same input gives the same
bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from release import boot

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = {
    "linux-x86_64": "x86_64-manylinux2014",
    "linux-aarch64": "aarch64-manylinux2014",
    "darwin-x86_64": "x86_64-apple-darwin",
    "darwin-arm64": "aarch64-apple-darwin",
}
"""The platforms of krelay.pyz, as `boot.this_platform` and uv name them."""

# Any Python can run this: the first `python3` of a system may be an old one.
_MAIN = """\
import sys
VERSIONS = {versions!r}
SUITS = (
    "sys.version_info[:2] in %r and sys.implementation.name == 'cpython' "
    "and 't' not in getattr(sys, 'abiflags', '')" % (VERSIONS,)  # t: free-threaded
)
if not eval(SUITS):
    import os, subprocess
    for version in VERSIONS:
        for folder in os.environ.get("PATH", "").split(os.pathsep):
            path = os.path.join(folder, "python%d.%d" % version)
            if os.access(path, os.X_OK):
                with open(os.devnull, "w") as null:
                    check = "import sys; sys.exit(not (%s))" % SUITS
                    suits = subprocess.call([path, "-c", check], stderr=null) == 0
                if suits:
                    os.execv(path, [path] + sys.argv)
    sys.exit("error: this krelay needs CPython %d.%d to %d.%d; %s is %d.%d\\n"
             "  hint: start it as `python%d.%d %s`, or `pip install krelay`"
             % (VERSIONS[-1] + VERSIONS[0] + (sys.executable,) + sys.version_info[:2]
                + VERSIONS[0] + (sys.argv[0],)))
from boot import main
main({digest!r}, {platform!r})
"""
_SHEBANG = b"#!/usr/bin/env python3\n"
# What an installer notes about itself or makes for one machine, and what no program reads.
_LEFT_OUT = ("INSTALLER", "RECORD", "REQUESTED", "direct_url.json", "uv_cache.json", ".lock")

Tree = Mapping[str, bytes]
"""The files of an environment, by path."""


def build(wheel: Path, target: Path, platform: str, pythons: Iterable[str] = PYTHONS) -> None:
    """Write `target`, a zipapp of `wheel` and its locked packages for one platform."""
    with tempfile.TemporaryDirectory() as folder:
        trees = {}
        for python in pythons:
            place = Path(folder) / python
            install(wheel, place, PLATFORMS[platform], python)
            trees[python] = read(place)
    target.write_bytes(pack(trees, platform))
    target.chmod(0o755)


def install(wheel: Path, place: Path, platform: str, python: str) -> None:
    """Install `wheel` and its locked packages into a folder, for any platform and Python."""
    uv = [shutil.which("uv", path=str(Path(sys.executable).parent)) or "uv", "pip", "install"]
    uv += ["--quiet", "--no-deps", "--no-build", "--target", str(place)]
    uv += ["--python", sys.executable, "--python-platform", platform, "--python-version", python]
    locked = ["--require-hashes", "-r", str(ROOT / "requirements.lock")]
    for what in (locked, [str(wheel)]):
        subprocess.run([*uv, *what], check=True)
    shutil.rmtree(place / "bin", ignore_errors=True)


def read(place: Path) -> Tree:
    """Return the files that belong into the zipapp."""
    found = (path for path in place.rglob("*") if path.is_file() and path.name not in _LEFT_OUT)
    return {
        path.relative_to(place).as_posix(): path.read_bytes()
        for path in sorted(found)
        if "__pycache__" not in path.parts
    }


def pack(trees: Mapping[str, Tree], platform: str) -> bytes:
    """Return the zipapp of the environments of some releases of Python."""
    first, *others = trees.values()
    common = {
        path: text for path, text in first.items() if all(tree.get(path) == text for tree in others)
    }
    parts = {"common.zip": archive(common)}
    for python, tree in trees.items():
        own = {path: text for path, text in tree.items() if path not in common}
        parts[f"{python}.zip"] = archive(own)
    start = Path(boot.__file__).read_bytes()
    digest = hashlib.sha256(b"".join([start, *parts.values()])).hexdigest()[:16]
    versions = sorted((tuple(map(int, python.split("."))) for python in trees), reverse=True)
    main = _MAIN.format(digest=digest, platform=platform, versions=versions)
    whole = {"__main__.py": main.encode(), "boot.py": start, **parts}
    return _SHEBANG + archive(whole, compression=zipfile.ZIP_STORED)


def archive(files: Tree, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a ZIP archive of files, the same bytes for the same files."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as target:
        for path, text in files.items():
            info = zipfile.ZipInfo(path)  # of 1980
            info.compress_type = compression
            info.external_attr = 0o644 << 16
            info.create_system = 3
            target.writestr(info, text)
    return made.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description="Build krelay.pyz.")
    parser.add_argument("--platform", choices=PLATFORMS, default=boot.this_platform())
    parser.add_argument("--python", action="append", choices=PYTHONS)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    build(args.wheel, args.file, args.platform, args.python or PYTHONS)
    megabytes = os.path.getsize(args.file) / 1e6
    print(f"{args.file}: {args.platform}, CPython {', '.join(args.python or PYTHONS)}, ", end="")
    print(f"{megabytes:.1f} MB")


if __name__ == "__main__":
    main()
