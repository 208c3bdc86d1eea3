from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator

from krelay.config import schema as schema_module
from krelay.config.grammar import ParseError, parse_duration, parse_size
from krelay.config.schema import is_secret, load_schema, secret_keys
from krelay.config.validation import MAX_PROBLEMS, PATCH, check, node_at
from krelay.config.yaml_reader import Node, read
from krelay.errors import Problem
from krelay.model import (
    LOOPBACK,
    AgentConfig,
    Compression,
    Patch,
    Protocol,
    SessionConfig,
    Transport,
    TunnelConfig,
)


def mappings(rules: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every subschema with its place."""
    if isinstance(rules, dict):
        yield path, rules
        for key, child in rules.items():
            if key not in ("examples", "default", "enum"):
                yield from mappings(child, f"{path}/{key}")
    elif isinstance(rules, list):
        for index, child in enumerate(rules):
            yield from mappings(child, f"{path}/{index}")


PROPERTIES = [
    (f"{path}/properties/{key}", child)
    for path, rules in mappings(load_schema())
    if isinstance(rules.get("properties"), dict) and not path.endswith("/properties")
    for key, child in rules["properties"].items()
]


def test_it_is_a_draft_07_schema() -> None:
    assert load_schema()["$schema"] == "http://json-schema.org/draft-07/schema#"
    Draft7Validator.check_schema(load_schema())


def test_each_loaded_schema_is_a_fresh_copy() -> None:
    load_schema()["properties"].clear()
    assert load_schema()["properties"]


@pytest.mark.parametrize(("path", "rules"), PROPERTIES, ids=[path for path, _ in PROPERTIES])
def test_every_property_is_documented(path: str, rules: dict[str, Any]) -> None:
    assert re.search(r"[.:]$", rules["description"])
    own = {**rules, "definitions": load_schema()["definitions"]}
    for example in rules["examples"]:
        Draft7Validator(own).validate(example)
    assert rules["examples"]
    # null is "no default": the property is required, or has a meaning if it is missing
    if rules["default"] is not None:
        Draft7Validator(own).validate(rules["default"])


def test_every_mapping_is_closed_but_for_free_form_ones() -> None:
    free = [
        path
        for path, rules in mappings(load_schema())
        if "object" in rules.get("type", ()) and "properties" not in rules
    ]
    names = sorted(path.rpartition("/")[2] for path in free)
    assert names == [
        "annotations", "labels", "limits", "nodeSelector", "patch", "proxies", "requests",
        "targets",
    ]  # fmt: skip
    for path, rules in mappings(load_schema()):
        if "properties" in rules and not path.endswith("/properties"):
            assert rules["additionalProperties"] is False, path


def defaults(section: str) -> dict[str, Any]:
    properties = load_schema()["properties"][section]["properties"]
    return {key: rules["default"] for key, rules in properties.items()}


def test_the_defaults_are_the_models() -> None:
    agent, model = defaults("agent"), AgentConfig()
    assert parse_duration(agent.pop("idleTimeout")) == model.idle_timeout
    assert parse_duration(agent.pop("startTimeout")) == model.start_timeout
    assert agent.pop("nodeSelector") == model.node_selector
    assert tuple(agent.pop("tolerations")) == model.tolerations
    assert tuple(agent.pop("patches")) == model.patches
    assert agent.pop("injectSource") == model.inject_source
    assert agent == {key: getattr(model, key) for key in agent}

    tunnel = defaults("tunnel")
    times = (
        ("openTimeout", "open_timeout"),
        ("connectTimeout", "connect_timeout"),
        ("drain", "drain"),
    )
    for key, name in times:
        assert parse_duration(tunnel.pop(key)) == getattr(TunnelConfig(), name)
    session = SessionConfig()
    assert parse_size(tunnel.pop("resumeBuffer")) == session.resume_buffer
    for key, name in (("resumeTimeout", "resume_timeout"), ("ping", "ping"), ("maxAge", "max_age")):
        assert parse_duration(tunnel.pop(key)) == getattr(session, name)
    assert parse_duration(tunnel.pop("pingTimeout")) == session.ping_timeout
    assert tunnel.pop("compression") == session.compression
    assert tunnel == {key: getattr(TunnelConfig(), key) for key in tunnel}

    assert defaults("defaults")["listen"] == LOOPBACK
    patch = load_schema()["properties"]["agent"]["properties"]["patches"]["items"]["properties"]
    made = Patch({})
    assert (patch["type"]["default"], patch["target"]["default"]) == (made.type, made.target)


def test_the_enums_of_the_schema_are_those_of_the_model() -> None:
    tunnel = load_schema()["properties"]["tunnel"]["properties"]
    assert tunnel["transport"]["enum"] == list(Transport)
    assert tunnel["compression"]["enum"] == list(Compression)
    protocol = load_schema()["definitions"]["port"]["properties"]["protocol"]
    assert protocol["enum"] == [*Protocol, None]


PATTERN = load_schema()["properties"]["tunnel"]["properties"]["openTimeout"]["pattern"]


@given(st.from_regex(PATTERN, fullmatch=True) | st.text(alphabet="0123456789.hms", max_size=10))
def test_the_pattern_of_durations_is_their_grammar(text: str) -> None:
    try:
        parse_duration(text)
        grammatical = True
    except ParseError as error:
        grammatical = "out of range" in error.message
    assert grammatical is bool(re.fullmatch(PATTERN, text))


def checked(text: str) -> tuple[Any, list[str]]:
    root, problems = read("apiVersion: krelay/v1\n" + text, {})
    assert problems == []
    assert isinstance(root, Node)
    left, found = check(root)
    return left and left.plain(), [f"{p.line}:{p.column} {p.message}" for p in found]


def test_invalid_values_are_left_out_and_the_rest_stays() -> None:
    left, problems = checked(
        "agent: {labels: {a: 1, b: x}, oops: 1}\ntargets: {web: {ports: [0, 80], context: y}}\n"
    )
    assert left == {
        "apiVersion": "krelay/v1",
        "agent": {"labels": {"b": "x"}},
        "targets": {"web": {"ports": [80], "context": "y"}},
    }
    assert sorted(problems) == [
        "2:21 `agent.labels.a` must be text, not the number `1`",
        "2:31 unknown key `oops`",
        "3:11 `targets.web` has no `target`",
        "3:25 `targets.web.ports[0]` is out of range: `0`",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("spec: {a: 1}", []),
        ("- {op: add, path: /a}", []),
        ("text", ["1:1 the file must be a mapping or a list, not the text `text`"]),
        (
            "- {op: ad, path: a}\n- {op: add}\n- 1",
            [
                "1:8 `[0].op` cannot be `ad`",
                "1:18 `[0].path` cannot be `a`",
                "2:3 `[1]` has no `path`",
                "3:3 `[2]` must be a mapping, not the number `1`",
            ],
        ),
    ],
)
def test_the_rules_for_a_patch_hold_for_one_by_itself(text: str, expected: list[str]) -> None:
    root, _ = read(text, {})
    assert isinstance(root, Node)
    _, found = check(root, *PATCH)
    assert [f"{p.line}:{p.column} {p.message}" for p in sorted(found)] == expected


def test_a_broken_value_is_not_reported_again() -> None:
    root, problems = read("apiVersion: ${X}\ntargets: {a: 'svc/${X} 80', b: svc/b 80}\n", {})
    assert isinstance(root, Node)
    left, found = check(root)
    assert len(problems) == 2
    assert found == []
    assert left is not None
    assert left.plain() == {"targets": {"b": "svc/b 80"}}


def test_a_pattern_does_not_match_a_trailing_line_break() -> None:
    _, problems = checked("namespace: |\n  shop\ntargets: {web: svc/web 80}\n")
    assert problems == ["2:12 `namespace` cannot be `shop\\n`"]


def test_the_number_of_problems_is_limited() -> None:
    left, problems = checked("".join(f"k{n}: 1\n" for n in range(MAX_PROBLEMS + 5)))
    assert left is None
    assert len(problems) == MAX_PROBLEMS + 1


def test_the_schema_of_a_wheel_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "schema").mkdir()
    (tmp_path / "schema" / schema_module.FILE).write_text('{"title": "wheel"}')
    monkeypatch.setattr(schema_module, "__file__", str(tmp_path / "config" / "schema.py"))
    schema_module.schema_text.cache_clear()
    schema_module.renamed_keys.cache_clear()
    try:
        assert load_schema() == {"title": "wheel"}
    finally:
        schema_module.schema_text.cache_clear()
        schema_module.renamed_keys.cache_clear()


@pytest.mark.process
def test_a_wheel_contains_the_schema(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    build = "from hatchling.build import build_wheel; import sys; build_wheel(sys.argv[1])"
    pytest.importorskip("hatchling")
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=root, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import krelay.config as c;"
        "assert c.__file__.startswith(sys.argv[1]); assert c.load_schema()['title']"
    )
    site = str(tmp_path / "site")
    subprocess.run([sys.executable, "-I", "-c", code, site], cwd=tmp_path, check=True)


# -- wording ---------------------------------------------------------------------------------------


def problems(text: str) -> list[Problem]:
    root, found = read("apiVersion: krelay/v1\n" + text, {})
    assert isinstance(root, Node)
    assert found == []
    return sorted(check(root)[1])


def one(text: str) -> tuple[str, str | None]:
    (problem,) = problems(text)
    return problem.message, problem.hint


TARGETS = "\ntargets: {web: svc/web 80}\n"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("NameSpace: a", "unknown key `NameSpace`", "did you mean `namespace`?"),
        ("openTimeout: 1", "unknown key `openTimeout`", "`openTimeout` belongs in `tunnel`"),
        (
            "tunnel: {zzz: 1}",
            "unknown key `zzz`",
            "known here: `sessions`, `transport`, `openTimeout`",
        ),
        ("tunnel: {agent: 1}", "unknown key `agent`", "known here:"),
        ("namespace: 1.5", "`namespace` must be text, not the number `1.5`", "in quotes"),
        ("namespace: true", "`namespace` must be text, not `true`", "in quotes"),
        ("namespace: [a]", "`namespace` must be text, not a list", "for example `shop`"),
        ("tunnel: {sessions: }", "`tunnel.sessions` is empty", "for example `4`"),
        ("tunnel: {sessions: {}}", "`tunnel.sessions` must be a whole number, not a mapping", "4"),
        ("tunnel: {transport: ws}", "`tunnel.transport` cannot be `ws`", "it is one of `auto`"),
        ("tunnel: {transport: Spdy}", "`tunnel.transport` cannot be `Spdy`", "mean `spdy`?"),
        ("tunnel: {transport: }", "`tunnel.transport` cannot be empty", "it is one of"),
        (
            "tunnel: {openTimeout: -1}",
            "`tunnel.openTimeout` is out of range: `-1`",
            "at least 0, at most 86400",
        ),
        (
            "tunnel: {connectTimeout: 0}",
            "`tunnel.connectTimeout` is out of range: `0`",
            "more than 0, at most 86400",
        ),
        ("context: ''", "`context` is empty", "for example `staging`"),
        ("agent: {labels: {a: }}", "`agent.labels.a` is empty", None),
        ("agent: {image: a b}", "`agent.image` cannot be `a b`", "no spaces"),
    ],
)
def test_every_kind_of_schema_error_has_words(text: str, message: str, hint: str | None) -> None:
    found = one(text + TARGETS)
    assert found[0] == message
    assert hint is found[1] if hint is None else hint in str(found[1])


def test_targets_are_built() -> None:
    assert one("")[0] == "the file has no `targets`"
    assert one("include: []")[0] == "`include` is empty"
    assert problems("include: [a.yaml]") == []
    assert one("include: [5]" + TARGETS)[0] == "`include[0]` must be text, not the number `5`"
    assert one("targets: {}") == (
        "`targets` is empty",
        "for example `web: svc/nginx 8080:80`",
    )
    assert one("targets: {A: svc/a 80}")[0] == "`A` cannot be the name of a target"
    assert one("targets: {a: {target: svc/a}}")[0] == "`targets.a` has no `ports`"
    found = one("targets: {a: {target: svc/a, port: 1, ports: [2]}}")
    assert found[0] == "`targets.a` has both `port` and `ports`"
    text = "targets: {a: {target: svc/a, port: true}}"
    assert "must be a whole number, text or a mapping, not `true`" in one(text)[0]


def test_a_patch_is_inline_or_in_a_file() -> None:
    for entry, word in (
        ("{}", "neither `patch` nor"),
        ("{file: a, patch: {}}", "both `patch` and"),
    ):
        found, hint = one(f"agent: {{patches: [{entry}]}}{TARGETS}")
        assert found == f"`agent.patches[0]` has {word} `file`"
        assert hint
    assert one(f"agent: {{patches: [{{file: }}]}}{TARGETS}") == (
        "`agent.patches[0].file` is empty",
        "for example `patch.yaml`",
    )


def test_a_missing_key_is_reported_at_its_mapping_or_item() -> None:
    text = "targets:\n  a:\n    target: svc/a\n    ports:\n    - local: 1\n  b:\n    port: 1\n"
    found = problems(text)
    assert [(p.line, p.column) for p in found] == [(6, 7), (7, 3)]


def test_a_node_is_found_by_its_path() -> None:
    root, _ = read("a: [{b: 5}]", {})
    assert isinstance(root, Node)
    assert node_at(root, ()) is root
    assert node_at(root, ("a", 0, "b")).value == 5


# -- the text of variables -------------------------------------------------------------------------


HEAD = "apiVersion: krelay/v1\ntargets: {a: ip/10.0.0.1 1}\n"


def settled(text: str, **environ: str) -> tuple[Any, list[str]]:
    root, problems = read(HEAD + text, environ)
    assert problems == []
    assert isinstance(root, Node)
    left, found = check(root)
    assert left is not None
    plain = left.plain()
    del plain["apiVersion"], plain["targets"]
    return plain, [problem.message for problem in found]


DIGITS = "8273645510293847"


@pytest.mark.parametrize(
    "value", [DIGITS, "0123456789", "0x1F", "1e3", "true", "null", "~", "1.50"]
)
def test_a_variable_is_text_if_the_schema_allows_text_only(value: str) -> None:
    text = "status:\n  token: ${V}\nagent:\n  labels:\n    a: ${V}\n    b: '${V}'\n"
    found, _ = settled(text, V=value)
    assert found["agent"]["labels"] == {"a": value, "b": value}
    assert found["status"].get("token", value) == value


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("tunnel:\n  sessions: ${V}\n", "3", {"tunnel": {"sessions": 3}}),
        ("tunnel:\n  openTimeout: ${V}\n", "30", {"tunnel": {"openTimeout": 30}}),
        ("agent:\n  embedded: ${V}\n", "true", {"agent": {"embedded": True}}),
        ("context: ${V}\n", "", {"context": None}),
        ("status:\n  listen: ${V}\n", "9527", {"status": {"listen": 9527}}),
        ("status:\n  token: ${V}\n", "", {"status": {"token": None}}),
        ("tunnel:\n  sessions: 1${V}\n", "2", {"tunnel": {"sessions": 12}}),
    ],
)
def test_a_variable_is_typed_by_yaml_if_other_types_are_allowed(
    text: str, value: str, expected: Any
) -> None:
    assert settled(text, V=value) == (expected, [])


def test_a_port_may_come_from_a_variable() -> None:
    block = "apiVersion: krelay/v1\ntargets:\n  a:\n    target: ip/10.0.0.1\n    port: ${V}\n"
    for value, expected in (("80", 80), ("8080:80", "8080:80")):
        root, _ = read(block, {"V": value})
        assert isinstance(root, Node)
        left, found = check(root)
        assert found == []
        assert left is not None
        assert left.plain()["targets"]["a"]["port"] == expected


def test_an_old_octal_is_a_problem_if_a_number_is_allowed() -> None:
    message = "`0644` is octal in YAML 1.1 and decimal in YAML 1.2"
    assert settled("tunnel:\n  sessions: ${V}\n", V="0644") == ({"tunnel": {}}, [message])
    patch = "agent:\n  patches:\n    - patch:\n        mode: ${V}\n"
    assert settled(patch, V="0644")[1] == [message]


# -- secret keys -----------------------------------------------------------------------------------


def test_the_schema_says_what_is_secret() -> None:
    assert secret_keys() == {"token", "password"}


@pytest.mark.parametrize(
    ("key", "expected"), [("token", True), ("passWord", True), ("username", False), (None, False)]
)
def test_a_key_is_known_by_its_name(key: str | None, expected: bool) -> None:
    assert is_secret(key) is expected
