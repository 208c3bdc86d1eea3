"""Write the Homebrew formula: an environment of krelay and its locked packages.

Homebrew builds Python packages from source, so each package of requirements.lock is a resource with
the URL and the SHA-256 of its sdist. uv asks the index for the URLs.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_FORMULA = """\
class Krelay < Formula
  include Language::Python::Virtualenv

  desc "Relay local TCP and UDP ports into a Kubernetes cluster, declared in a file"
  homepage {homepage}
  url {url}
  sha256 {sha256}
  license "MIT"

  depends_on "rust" => :build # for rpds-py and watchfiles
  depends_on "libyaml"
  depends_on "python@3.13"

{resources}
  def install
    virtualenv_install_with_resources
    generate_completions_from_executable(bin/"krelay", "completion")
  end

  test do
    (testpath/"krelay.yaml").write <<~YAML
      apiVersion: krelay/v1
      targets: {{web: svc/web 8080:80}}
    YAML
    assert_match version.to_s, shell_output("#{{bin}}/krelay --version")
    assert_match "ok, 1 target", shell_output("#{{bin}}/krelay check")
  end
end
"""
_RESOURCE = """\
  resource {name} do
    url {url}
    sha256 {sha256}
  end
"""


@dataclass(frozen=True, slots=True)
class Sdist:
    """The source of a package."""

    name: str
    url: str
    sha256: str


def formula(homepage: str, krelay: Sdist, packages: Iterable[Sdist]) -> str:
    """Return the formula in Ruby; JSON's strings without `#` are also Ruby's."""
    each = [
        _RESOURCE.format(
            name=json.dumps(p.name), url=json.dumps(p.url), sha256=json.dumps(p.sha256)
        )
        for p in packages
    ]
    return _FORMULA.format(
        homepage=json.dumps(homepage),
        url=json.dumps(krelay.url),
        sha256=json.dumps(krelay.sha256),
        resources="\n".join(each),
    )


def packages() -> list[Sdist]:
    """Return the sdists of requirements.lock, as the index has them."""
    lock = ROOT / "requirements.lock"
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "pylock.toml"
        uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or "uv"
        subprocess.run(
            [
                *(uv, "pip", "compile", "--quiet", "--universal", "--python-version", "3.11"),
                *("--no-deps", "--format", "pylock.toml", "--output-file", found, lock),
            ],
            check=True,
        )
        return sdists(tomllib.loads(found.read_text()), lock.read_text())


def sdists(index: dict[str, Any], lock: str) -> list[Sdist]:
    """Return the sdists of an index's answer, a pylock.toml.

    Raises:
        ValueError: a package has no sdist, or its hash is not in the lock.
    """
    locked = set(re.findall(r"--hash=sha256:([0-9a-f]{64})", lock))
    found = []
    for package in index["packages"]:
        name = package["name"]
        if "sdist" not in package:
            raise ValueError(f"{name} has no sdist, which Homebrew needs")
        sdist = Sdist(name, package["sdist"]["url"], package["sdist"]["hashes"]["sha256"])
        if sdist.sha256 not in locked:
            raise ValueError(f"the sdist of {name} is not that of requirements.lock")
        found.append(sdist)
    return found
