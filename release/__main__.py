"""Make everything that a release publishes, check it, and publish nothing: `make release`.

    python -m release [--tag v0.1.0] [--repository OWNER/NAME]

dist/ gets the wheel and the sdist, for the index. dist/release/ gets what belongs to the release on
GitHub: these two, krelay.pyz and the archive for krew for each platform, the manifest for krew, the
formula for Homebrew, the SBOM and the checksums. What stands in the way of publishing is printed;
with --tag it is an error, and nothing is built.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from release import boot, build, checks, homebrew, krew, zipapp

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
OUT = DIST / "release"
SBOM = DIST / "krelay.cdx.json"


def tell(text: str) -> None:
    print(text, flush=True)


def packages(version: str) -> list[Path]:
    """Build the wheel and the sdist, and check their metadata as the index does."""
    made = build.build(DIST)
    for path in made:
        if not path.name.startswith(f"krelay-{version}"):
            raise RuntimeError(f"{path.name} is not of version {version}")
        shutil.copy(path, OUT)
        tell(f"{path.name}: built twice, the same")
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *made], check=True)
    return made


def programs(version: str, wheel: Path) -> dict[str, Path]:
    """Build the zipapp of each platform; start that of this one."""
    made = {}
    for platform in zipapp.PLATFORMS:
        made[platform] = OUT / f"krelay-{version}-{platform}.pyz"
        zipapp.build(wheel, made[platform], platform)
        tell(f"{made[platform].name}: {made[platform].stat().st_size / 1e6:.1f} MB")
    if own := made.get(boot.this_platform()):
        with tempfile.TemporaryDirectory() as folder:
            said = subprocess.run(
                [sys.executable, own, "--version"],
                env={"PATH": "/usr/bin:/bin", "HOME": folder},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            ).stdout
        if said.strip() != f"krelay {version}":
            raise RuntimeError(f"{own.name} is {said.strip()}")
        tell(f"{own.name}: starts")
    return made


def plugin(version: str, page: str, files: str, programs: dict[str, Path]) -> None:
    """Write the archives and the manifest for krew."""
    licence = (ROOT / "LICENSE").read_bytes()
    archives = {}
    for platform, program in programs.items():
        path = OUT / f"kubectl-relay-{version}-{platform}.tar.gz"
        path.write_bytes(krew.archive(program.read_bytes(), licence))
        archives[platform] = (f"{files}/{path.name}", build.digest(path))
    manifest = OUT / f"{krew.NAME}.yaml"
    manifest.write_text(krew.manifest(version, page, archives))
    tell(f"{manifest.name}: for krew, {len(archives)} platforms")


def formula(page: str, files: str, sdist: Path) -> None:
    """Write the formula for Homebrew."""
    krelay = homebrew.Sdist("krelay", f"{files}/{sdist.name}", build.digest(sdist))
    found = homebrew.packages()
    (OUT / "krelay.rb").write_text(homebrew.formula(page, krelay, found))
    tell(f"krelay.rb: for Homebrew, {len(found)} packages")


def main() -> int:
    parser = argparse.ArgumentParser(description="Make and check what a release publishes.")
    parser.add_argument("--tag", help="the tag that is to be published, such as v0.1.0")
    parser.add_argument("--repository", default="OWNER/krelay", help="on GitHub, for the URLs")
    args = parser.parse_args()
    version = checks.version()
    page = f"https://github.com/{args.repository}"
    files = f"{page}/releases/download/v{version}"
    open_points = checks.open_points(args.tag)
    for point in open_points:
        print(f"{'error' if args.tag else 'before a release'}: {point}", file=sys.stderr)
    if args.tag and open_points:
        return 1
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    wheel, sdist = sorted(packages(version), key=lambda path: path.suffix, reverse=True)
    plugin(version, page, files, programs(version, wheel))
    formula(page, files, sdist)
    shutil.copy(SBOM, OUT)
    sums = "".join(f"{build.digest(path)}  {path.name}\n" for path in sorted(OUT.iterdir()))
    (OUT / "SHA256SUMS").write_text(sums)
    (DIST / "notes.md").write_text(
        checks.notes(version, (ROOT / "CHANGELOG.md").read_text()) or "Not released.\n"
    )
    tell(f"{len(sums.splitlines())} files and SHA256SUMS are in {OUT.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
