"""Start krelay from its zipapp: unpack the packages for this Python once, then import them.

Native modules cannot be imported from an archive. They are unpacked into the user's cache, in a
folder that belongs to one build of the zipapp and one release of Python. This file is inside the
zipapp, and `__main__.py` there has checked that the zipapp has packages for this Python.
"""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from pathlib import Path
from typing import NoReturn


def main(digest: str, platform: str) -> NoReturn:
    """Run the program that the zipapp, or the link to it, is named after.

    `digest` names the build, and `platform` the system that its packages are for.
    """
    archive = Path(sys.path[0])
    sys.path[0] = str(unpacked(archive, digest, platform))
    from krelay.cli import entry

    name = Path(sys.argv[0]).name
    if name.startswith("kubectl_complete-"):
        from krelay.cli.kubectl import complete

        sys.exit(complete())
    sys.exit(entry.kubectl_relay() if name.startswith("kubectl-") else entry.krelay())


def unpacked(archive: Path, digest: str, platform: str) -> Path:
    """Return the folder with the packages for this Python; unpack them if it is not there.

    Without a cache that this user alone writes to, it is a temporary folder.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    cache = Path(home or Path("~/.cache").expanduser()) / "krelay" / "pyz"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = cache / f"{digest}-{version}"
    try:
        if not folder.is_dir():
            check_platform(archive, platform)
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            unpack(archive, version, folder)
        if is_own(cache) and is_own(folder):
            return folder
    except OSError:
        pass
    import atexit
    import tempfile

    temporary = tempfile.mkdtemp(prefix="krelay-")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    unpack(archive, version, Path(temporary) / "site")
    return Path(temporary) / "site"


def is_own(folder: Path) -> bool:
    """Return whether no other user, except root, can change the content of a folder."""
    if os.name != "posix":
        return True
    found = folder.stat()
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & 0o022


def check_platform(archive: Path, platform: str) -> None:
    """Exit if the packages are for another system."""
    found = this_platform()
    if found != platform:
        sys.exit(
            f"error: {archive.name} is for {platform}, and this is {found}\n"
            f"  hint: get the krelay.pyz for {found}, or `pip install krelay`"
        )


def this_platform() -> str:
    """Return the system and machine, as in `linux-x86_64`, `linux-x86_64-musl`, `darwin-arm64`."""
    import platform
    import sysconfig

    musl = "-musl" if "musl" in str(sysconfig.get_config_var("SOABI")) else ""
    return f"{sys.platform}-{platform.machine()}{musl}"


def unpack(archive: Path, version: str, folder: Path) -> None:
    """Unpack the packages for a release of Python; another process may do the same meanwhile."""
    import tempfile

    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix="unpacking-"))
    try:
        with zipfile.ZipFile(archive) as outer:
            for name in ("common.zip", f"{version}.zip"):
                with outer.open(name) as file, zipfile.ZipFile(file) as inner:
                    inner.extractall(part)
        try:
            part.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
