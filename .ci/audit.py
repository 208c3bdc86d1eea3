"""Ask advisory services for known vulnerabilities in the locked packages: `make audit`.

Exit codes: 0 if a service knows every package and none has a vulnerability, 1 if one has, 3 if a
package could not be checked, for example because no service is reachable.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SERVICES = ("osv", "pypi")


@functools.cache
def ask(service: str, lock: str) -> list[dict[str, Any]] | None:
    """Return a service's answer for each package of a lock; None if it does not answer."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", service]
        command += ["--disable-pip", "--require-hashes", "--requirement", lock]
        command += ["--progress-spinner", "off", "--format", "json", "--output", str(answer)]
        try:
            subprocess.run(command, capture_output=True, timeout=120, check=False)
            found = json.loads(answer.read_bytes())["dependencies"]
        except (OSError, ValueError, KeyError, subprocess.TimeoutExpired):
            return None
    # A service that does not know a package has not checked it; pip-audit's exit code ignores that.
    if any("skip_reason" in package for package in found):
        return None
    return list(found)


def main(locks: list[str]) -> int:
    holes: set[tuple[str, str]] = set()
    checked = 0
    # The first lock shows which service answers; if none does, do not ask about the others.
    service = next((name for name in SERVICES if locks and ask(name, locks[0]) is not None), None)
    unchecked = []
    for lock in locks:
        packages = ask(service, lock) if service else None
        if packages is None:
            unchecked.append(lock)
            continue
        checked += len(packages)
        for package in packages:
            for hole in package["vulns"]:
                fixed = ", ".join(hole["fix_versions"]) or "no release yet"
                name = f"{package['name']} {package['version']}"
                holes.add((name, f"{hole['id']} (fixed in {fixed})"))
    for name, hole in sorted(holes):
        print(f"{name}: {hole}")
    if unchecked:
        print(
            f"audit: no advisory service ({', '.join(SERVICES)}) answers for "
            f"{', '.join(unchecked)}: not checked",
            file=sys.stderr,
        )
    if holes:
        return 1
    if unchecked:
        return 3
    print(f"audit: {service} knows no vulnerability in {checked} pinned packages")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
