"""The example and the files of examples/: they load, and the tour leaves out nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from krelay import config
from krelay.model import AgentConfig, Protocol

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "krelay.yaml.example"
OTHERS = sorted(
    path
    for path in (ROOT / "examples").rglob("*")
    if path.name == "targets.txt"
    or (path.suffix == ".yaml" and "apiVersion: krelay/" in path.read_text("utf-8"))
)


def test_editors_find_the_schema_of_the_example() -> None:
    first = EXAMPLE.read_text("utf-8").splitlines()[0]
    prefix = "# yaml-language-server: $schema="
    assert first.startswith(prefix)
    assert (EXAMPLE.parent / first.removeprefix(prefix)).is_file()


def test_the_example_is_valid() -> None:
    made = config.load(str(EXAMPLE), environ={})
    assert {port.protocol for target in made.targets for port in target.ports} > {Protocol.UDP}
    assert made.agent.resources == AgentConfig().resources
    assert config.load(str(EXAMPLE), environ={"KRELAY_CONTEXT": "x"}).context == "x"
    jsonschema.validate(yaml.safe_load(EXAMPLE.read_text("utf-8")), config.load_schema())


def whole() -> str:
    """The example with the lines that name files of the user's own, which are commented out."""
    return re.sub(r"^( *)# (?=include: |- file: )", r"\1", EXAMPLE.read_text("utf-8"), flags=re.M)


def test_the_files_that_the_example_names(tmp_path: Path) -> None:
    for name in ("main", "legacy"):
        (tmp_path / name).mkdir()
    main = tmp_path / "main" / "krelay.yaml"
    main.write_text(whole())
    (tmp_path / "legacy" / "targets.txt").write_text("svc/old 8099:80\n")
    team = "apiVersion: krelay/v1\ntargets: {theirs: svc/theirs 8098:80}\n"
    (tmp_path / "main" / "team.yaml").write_text(team)
    (tmp_path / "main" / "patch.yaml").write_text("spec: {priorityClassName: low}\n")
    made = config.load(str(main), environ={})
    assert [(target.name, target.namespace) for target in made.targets[-2:]] == [
        ("theirs", None),
        ("svc/old 8099:80", "shop"),
    ]
    assert made.agent.patches[-1].body == {"spec": {"priorityClassName": "low"}}


def used(value: Any, rules: dict[str, Any], path: str = "") -> set[str]:
    """The properties of the schema that a value has, by their paths."""
    rules = config.load_schema()["definitions"]["port"] if "$ref" in rules else rules
    if isinstance(value, list):
        return {name for item in value for name in used(item, rules.get("items", {}), f"{path}[]")}
    if not isinstance(value, dict):
        return set()
    properties = rules.get("properties")
    if properties is None:
        more = rules.get("additionalProperties", {})
        return {name for item in value.values() for name in used(item, more, f"{path}.*")}
    below = (used(item, properties[key], f"{path}.{key}") for key, item in value.items())
    return {f"{path}.{key}" for key in value}.union(*below)


def known(rules: dict[str, Any], path: str = "") -> set[str]:
    rules = config.load_schema()["definitions"]["port"] if "$ref" in rules else rules
    names: set[str] = set()
    for key, child in rules.get("properties", {}).items():
        names |= {f"{path}.{key}"} | known(child, f"{path}.{key}")
    for step, mark in (("items", "[]"), ("additionalProperties", ".*")):
        if isinstance(rules.get(step), dict):
            names |= known(rules[step], path + mark)
    return names


def test_the_example_shows_every_key() -> None:
    schema = config.load_schema()
    shown = used(yaml.safe_load(whole()), schema)
    assert known(schema) - shown == set()


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.name)
def test_the_other_examples_are_valid(path: Path) -> None:
    names = re.findall(r"\$\{(\w+)\}", path.read_text("utf-8"))
    environ = {name: str(7000 + index) for index, name in enumerate(names)}
    assert config.load(str(path), environ=environ).targets
