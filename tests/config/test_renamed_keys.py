from __future__ import annotations

import importlib
import json
import logging
from pathlib import Path

import jsonschema
import pytest
import yaml

from krelay.config import load, load_schema, parse, schema_text
from krelay.config.diff import diff
from krelay.config.schema import renamed_keys
from krelay.errors import ConfigError
from krelay.model import AgentConfig, SessionConfig, TunnelConfig

HEAD = "apiVersion: krelay/v1\ntargets: {web: svc/web 80}\n"
KEYS = [
    ("tunnel", "park", "openTimeout", "7s"),
    ("tunnel", "dial", "connectTimeout", "7s"),
    ("tunnel", "grace", "resumeTimeout", "7s"),
    ("tunnel", "replay", "resumeBuffer", "1Mi"),
    ("agent", "inject", "injectSource", "true"),
]
by_key = pytest.mark.parametrize(
    ("section", "old", "new", "value"), KEYS, ids=[old for _, old, _, _ in KEYS]
)


@pytest.fixture(autouse=True)
def _not_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("krelay.config.load"), "_warned", set())


def test_the_keys_of_these_tests_are_those_of_the_schema() -> None:
    found = {
        (section, old, new)
        for section, names in renamed_keys().items()
        for old, new in names.items()
    }
    assert found == {(section, old, new) for section, old, new, _ in KEYS}


@by_key
def test_an_old_key_means_the_same_as_its_new_name(
    section: str, old: str, new: str, value: str
) -> None:
    before = parse(f"{HEAD}{section}: {{{old}: {value}}}\n", "a", {})
    after = parse(f"{HEAD}{section}: {{{new}: {value}}}\n", "a", {})
    assert before == after
    assert (before.tunnel, before.agent) != (TunnelConfig(), AgentConfig())
    assert not diff(before, after)
    assert not diff(after, before)


def test_all_old_keys_together_reach_the_model() -> None:
    config = parse(
        f"{HEAD}tunnel: {{park: 1s, dial: 2s, grace: 3s, replay: 1Mi}}\nagent: {{inject: true}}",
        "a",
        {},
    )
    assert config.tunnel == TunnelConfig(
        open_timeout=1.0,
        connect_timeout=2.0,
        session=SessionConfig(resume_timeout=3.0, resume_buffer=1 << 20),
    )
    assert config.agent.inject_source is True


@by_key
def test_an_old_key_is_logged_once_with_file_line_and_both_names(
    section: str, old: str, new: str, value: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    path = tmp_path / "krelay.yaml"
    path.write_text(f"{HEAD}{section}:\n  {old}: {value}\n")
    load(str(path), environ={})
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("krelay.config", logging.WARNING)
    assert record.getMessage() == (
        f"{path}:4: `{section}.{old}` is now called `{section}.{new}`; rename it, the old name "
        "still works"
    )
    load(str(path), environ={})
    path.write_text(f"{HEAD}\n{section}:\n  {old}: {value}\n")
    load(str(path), environ={})
    assert len(caplog.records) == 1


def test_each_file_and_each_key_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    for path in ("a", "b", "a"):
        parse(f"{HEAD}tunnel:\n  park: 1s\n  dial: 2s\n", path, {})
    assert [record.getMessage().partition(" is")[0] for record in caplog.records] == [
        "a:4: `tunnel.park`",
        "a:5: `tunnel.dial`",
        "b:4: `tunnel.park`",
        "b:5: `tunnel.dial`",
    ]


@by_key
def test_a_new_key_logs_nothing(
    section: str, old: str, new: str, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    parse(f"{HEAD}{section}: {{{new}: {value}}}\n", "a", {})
    assert caplog.records == []


@by_key
def test_both_names_at_once_are_a_problem_at_the_old_key(
    section: str, old: str, new: str, value: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"{HEAD}{section}:\n  {new}: {value}\n  {old}: {value}\n", "a", {})
    (problem,) = caught.value.problems
    assert (problem.line, problem.column) == (5, 3)
    assert problem.message == f"`{old}` is the old name of `{new}`, which is set too"
    assert problem.hint == "remove one of them"


@by_key
def test_a_wrong_value_of_an_old_key_is_reported_at_its_place(
    section: str, old: str, new: str, value: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"{HEAD}{section}:\n  {old}: [x]\n", "a", {})
    (problem,) = caught.value.problems
    assert (problem.line, problem.column) == (4, 5 + len(old))
    assert problem.message.startswith(f"`{section}.{new}` must be ")


def test_an_old_key_may_have_a_variable_or_an_alias_as_value() -> None:
    text = f"{HEAD}tunnel: {{park: '${{PARK}}', dial: &d 2s, grace: *d}}\n"
    tunnel = parse(text, "a", {"PARK": "1s"}).tunnel
    assert (tunnel.open_timeout, tunnel.session.resume_timeout) == (1.0, 2.0)


def test_an_old_name_elsewhere_is_no_key(caplog: pytest.LogCaptureFixture) -> None:
    text = "apiVersion: krelay/v1\ntargets: {park: svc/web 80, dial: svc/web 81}\n"
    config = parse(f"{text}agent: {{labels: {{inject: a}}}}\n", "a", {})
    assert [target.name for target in config.targets] == ["park", "dial"]
    assert config.agent.labels == {"inject": "a"}
    assert caplog.records == []
    with pytest.raises(ConfigError, match="1 problem"):
        parse(f"{HEAD}park: 1s\n", "a", {})


def test_a_secret_in_the_place_of_a_section_is_not_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    text = f"{HEAD}status: {{token: &t {{park: hunter2hunter2}}}}\ntunnel: *t\n"
    with pytest.raises(ConfigError) as caught:
        parse(text, "a", {})
    assert "hunter2" not in "\n".join([*caught.value.report(), caplog.text])


def test_editors_accept_old_keys_and_krelay_prints_the_same_schema() -> None:
    text = f"{HEAD}tunnel: {{park: 1s, grace: 2m}}\nagent: {{inject: true}}\n"
    published = json.loads(schema_text())
    jsonschema.validate(yaml.safe_load(text), published)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(f"{HEAD}tunnel: {{park: [1]}}\n"), published)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text), load_schema())
    for section, old, new, _ in KEYS:
        rules = published["properties"][section]["properties"]
        assert rules[old]["deprecationMessage"] == f"Use `{new}`."
        assert old not in load_schema()["properties"][section]["properties"]
