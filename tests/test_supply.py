"""The supply chain: packages pinned by hash, floors above known vulnerabilities, image digests."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = {path.name: path for path in sorted(ROOT.glob("requirements*.lock"))}
GROUPS = PROJECT["dependency-groups"]
EXTRAS = PROJECT["project"]["optional-dependencies"]
# The image has the extra `speed`, and so have the tests; these have `mcp` too.
SHIPPED = [*PROJECT["project"]["dependencies"], *EXTRAS["speed"]]
WANTED = {
    "requirements.lock": SHIPPED,
    "requirements-dev.lock": [*SHIPPED, *EXTRAS["mcp"], *EXTRAS["dev"]],
    **{f"requirements-{name}.lock": wanted for name, wanted in GROUPS.items()},
}


def pinned(text: str) -> dict[str, Requirement]:
    """Return a lock's requirements by name; each line of it is one, a hash or a comment."""
    found: dict[str, Requirement] = {}
    for entry in re.sub(r"\\\n", "", text).splitlines():
        line = entry.partition("#")[0].strip()
        if not line:
            continue
        requirement, *hashes = re.split(r"\s+--hash=", line)
        assert hashes, f"no hash: {line}"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes), line
        parsed = Requirement(requirement)
        assert re.fullmatch(r"==[^*,]+", str(parsed.specifier)), line
        found[canonicalize_name(parsed.name)] = parsed
    return found


def version(requirement: Requirement) -> str:
    return str(requirement.specifier).removeprefix("==")


def test_each_group_has_a_lock() -> None:
    assert set(LOCKS) == set(WANTED)


@pytest.mark.parametrize("name", WANTED)
def test_a_lock_pins_by_hash_what_is_wanted(name: str) -> None:
    lock = pinned(LOCKS[name].read_text())
    for text in WANTED[name]:
        wanted = Requirement(text)
        found = lock[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(version(found)), f"{text} is locked as {found}"


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_no_place(name: str) -> None:
    """Neither an index nor a path: a lock is good on every machine."""
    assert not re.findall(
        r"://|(?m:^\s*(?:-i|-f|--(?!hash=)))|file:|\s/\w", LOCKS[name].read_text()
    )


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_a_lock_is_for_every_python_and_system(python: str, system: str) -> None:
    """A marker leaves out nothing that a Python or a system needs: Windows and browsers only."""
    place = {"python_version": python, "python_full_version": f"{python}.0"}
    place |= {"sys_platform": system, "implementation_name": "cpython"}
    place |= {"platform_python_implementation": "CPython"}
    for name in ("requirements.lock", "requirements-build.lock", "requirements-dev.lock"):
        left_out = [
            found.name
            for found in pinned(LOCKS[name].read_text()).values()
            if found.marker and not found.marker.evaluate(place)
        ]
        assert set(left_out) <= {"colorama", "httpx2-jsfetch", "pywin32"}, name


@pytest.mark.parametrize(
    ("place", "wanted"),
    [
        ({}, True),
        ({"platform_machine": "aarch64"}, True),
        ({"sys_platform": "darwin", "platform_machine": "arm64"}, True),
        ({"python_version": "3.15"}, True),
        ({"python_version": "3.16"}, False),
        ({"platform_python_implementation": "PyPy"}, False),
        ({"platform_machine": "armv7l"}, False),
        ({"platform_machine": "s390x"}, False),
        ({"sys_platform": "freebsd14", "platform_machine": "amd64"}, False),
    ],
)
def test_the_extra_speed_is_empty_where_aiofastnet_has_no_wheel(
    place: dict[str, str], wanted: bool
) -> None:
    (requirement,) = map(Requirement, EXTRAS["speed"])
    linux = {"sys_platform": "linux", "platform_machine": "x86_64", "python_version": "3.11"}
    linux |= {"platform_python_implementation": "CPython"}
    assert requirement.marker is not None
    assert requirement.marker.evaluate({**linux, **place}) == wanted


def test_the_locks_agree() -> None:
    run, dev, build = (
        pinned(LOCKS[f"requirements{name}.lock"].read_text()) for name in ("", "-dev", "-build")
    )
    assert {name: version(found) for name, found in run.items()} == {
        name: version(dev[name]) for name in run
    }
    shared = build.keys() & dev.keys()
    assert "hatchling" in shared
    assert {name: version(build[name]) for name in shared} == {
        name: version(dev[name]) for name in shared
    }
    assert set(PROJECT["build-system"]["requires"]) <= set(GROUPS["build"])


HOLES = [
    ("aiohttp", "3.14.2"),  # CVE-2026-69244
    ("click", "8.3.2"),  # CVE-2026-7246
    ("h11", "0.15.0"),  # CVE-2025-43859
    ("psutil", "5.6.5"),  # CVE-2019-18874
    ("pyyaml", "5.3.1"),  # CVE-2020-14343
    ("websockets", "9.0"),  # CVE-2021-33880
]


@pytest.mark.parametrize(("name", "release"), HOLES)
def test_a_floor_is_above_the_release_with_a_known_hole(name: str, release: str) -> None:
    (wanted,) = (
        requirement
        for requirement in map(Requirement, PROJECT["project"]["dependencies"])
        if requirement.name == name
    )
    assert not wanted.specifier.contains(release)


def test_the_images_have_one_base_by_digest() -> None:
    bases = [
        re.findall(r"^(ARG BASE=.*|FROM .*)$", (ROOT / name).read_text(), re.MULTILINE)
        for name in ("Dockerfile", "agent/Dockerfile")
    ]
    assert bases[0] == bases[1]
    assert re.fullmatch(r"ARG BASE=python:[\w.-]+@sha256:[0-9a-f]{64}", bases[0][0])
    assert bases[0][1:] == ["FROM ${BASE} AS build", "FROM ${BASE}"]


def test_nothing_is_installed_without_hashes_but_krelay_itself() -> None:
    for name in ("Dockerfile", "Makefile"):
        text = re.sub(r"\\\n", "", (ROOT / name).read_text())
        lines = [line for line in text.splitlines() if not re.match(r"#|PIP :=|LOCKED :=", line)]
        commands = re.split(r"[;\n]", "\n".join(lines))
        installs = [
            line for line in commands if re.search(r"pip\b.* install |\$\((PIP|LOCKED)\)", line)
        ]
        assert installs
        for install in installs:
            assert re.search(r"--require-hashes|\$\(LOCKED\)|--no-deps", install), install


PACKAGE = {"name": "h11", "version": "0.14.0"}
HOLE = {"id": "GHSA-vqfr-h8mv-ghfj", "fix_versions": ["0.16.0"], "aliases": []}
SKIPPED = {"name": "h11", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("answers", "code", "out", "err"),
    [
        ({}, 3, "", "no advisory service (osv, pypi) answers for LOCK: not checked"),
        # pip-audit calls this a success.
        ({"pypi": [SKIPPED]}, 3, "", "no advisory service"),
        (
            {"osv": [{**PACKAGE, "vulns": []}]},
            0,
            "osv knows no vulnerability in 1 pinned packages",
            "",
        ),
        ({"pypi": [{**PACKAGE, "vulns": []}]}, 0, "pypi knows no vulnerability", ""),
        (
            {"osv": [{**PACKAGE, "vulns": [HOLE]}]},
            1,
            "h11 0.14.0: GHSA-vqfr-h8mv-ghfj (fixed in 0.16.0)",
            "",
        ),
    ],
)
@pytest.mark.process
def test_an_audit_that_could_not_ask_is_no_success(
    answers: dict[str, list[Any]], code: int, out: str, err: str, tmp_path: Path
) -> None:
    # In pip-audit's place: it writes what a service answers, and fails where none does.
    (tmp_path / "pip_audit.py").write_text(
        "import json, sys\n"
        f"answers = {answers!r}\n"
        "found = answers.get(sys.argv[sys.argv.index('--vulnerability-service') + 1])\n"
        "if found is None: sys.exit('cannot reach it')\n"
        "with open(sys.argv[sys.argv.index('--output') + 1], 'w') as file:\n"
        "    json.dump({'dependencies': found, 'fixes': []}, file)\n"
    )
    done = subprocess.run(
        [sys.executable, ROOT / ".ci" / "audit.py", "LOCK"],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert out in done.stdout
    assert err in done.stderr
    assert len((done.stdout + done.stderr).splitlines()) == 1


def test_an_sdist_has_what_builds_and_pins_it() -> None:
    included = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert {"Dockerfile", "SECURITY.md", "/requirements*.lock"} <= set(included)
