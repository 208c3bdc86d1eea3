"""No error shows a secret, wherever it stands and whatever is wrong with it."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pytest

from krelay.cli.file_commands import check
from krelay.config.changes import changes
from krelay.config.diff import diff
from krelay.config.load import load
from krelay.config.sources import Selection
from krelay.errors import ConfigError
from krelay.state.error_codec import to_json

HEAD = "apiVersion: krelay/v1\ntargets: {a: ip/10.0.0.1 1}\n"
SECRETS = ("8273645510293847", "hunter2", "0123456789012345")

WRONG = [
    "status: {token: 8273645510293847}",
    "status: {token: hunter2}",
    "status: {token: 0123456789012345}",
    "status: {token: [hunter2]}",
    "status: {token: {hunter2: hunter2}}",
    "status: {token: {hunter2: 1, hunter2: 1}}",
    "status: {token: *hunter2}",
    "status: {token: !hunter2 x}",
    "status: {token: 'a${hunter2'}",
    "status: {token: 'a${hunter2 x}'}",
    "status: {token: 'a${X-hunter2}'}",
    "status: {token: '${SECRET}'}",
    "status:\n  token: ${NUMBER}x y",
    "status: {token: &t 8273645510293847, listen: *t}",
    "status: {token: &t 'hunter2:1', listen: *t}",
    "status: {listen: &t 'hunter2:x', token: *t}",
    "namespace: &t hunter2!\nstatus: {token: *t}",
    "context: &t 8273645510293847\nstatus: {token: *t}",
    "status: hunter2",
    "status: 8273645510293847",
    "status: [hunter2]",
    "Status: {Token: 0123456789012345}",
    "token: 0123456789012345",
    "status: {Token: *hunter2}",
    "proxies: {p: {username: me, password: 271828, port: x, password: hunter2}}",
    "proxies: {p: {username: me, password: 8273645510293847}}",
    "proxies: {p: {password: hunter2}}",
    "proxies: {p: hunter2}",
    "proxies: {p: {username: me, password: {a: hunter2}}}",
    "proxies: {p: {username: me, passwrd: hunter2}}",
    "proxies: {p: {port: 99999, username: me, password: hunter2}}",
    "proxies: {p: {username: me, password: hunter2}, q: {username: me, password: hunter2}}",
    "proxies: {p: {username: me, password: &t hunter2}, q: {port: 1, listen: *t}}",
    "include: [*t]\nstatus: {token: &t hunter2}",
    "status: {token: &t hunter2}\ninclude: [*t]",
    "status: {token: &t hunter2-hunter2-hunter2}\nagent: {patches: [{file: *t}]}",
    "status: {token: &t hunter2-hunter2-hunter2}\ndefaults: {check: *t, listen: *t, namespace: *t}",
    "agent: {patches: [{type: json, patch: {password: 0123456789012345}}]}",
    "status: {token: hunter2]",
    "status: {token: hunter2",
    "status: {token: 'hunter2}",
    'status: {token: "hunter2\\q"}',
    "status:\n  token: hunter2: x",
    "status:\n  token hunter2",
    "status:\n  token: @hunter2",
    "status:\n  token: %hunter2",
    "status:\n  token: `hunter2`",
]


@pytest.mark.parametrize("text", WRONG)
def test_an_invalid_file_is_rejected(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "krelay.yaml"
    file.write_text(HEAD + text + "\n")
    environ = {"SECRET": "hunter2", "NUMBER": "8273645510293847"}
    with pytest.raises(ConfigError) as caught:
        load(str(file), environ=environ)
    shown = ["\n".join(caught.value.report()), json.dumps(to_json(caught.value)), str(caught.value)]
    assert check(Selection(str(file), environ=environ), json=True) == 2
    shown.append(capsys.readouterr().out)
    for secret in SECRETS:
        assert not any(secret in text for text in shown), shown[0]


def test_a_valid_file_has_no_problems(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    file = tmp_path / "krelay.yaml"
    text = (
        HEAD + "status:\n  token: ${T}\n" + "proxies:\n  p:\n    username: me\n    password: ${P}\n"
    )
    file.write_text(text)
    config = load(str(file), environ={"T": SECRETS[0], "P": "271828"})
    assert config.status.token == SECRETS[0]
    assert config.targets[1].credentials == ("me", "271828")
    other = load(str(file), environ={"T": SECRETS[2], "P": "hunter2"})
    shown = [str(change.as_json()) for change in changes(diff(config, other))]
    assert len(shown) == 2
    shown += [str(config), repr(config), repr(other), repr(diff(config, other)), caplog.text]
    assert not any(secret in text for text in shown for secret in (*SECRETS, "271828"))
    assert dataclasses.replace(config) == config


def test_the_name_of_a_variable_is_no_secret() -> None:
    with pytest.raises(ConfigError) as caught:
        load("x", environ={}, text=(HEAD + "status: {token: '${KRELAY_TOKEN}'}\n").encode())
    assert caught.value.problems[0].message == "the variable `KRELAY_TOKEN` is not set"
