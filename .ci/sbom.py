"""Write krelay's software bill of materials (CycloneDX): `make sbom`.

It lists each package of requirements.lock with its version and hashes. The image adds these and
krelay itself to its base, and nothing else.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main(path: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "cyclonedx_py", "requirements"]
    command += ["--pyproject", "pyproject.toml", "--output-reproducible", "--of", "JSON"]
    made = subprocess.run(
        [*command, "requirements.lock"], cwd=ROOT, check=True, stdout=subprocess.PIPE
    )
    bill = json.loads(made.stdout)
    # cyclonedx-py knows neither the dynamic version nor which packages of a lock are direct.
    source = (ROOT / "krelay" / "__init__.py").read_text()
    found = re.search(r'^__version__ = "(.+)"', source, re.MULTILINE)
    assert found
    version = found[1]
    krelay = bill["metadata"]["component"]
    krelay |= {"version": version, "purl": f"pkg:pypi/krelay@{version}"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["speed"]]
    names = {re.split(r"[<>=~! ]", line)[0].replace("_", "-") for line in wanted}
    direct = [part["bom-ref"] for part in bill["components"] if part["name"] in names]
    assert len(direct) == len(names), "requirements.lock lacks a dependency: make lock"
    for entry in bill["dependencies"]:
        if entry["ref"] == krelay["bom-ref"]:
            entry["dependsOn"] = sorted(direct)
    for part in bill["components"]:
        part.pop("description")  # repeats the line of the lock
    target = Path(path)
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(bill, indent=2) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
