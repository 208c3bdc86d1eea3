"""The manifest and the archives for krew."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from release import krew, zipapp

ARCHIVES = {
    platform: (f"https://example.com/kubectl-relay-1.2.3-{platform}.tar.gz", "0a" * 32)
    for platform in zipapp.PLATFORMS
}
FILE = Path("relay.yaml")


@pytest.fixture
def plugin() -> Any:
    return yaml.safe_load(krew.manifest("1.2.3", "https://example.com", ARCHIVES))


def test_a_manifest_names_the_archive_of_each_platform(plugin: Any) -> None:
    assert krew.problems(FILE, plugin) == []
    assert plugin["spec"]["version"] == "v1.2.3"
    found = {
        tuple(each["selector"]["matchLabels"].values()): (each["uri"], each["sha256"])
        for each in plugin["spec"]["platforms"]
    }
    assert found == {
        ("linux", "amd64"): ARCHIVES["linux-x86_64"],
        ("linux", "arm64"): ARCHIVES["linux-aarch64"],
        ("darwin", "amd64"): ARCHIVES["darwin-x86_64"],
        ("darwin", "arm64"): ARCHIVES["darwin-arm64"],
    }


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (["apiVersion"], "v1", "unknown apiVersion"),
        (["kind"], "Pod", "not a plugin"),
        (["metadata", "name"], "krelay", "the file is not named after the plugin"),
        (["spec", "shortDescription"], "two\nlines", "the short description is not one line"),
        (["spec", "shortDescription"], "A sentence.", "the short description is no title"),
        (["spec", "version"], "0.1.0", "not a semantic version"),
        (["spec", "platforms"], [], "no platform"),
        (["spec", "platforms", 0, "uri"], "http://a.example/x", "platform 1: the URI is not that"),
        (["spec", "platforms", 1, "sha256"], "0A" * 32, "platform 2: not a SHA-256"),
        (["spec", "platforms", 0, "bin"], "", "platform 1: no program"),
        (["spec", "platforms", 0, "files"], [], "platform 1: files without a name"),
        (["spec", "platforms", 0, "selector"], {}, "platform 1: the selector is not one of"),
        (
            ["spec", "platforms", 0, "selector", "matchLabels"],
            {"cpu": "amd64"},
            "platform 1: a label that krew does not know",
        ),
    ],
)
def test_what_krew_refuses_is_found(plugin: Any, path: list[Any], value: Any, problem: str) -> None:
    *parents, last = path
    place = plugin
    for key in parents:
        place = place[key]
    place[last] = value
    (found,) = krew.problems(FILE, plugin)
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("krelay", "semantic"),
    [("0.1.0", "v0.1.0"), ("1.0.0rc2", "v1.0.0-rc.2"), ("1.0.0.dev3", "v1.0.0-dev.3")],
)
def test_a_version_becomes_a_semantic_one(krelay: str, semantic: str) -> None:
    assert krew.version(krelay) == semantic


def test_a_version_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="has no form in semantic versions"):
        krew.version("1.0")


def test_an_archive_has_the_program_and_the_licence() -> None:
    made = krew.archive(b"program", b"licence")
    assert made == krew.archive(b"program", b"licence")
    with tarfile.open(fileobj=io.BytesIO(made)) as tar:
        assert [(m.name, m.mode) for m in tar] == [("krelay.pyz", 0o755), ("LICENSE", 0o644)]
