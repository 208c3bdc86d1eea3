"""Compare the coverage of the last run with its bars; exit with 1 if a bar is missed.

Lines and branches count alike. Modules without I/O need full coverage.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path

from coverage import Coverage

ROOT = Path(__file__).parents[1]
ALL = 95.0
WHOLE = (
    "agent/upgrade.py",
    "krelay/cli/terminal/figures.py",
    "krelay/cli/terminal/table.py",
    "krelay/cli/terminal/view.py",
    "krelay/cluster/agent_job.py",
    "krelay/cluster/diagnosis.py",
    "krelay/cluster/endpoints.py",
    "krelay/cluster/objects.py",
    "krelay/cluster/patch.py",
    "krelay/cluster/rbac.py",
    "krelay/cluster/selectors.py",
    "krelay/config/changes.py",
    "krelay/config/diff.py",
    "krelay/config/grammar.py",
    "krelay/doctor/expiry.py",
    "krelay/net/socks.py",
    "krelay/proxy/http_proxy.py",
    "krelay/proxy/http_relay.py",
    "krelay/proxy/socks5.py",
    "krelay/state/states.py",
    "krelay/transport/spdy.py",
    "krelay/transport/websocket.py",
    "krelay/typed.py",
    "krelay/wire/*",
)


def wanted(path: str) -> bool:
    """Return whether every line and branch of a module must be covered."""
    return any(fnmatch(path, pattern) for pattern in WHOLE)


def says_so(path: str) -> bool:
    """Return whether a module calls itself pure or sans-I/O."""
    text = ast.get_docstring(ast.parse((ROOT / path).read_text())) or ""
    return re.search(r"\bpure\b|\bsans-I/O\b", text, re.IGNORECASE) is not None


def main() -> int:
    data = Coverage(data_file=str(ROOT / ".coverage"), config_file=str(ROOT / "pyproject.toml"))
    data.load()
    with tempfile.NamedTemporaryFile() as file:
        data.json_report(outfile=file.name)
        found = json.loads(Path(file.name).read_text())
    wrong = []
    for path, module in sorted(found["files"].items()):
        covered = module["summary"]["percent_covered"]
        lines = ", ".join(map(str, module["missing_lines"]))
        branches = ", ".join(f"{a}->{b}" for a, b in module["missing_branches"])
        if covered < 100:
            missing = "; ".join(filter(None, (lines, branches)))
            print(f"{covered:6.2f} {path}: {missing}"[:160])
        if covered < 100 and wanted(path):
            wrong.append(f"{path} has {covered:.2f} % coverage, not 100 %")
        if says_so(path) and not wanted(path):
            wrong.append(f"{path} does no I/O: it belongs in WHOLE")
    wrong += [
        f"{p} matches no module" for p in WHOLE if not any(fnmatch(f, p) for f in found["files"])
    ]
    total = found["totals"]["percent_covered"]
    print(f"{total:6.2f} total")
    if total < ALL:
        wrong.append(f"{total:.2f} % of krelay and the agent are covered, not {ALL:g} %")
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
