"""Write the manifest of the kubectl plugin `relay` for krew, and the archives that it names.

krew's own index gives the name `relay` to the Go krelay, so the manifest belongs into an index of
krelay's, or is installed by its URL. krew links `kubectl-relay` to the zipapp, which then serves
`kubectl relay`.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAME = "relay"
PROGRAM = "krelay.pyz"
_PLATFORMS = {
    "linux-x86_64": ("linux", "amd64"),
    "linux-aarch64": ("linux", "arm64"),
    "darwin-x86_64": ("darwin", "amd64"),
    "darwin-arm64": ("darwin", "arm64"),
}
"""The platforms of the zipapp, as krew names systems and machines."""
_TOP = """\
apiVersion: krew.googlecontainertools.github.com/v1alpha2
kind: Plugin
metadata:
  name: {name}
spec:
  version: {version}
  homepage: {homepage}
  shortDescription: Relay local TCP and UDP ports into a cluster
  description: |
    Relays local TCP and UDP ports to Services, workloads, pods and hosts of a
    cluster, and keeps them up: connections survive restarted API servers, pods
    and networks. It takes the command lines of kubectl port-forward.
  caveats: |
    This plugin needs CPython 3.11 or later as python3, or as python3.11 and so
    on. It unpacks its packages into ~/.cache/krelay at the first start.
  platforms:
"""
_PLATFORM = """\
  - selector:
      matchLabels:
        os: {os}
        arch: {arch}
    uri: {uri}
    sha256: {sha256}
    bin: {program}
    files:
    - from: {program}
      to: .
    - from: LICENSE
      to: .
"""
_SAFE_NAME = re.compile(r"[\w-]+", re.ASCII)
_VERSION = re.compile(r"v\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")


def version(krelay: str) -> str:
    """Return krelay's version as a semantic one: `0.2.0rc1` is `v0.2.0-rc.1`."""
    found = re.fullmatch(r"(\d+\.\d+\.\d+)(?:(a|b|rc|\.dev)(\d+))?", krelay)
    if found is None:
        raise ValueError(f"{krelay} has no form in semantic versions")
    base, kind, number = found.groups()
    names = {"a": "alpha", "b": "beta", "rc": "rc", ".dev": "dev"}
    return f"v{base}" + (f"-{names[kind]}.{number}" if kind else "")


def manifest(krelay: str, homepage: str, archives: Mapping[str, tuple[str, str]]) -> str:
    """Return the manifest; `archives` has the URL and the SHA-256 for each platform."""
    text = _TOP.format(name=NAME, version=version(krelay), homepage=homepage)
    for platform, (uri, sha256) in archives.items():
        system, machine = _PLATFORMS[platform]
        text += _PLATFORM.format(
            os=system, arch=machine, uri=json.dumps(uri), sha256=sha256, program=PROGRAM
        )
    return text


def archive(program: bytes, licence: bytes) -> bytes:
    """Return the .tar.gz of a platform, the same bytes for the same files."""
    made = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=made, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for name, text, mode in ((PROGRAM, program, 0o755), ("LICENSE", licence, 0o644)):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text), mode
            tar.addfile(member, io.BytesIO(text))
    return made.getvalue()


def problems(path: Path, plugin: Any) -> list[str]:
    """Return what krew and its index would refuse in a manifest, by their rules."""
    spec, found = plugin["spec"], []
    if plugin["apiVersion"] != "krew.googlecontainertools.github.com/v1alpha2":
        found.append("unknown apiVersion")
    if plugin["kind"] != "Plugin":
        found.append("not a plugin")
    if not _SAFE_NAME.fullmatch(path.stem) or plugin["metadata"]["name"] != path.stem:
        found.append("the file is not named after the plugin")
    if not spec["shortDescription"] or re.search(r"[\r\n]", spec["shortDescription"]):
        found.append("the short description is not one line")
    if len(spec["shortDescription"]) > 50 or spec["shortDescription"].endswith("."):
        found.append("the short description is no title")
    if not _VERSION.fullmatch(spec["version"]):
        found.append("not a semantic version")
    if not spec["platforms"]:
        found.append("no platform")
    for number, platform in enumerate(spec["platforms"], 1):
        at = f"platform {number}: "
        if not re.fullmatch(r"https://\S+\.(tar\.gz|zip)", platform["uri"]):
            found.append(f"{at}the URI is not that of an archive")
        if not re.fullmatch(r"[a-f0-9]{64}", platform["sha256"]):
            found.append(f"{at}not a SHA-256")
        if not platform["bin"]:
            found.append(f"{at}no program")
        if not all(each["from"] and each["to"] for each in platform["files"] or [{"from": ""}]):
            found.append(f"{at}files without a name")
        if set(platform["selector"]) != {"matchLabels"}:
            found.append(f"{at}the selector is not one of labels")
        elif not set(platform["selector"]["matchLabels"]) <= {"os", "arch"}:
            found.append(f"{at}a label that krew does not know")
    return found
