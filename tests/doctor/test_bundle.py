"""The archive for a bug report: what it holds, and that no secret is in it."""

from __future__ import annotations

import asyncio
import base64
import json
import stat
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from krelay.config.redaction import redacted
from krelay.config.sources import Selection
from krelay.doctor import Finding, Status, bundle
from krelay.doctor.redaction import Redactor, secrets_of_environment
from krelay.errors import UsageError
from krelay.state.bus import EventBus
from krelay.state.snapshot import Snapshot
from krelay.status.servers import serve_unix
from krelay.status.socket_path import socket_path
from tests.cluster.conftest import PKI, Kube

JWT = "eyJhbGciOiJub25lIn0.eyJwbGFudGVkIjoxfQ.c2lnbmF0dXJl"
FILE = """\
apiVersion: krelay/v1
status: {listen: 0, token: "${PLANTED_IN_FILE}"}
proxies:
  px: {port: 1080, username: jane-doe, password: planted-password}
agent:
  annotations: {vault/token: planted-annotation, note: "see https://planted-user@example.test/"}
  patches:
    - patch: {spec: {containers: [{name: krelay-server, env: [{name: X, value: planted-env}]}]}}
    - patch: {spec: {containers: [{name: krelay-server, env: [{name: Y, value: "true"}]}]}}
targets:
  web: svc/web :80  # planted-comment
"""
WHERE = "team/krelay-server-x"


def read(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        found = {}
        for member in archive.getmembers():
            file = archive.extractfile(member)
            assert file is not None
            found[member.name.removeprefix("krelay-bundle/")] = file.read().decode()
        return found


def kubeconfig(kube: Kube) -> str:
    """Write one with a secret in every place that krelay reads."""
    key = base64.b64encode((PKI / "client-key.pem").read_bytes()).decode()
    certificate = base64.b64encode((PKI / "client.pem").read_bytes()).decode()
    user = {
        "token": "planted-token",
        "client-key-data": key,
        "client-certificate-data": certificate,
    }
    return kube.kubeconfig(user)


async def answer(request: web.Request) -> web.StreamResponse:
    """Answer with secrets where a cluster may have them."""
    path = request.path
    if path.endswith("/log"):
        return web.Response(
            text=f"Authorization: Bearer planted-bearer\npassword=planted-log {JWT}\n"
        )
    if path.endswith("/events"):
        message = "pull https://planted-user:planted-pw@registry.test/x failed"
        return web.json_response({"items": [{"type": "Warning", "message": message}]})
    pod = {
        "metadata": {"name": "krelay-server-x", "annotations": {"a": "planted-pod-annotation"}},
        "spec": {
            "nodeName": "node-1",
            "containers": [{"name": "k", "image": "i", "env": [{"value": "planted-pod-env"}]}],
        },
        "status": {"message": f"token=planted-status {JWT}"},
    }
    return web.json_response(pod)


async def test_no_secret_is_in_the_archive(
    kube: Kube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_IN_FILE", "planted-by-variable")
    monkeypatch.setenv("MY_API_KEY", "planted-in-environment")
    monkeypatch.setenv("ALL_PROXY", "socks5://planted-proxy-user:planted%2Dproxy@proxy.test")
    kube.handler = answer
    path = tmp_path / "krelay.yaml"
    path.write_text(FILE)
    source = Selection(str(path), environ={"PLANTED_IN_FILE": "planted-by-variable"})
    pem = (PKI / "client.pem").read_text()
    spoken = (
        f"planted-token planted-by-variable planted-in-environment {JWT} {pem}"
        " planted-proxy-user planted-proxy planted-password"
    )
    findings = [Finding("server", Status.FAILED, spoken, details={"pem": pem})]

    async def status(body: Mapping[str, Any]) -> dict[str, Any]:
        agents = [{"context": "here", "where": [WHERE, "process 7, port 8"]}]
        return {"agents": agents, "ready": True, "forwards": [{"reason": spoken}]}

    async def logs(body: Mapping[str, Any]) -> dict[str, Any]:
        return {"lines": [{"number": 1, "text": spoken}], "last": 1}

    async def tasks(body: Mapping[str, Any]) -> dict[str, Any]:
        return {"text": f"task x: {spoken}"}

    async def snapshot() -> Snapshot:
        raise AssertionError

    handlers = {
        ("GET", "/v1/status"): status,
        ("GET", "/v1/logs"): logs,
        ("GET", "/v1/tasks"): tasks,
    }
    archive = tmp_path / "bundle.tar.gz"
    at = await asyncio.to_thread(socket_path, str(path))
    async with serve_unix(at, handlers, snapshot=snapshot, bus=EventBus()):
        names = await bundle.write(archive, findings, source, kubeconfig=kubeconfig(kube))
    found = read(archive)
    assert sorted(found) == names
    assert names == [
        f"agents/{WHERE.replace('/', '-')}/events.json",
        f"agents/{WHERE.replace('/', '-')}/log.txt",
        f"agents/{WHERE.replace('/', '-')}/pod.json",
        "doctor.json",
        "file/0-krelay.yaml",
        "running/log.txt",
        "running/status.json",
        "running/tasks.txt",
        "versions.json",
    ]
    leaked = {name: text for name, text in found.items() if "planted" in text}
    assert leaked == {}
    whole = "".join(found.values())
    for secret in (JWT, "BEGIN", *pem.splitlines()[1:3], "PRIVATE KEY"):
        assert secret not in whole
    assert "web: svc/web :80" in found["file/0-krelay.yaml"]
    assert json.loads(found["doctor.json"])[0]["check"] == "server"
    assert json.loads(found["running/status.json"])["ready"] is True
    assert '"nodeName": "node-1"' in found[names[2]]
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600


async def test_without_a_file_or_a_cluster_there_are_the_report_and_the_versions(
    tmp_path: Path,
) -> None:
    archive = tmp_path / "b.tar.gz"
    assert await bundle.write(archive, [], None) == ["doctor.json", "versions.json"]
    with pytest.raises(UsageError, match="exists"):
        await bundle.write(archive, [], None)
    with pytest.raises(UsageError, match="cannot write"):
        await bundle.write(tmp_path / "none" / "b.tar.gz", [], None)


async def test_an_invalid_file_is_redacted_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_IN_FILE", "planted-by-variable")
    path = tmp_path / "krelay.yaml"
    path.write_text(FILE.replace("targets", "targetz"))
    findings = [Finding("file", Status.FAILED, "planted-by-variable, planted-password")]
    archive = tmp_path / "b.tar.gz"
    await bundle.write(archive, findings, Selection(str(path)))
    found = read(archive)
    assert "targetz" in found["file/0-krelay.yaml"]
    assert "planted" not in "".join(found.values())


async def test_what_is_no_yaml_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "krelay.yaml"
    path.write_text("status: {token: planted\n  x")
    archive = tmp_path / "b.tar.gz"
    await bundle.write(archive, [], Selection(str(path)))
    assert read(archive)["file/0-krelay.yaml"] == "# left out: it is not YAML\n"
    await bundle.write(tmp_path / "c.tar.gz", [], Selection(str(tmp_path / "none.yaml")))
    assert "left out: cannot read" in read(tmp_path / "c.tar.gz")["file/0-none.yaml"]


async def test_what_the_cluster_refuses_is_said_to_be_left_out(
    kube: Kube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from krelay.cluster.api import Api

    kube.script((403, {"message": 'User "j" cannot get resource "pods"'}))
    texts: dict[str, str] = {}
    snapshot = {"agents": [{"context": None, "where": [WHERE]}]}
    async with await Api.connect(kubeconfig=kube.kubeconfig({"token": "t"})) as api:
        await bundle._agents(texts, api, None, snapshot)
    assert len(texts) == 3
    assert all(text.startswith("left out: access denied") for text in texts.values())


def test_a_running_krelay_that_answers_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from krelay.status import client

    monkeypatch.setattr(client, "ask", lambda *args, **more: {})
    texts: dict[str, str] = {}
    assert bundle._running(texts, str(tmp_path / "f")) == {}
    assert texts["running/log.txt"].startswith("left out: ")


# -- the file --------------------------------------------------------------------------------------


def test_a_redacted_file_keeps_its_shape_and_its_aliases() -> None:
    text, secrets = redacted("a: {token: &t x1, list: [*t, {password: [y1, {b: z1}]}]}\nc: *t\n")
    assert text == (
        "a: {token: &t <redacted>, list: [*t, {password: [<redacted>, {b: <redacted>}]}]}\nc: *t\n"
    )
    assert secrets == {"x1", "y1", "z1"}


def test_a_targets_txt_is_kept() -> None:
    assert redacted("svc/web 8080:80\n") == ("svc/web 8080:80\n", frozenset())


@pytest.mark.parametrize("text", ["a: {b", "a: [1\nb: 2"])
def test_what_is_no_yaml_has_unknown_secrets(text: str) -> None:
    with pytest.raises(ValueError, match="not YAML"):
        redacted(text)


# -- texts -----------------------------------------------------------------------------------------


def test_words_of_the_environment_are_no_secrets() -> None:
    environ = {
        "TOKENS": "true",
        "A_TOKEN": "longer-than-a-word",
        "U": "http://me:pw@x",
        "V": "http://[",
    }
    assert set(secrets_of_environment(environ)) == {"longer-than-a-word", "me", "pw"}


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("token: ended 2026-06-01", "token: ended 2026-06-01"),
        ('{"password": "x y"}', '{"password": "<redacted>"}'),
        ("https://h/?token=abc&x=1", "https://h/?token=<redacted>&x=1"),
        ("https://h/x?a=1&X-Amz-Signature=abc", "https://h/x?a=1&X-Amz-Signature=<redacted>"),
        ("https://h/x?sig=a%2Fb&a=1", "https://h/x?sig=<redacted>&a=1"),
        ("k8s-aws-v1.abc_d", "<redacted>"),
        ("A" * 100, "<redacted>"),
        ("-----BEGIN KEY-----\nabc", "<redacted>"),
        ("s/cret and s%2Fcret", "<redacted> and <redacted>"),
        ("PGPASSWORD=x db_password=y", "PGPASSWORD=<redacted> db_password=<redacted>"),
        ("psql --password x --token=y", "psql --password <redacted> --token=<redacted>"),
        ('{"db_password": "x"}', '{"db_password": "<redacted>"}'),
        (r"{\"token\": \"x\"}", r"{\"token\": \"<redacted>\"}"),
        ("X-Api-Key: x", "X-Api-Key: <redacted>"),
        ("a-eyJhbGci.eyJh.c2ln", "a-<redacted>"),
        ("eyJ eyJhbGci.eyJh.c2ln.", "eyJ <redacted>."),
    ],
)
def test_what_looks_like_a_secret_is_taken_out(text: str, clean: str) -> None:
    assert Redactor(["s/cret", "abc"])(text) == clean


@pytest.mark.parametrize("secret", ['pä\\ss"w\nrd', "gehäime", "a&b=c/d"])
def test_a_secret_is_taken_out_of_json(secret: str) -> None:
    redact = Redactor([secret])
    for value in (secret, f"before {secret} after"):
        for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
            found = json.loads(redact(text))
            assert found == value.replace(secret, "<redacted>")


@pytest.mark.parametrize(
    ("secret", "text", "clean"),
    [
        ("true", '{"ready": true, "why": "true"}', '{"ready": true, "why": "true"}'),
        ("Debug", "debug: the Debug log", "debug: the Debug log"),
        ("pea", "peas and a pea", "peas and a pea"),
        ("pear7", "pear7, pear78, apear7", "<redacted>, pear78, apear7"),
        ("pear7", "_pear7_ 'pear7' x=pear7&y", "_<redacted>_ '<redacted>' x=<redacted>&y"),
        ("pear7", r"a\npear7 \u003cpear7\u003e a%2Fpear7", r"a\n<redacted> \u003c<redacted>"),
        ("+ear+", "a+ear+b", "a<redacted>b"),
        ("pears-77", "apears-778", "a<redacted>8"),
    ],
)
def test_a_short_secret_is_a_word_by_itself(secret: str, text: str, clean: str) -> None:
    assert Redactor([secret])(text).startswith(clean)


def test_json_stays_valid_json() -> None:
    redact = Redactor(["true", "1234", "12345678", "pear7", "a-long-secret"])
    value = {
        "ready": True,
        "port": 1234,
        "other": 12_345,
        "id": 1_123_456_789,
        "rtt": 0.5,
        "a-long-secret": None,
        "token": "x",
        "apiKey": "",
        "reasons": ["true", "pear7", "-p pear7 password=x\\", 'say "a-long-secret"'],
    }
    assert json.loads(redact.json(json.dumps(value))) == {
        "ready": True,
        "port": "<redacted>",
        "other": 12_345,
        "id": "<redacted>",
        "rtt": 0.5,
        "<redacted>": None,
        "token": "<redacted>",
        "apiKey": "",
        "reasons": [
            "true",
            "<redacted>",
            "-p <redacted> password=<redacted>",
            'say "<redacted>"',
        ],
    }
    assert redact.json('left out: {"pear7"') == 'left out: {"<redacted>"'


@pytest.mark.parametrize(
    "unit",
    [
        *(
            "eyJ-",
            "eyJa.",
            "eyJ-.",
            "a-",
            "a.",
            "token",
            "--token ",
            '"token"',
            '"token": "',
            "://",
        ),
        *("Bearer ", "Basic", "-----BEGIN A-----", "-----BEGIN ", "A" * 79 + " ", "A/", " ", ":"),
        *("key: ", "password=", '\\"', "&sig", "?-"),
    ],
)
def test_redacting_takes_linear_time(unit: str) -> None:
    """A log quotes the cluster. A quadratic expression would take minutes."""
    Redactor(["s/cret"])(unit * ((1 << 20) // len(unit)))
