"""OIDC against an issuer that is the test's own server, under TLS."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from krelay.cluster.api import Api
from krelay.cluster.auth import oidc as module
from krelay.cluster.auth import token_store
from krelay.cluster.auth.oidc import Oidc
from krelay.cluster.auth.token_store import Tokens, TokenStore
from krelay.errors import CredentialsError
from tests.cluster.conftest import write_kubeconfig


def token(ends: float, name: str = "Zoë ÿ?>") -> str:
    """Return a JWT that expires in `ends` seconds, with letters that only base64url has."""
    claims = json.dumps({"exp": int(time.time() + ends), "name": name}, ensure_ascii=False)
    payload = base64.urlsafe_b64encode(claims.encode()).decode().rstrip("=")
    return f"e30.{payload}.c2ln"


class Issuer:
    """The discovery document and the token endpoint of `kube`."""

    def __init__(self, kube: Any, pki: Path) -> None:
        self.kube = kube
        self.pki = pki
        self.document: dict[str, Any] = {"issuer": kube.url, "token_endpoint": f"{kube.url}/token"}
        self.answer: Any = {"id_token": token(3600)}
        self.status = 200
        self.forms: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        kube.handler = self.handle

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/.well-known/openid-configuration":
            return web.json_response(self.document)
        assert (request.method, request.path) == ("POST", "/token")
        self.forms.append(dict(await request.post()))
        self.authorizations.append(request.headers.get("Authorization"))
        return web.json_response(self.answer, status=self.status)

    def source(self, **config: str | None) -> Oidc:
        body: dict[str, str | None] = {
            "idp-issuer-url": self.kube.url,
            "idp-certificate-authority": str(self.pki / "ca.pem"),
            "client-id": "kube",
            "refresh-token": "r1",
            "id-token": token(-10),
            **config,
        }
        return Oidc({key: value for key, value in body.items() if value is not None})


@pytest.fixture
async def issuer(kube: Any, pki: Path) -> Issuer:
    return Issuer(kube, pki)


async def test_a_valid_token_is_used(issuer: Issuer) -> None:
    living = token(3600)
    found = await issuer.source(**{"id-token": living}).fetch(rejected=False)
    assert found.authorization == f"Bearer {living}"
    assert time.time() + 3500 < found.expires < time.time() + 3600
    assert not issuer.kube.seen


@pytest.mark.parametrize(
    "old",
    [
        pytest.param(token(-1), id="expired"),
        *("", None, "a.b", "no token", "a.%%%.c", "a.W10.c"),
    ],
)
async def test_an_expired_or_malformed_token_is_refreshed(issuer: Issuer, old: str | None) -> None:
    found = await issuer.source(**{"id-token": old}).fetch(rejected=False)
    assert found.authorization == f"Bearer {issuer.answer['id_token']}"
    assert issuer.forms == [
        {"grant_type": "refresh_token", "refresh_token": "r1", "client_id": "kube"}
    ]


async def test_a_token_that_the_server_refuses_is_refreshed(issuer: Issuer) -> None:
    found = await issuer.source(**{"id-token": token(3600, "old")}).fetch(rejected=True)
    assert found.authorization == f"Bearer {issuer.answer['id_token']}"


async def test_a_refresh_token_that_rotates_is_kept(issuer: Issuer) -> None:
    source = issuer.source()
    issuer.answer = {"id_token": token(3600), "refresh_token": "r2"}
    await source.fetch(rejected=False)
    issuer.answer = {"id_token": token(3600)}
    await source.fetch(rejected=True)
    await source.fetch(rejected=True)
    assert [form["refresh_token"] for form in issuer.forms] == ["r1", "r2", "r2"]


@pytest.mark.parametrize(
    ("methods", "basic"),
    [(None, True), (["client_secret_basic", "client_secret_post"], True), (["x"], False)],
)
async def test_a_client_secret_is_sent_as_the_issuer_supports(
    issuer: Issuer, methods: list[str] | None, basic: bool
) -> None:
    if methods is not None:
        issuer.document["token_endpoint_auth_methods_supported"] = methods
    await issuer.source(**{"client-secret": "s&:"}).fetch(rejected=False)
    if basic:
        expected = base64.b64encode(b"kube:s%26%3A").decode()
        assert issuer.authorizations == [f"Basic {expected}"]
        assert "client_secret" not in issuer.forms[0]
    else:
        assert issuer.authorizations == [None]
        assert issuer.forms[0]["client_secret"] == "s&:"


async def test_the_issuer_is_verified(issuer: Issuer) -> None:
    for ca in (None, str(issuer.pki / "other-ca.pem")):
        with pytest.raises(CredentialsError, match="refresh at .* failed: .*certificate"):
            await issuer.source(**{"idp-certificate-authority": ca}).fetch(rejected=False)
    assert not issuer.forms, "and the refresh token stays here"


async def test_an_authority_in_data_is_trusted(issuer: Issuer) -> None:
    data = base64.b64encode((issuer.pki / "ca.pem").read_bytes()).decode()
    await issuer.source(
        **{"idp-certificate-authority": None, "idp-certificate-authority-data": data}
    ).fetch(rejected=False)


@pytest.mark.parametrize("missing", ["refresh-token", "idp-issuer-url", "client-id"])
async def test_a_refresh_without_its_settings_is_an_error(issuer: Issuer, missing: str) -> None:
    with pytest.raises(CredentialsError, match="lacks what a refresh needs") as caught:
        await issuer.source(**{missing: None}).fetch(rejected=False)
    assert caught.value.hint is not None


async def test_an_issuer_that_refuses_is_a_credentials_error(issuer: Issuer) -> None:
    issuer.status, issuer.answer = 400, {"error": "invalid_grant"}
    with pytest.raises(CredentialsError, match='says 400: {"error": "invalid_grant"}'):
        await issuer.source().fetch(rejected=False)


@pytest.mark.parametrize(
    ("answer", "message"), [({}, "returned no id_token"), ([], "expected an object, got a list")]
)
async def test_an_answer_without_a_token_is_an_error(
    issuer: Issuer, answer: Any, message: str
) -> None:
    issuer.answer = answer
    with pytest.raises(CredentialsError, match=message):
        await issuer.source().fetch(rejected=False)


async def test_a_discovery_document_of_another_issuer_is_refused(issuer: Issuer) -> None:
    issuer.document["issuer"] = "https://evil.test"
    with pytest.raises(CredentialsError, match=r"claims to be https://evil\.test"):
        await issuer.source().fetch(rejected=False)


@pytest.mark.parametrize("endpoint", ["", "http://127.0.0.1:1/token"])
async def test_a_token_endpoint_without_tls_is_refused(issuer: Issuer, endpoint: str) -> None:
    issuer.document["token_endpoint"] = endpoint
    with pytest.raises(CredentialsError, match="no token endpoint with TLS"):
        await issuer.source().fetch(rejected=False)


async def test_a_silent_issuer_ends_at_the_deadline(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        await released.wait()
        return web.Response()

    released = asyncio.Event()
    issuer.kube.handler = silent
    monkeypatch.setattr("krelay.cluster.auth.oidc.DEADLINE", 0.2)
    with pytest.raises(CredentialsError, match="no answer in time"):
        await issuer.source().fetch(rejected=False)
    released.set()


async def test_an_issuer_without_tls_is_not_asked(issuer: Issuer) -> None:
    source = issuer.source(**{"idp-issuer-url": "http://issuer.test"})
    with pytest.raises(CredentialsError, match="has no TLS"):
        await source.fetch(rejected=False)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("token_endpoint", 5),
        ("issuer", ["x"]),
        ("token_endpoint_auth_methods_supported", 5),
        ("token_endpoint_auth_methods_supported", [{}]),
    ],
)
async def test_a_malformed_discovery_document_is_an_error(
    issuer: Issuer, field: str, value: Any
) -> None:
    issuer.document[field] = value
    with pytest.raises(CredentialsError, match=f"{field}.*: expected a"):
        await issuer.source().fetch(rejected=False)
    assert not issuer.forms


@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/token"])
async def test_an_endless_answer_is_an_error(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(module, "MAX_ANSWER", 1000)
    (issuer.document if path != "/token" else issuer.answer)["more"] = "x" * 1000
    with pytest.raises(CredentialsError, match="^oidc: an answer of more than 1000 bytes"):
        await issuer.source().fetch(rejected=False)


async def test_the_password_of_a_proxy_is_sent_and_not_repeated(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    asked: list[bytes] = []
    server = await asyncio.start_server(refuse, "127.0.0.1")
    async with server:
        port = server.sockets[0].getsockname()[1]
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:hunter2@127.0.0.1:{port}")
        source = issuer.source(**{"idp-issuer-url": "https://issuer.test"})
        with pytest.raises(CredentialsError, match="403") as caught:
            await source.fetch(rejected=False)
    assert b"\r\nProxy-Authorization: Basic bWU6aHVudGVyMg==\r\n" in asked[0]
    assert "hunter2" not in "".join(caught.value.report())


def test_an_expiry_that_is_not_a_number_counts_as_expired() -> None:
    for end in ("9" * 400, '"x"', "NaN", "1e999", "[" * 9_000, "true"):
        payload = base64.urlsafe_b64encode(f'{{"exp":{end}}}'.encode()).decode().rstrip("=")
        assert module._renew_at(f"e30.{payload}.x") == 0.0


# -- kubeconfig ------------------------------------------------------------------------------------


class Rotating(Issuer):
    """An issuer that accepts each refresh token once, and logs everyone out who sends one twice."""

    def __init__(self, kube: Any, pki: Path) -> None:
        super().__init__(kube, pki)
        self.valid = "r1"
        self.lifetime = 3600.0
        self.id_token = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/version":
            accepted = request.headers.get("Authorization") == f"Bearer {self.id_token}"
            return web.json_response({"gitVersion": "v1"}, status=200 if accepted else 401)
        if request.path == "/token":
            form = await request.post()
            self.forms.append(dict(form))
            if form["refresh_token"] != self.valid:
                self.valid = ""
                return web.json_response({"error": "invalid_grant"}, status=400)
            self.valid = f"r{len(self.forms) + 1}"
            self.id_token = token(self.lifetime, self.valid)
            answer = {"id_token": self.id_token, "refresh_token": self.valid}
            answer |= {"access_token": "a", "token_type": "Bearer"}  # kubectl insists on them
            return web.json_response(answer)
        return await super().handle(request)


class File:
    """A kubeconfig whose user has expired tokens of `issuer`."""

    def __init__(self, path: Path, issuer: Issuer, pki: Path) -> None:
        self.path = path
        self.config = {
            "idp-issuer-url": issuer.kube.url,
            "idp-certificate-authority": str(pki / "ca.pem"),
            "client-id": "kube",
            "id-token": token(-10),
            "refresh-token": "r1",
        }
        write_kubeconfig(
            path,
            {"server": issuer.kube.url, "certificate-authority": str(pki / "ca.pem")},
            {"auth-provider": {"name": "oidc", "config": self.config}},
        )
        self.store = TokenStore((str(path),), "u")

    def source(self) -> Oidc:
        return Oidc(self.config, self.store)

    async def tokens(self) -> Tokens:
        found = await asyncio.to_thread(self.store.peek)
        assert found is not None
        return found


@pytest.fixture
async def rotating(kube: Any, pki: Path) -> Rotating:
    return Rotating(kube, pki)


@pytest.fixture
def file(tmp_path: Path, rotating: Rotating, pki: Path) -> File:
    return File(tmp_path / "kubeconfig", rotating, pki)


async def test_new_tokens_are_written_to_kubeconfig(rotating: Rotating, file: File) -> None:
    source = file.source()
    found = await source.fetch(rejected=False)
    assert found.authorization == f"Bearer {(await file.tokens()).id_token}"
    assert (await file.tokens()).refresh_token == rotating.valid == "r2"
    assert source.knows(Tokens.of(file.config).as_config()) is False
    assert source.knows((await file.tokens()).as_config())
    await source.fetch(rejected=True)
    assert (await file.tokens()).refresh_token == rotating.valid == "r3"


async def test_several_sources_spend_a_token_once(rotating: Rotating, file: File) -> None:
    sources = [file.source() for _ in range(4)]
    async with asyncio.TaskGroup() as tasks:
        found = [tasks.create_task(source.fetch(rejected=False)) for source in sources]
    new = await file.tokens()
    assert {task.result().authorization for task in found} == {f"Bearer {new.id_token}"}
    assert len(rotating.forms) == 1


async def test_tokens_that_another_program_wrote_are_used(rotating: Rotating, file: File) -> None:
    source = file.source()
    fresh = Tokens(token(3600), "r7")
    await asyncio.to_thread(file.store.write, fresh)
    assert (await source.fetch(rejected=False)).authorization == f"Bearer {fresh.id_token}"
    assert not rotating.forms, "no token is spent"
    rotating.valid = "r7"
    await source.fetch(rejected=True)
    assert [form["refresh_token"] for form in rotating.forms] == ["r7"]


async def test_tokens_of_a_merge_are_spent_although_they_cannot_be_replaced(
    rotating: Rotating, file: File, caplog: pytest.LogCaptureFixture
) -> None:
    text = await asyncio.to_thread(file.path.read_text)
    assert '"refresh-token": "r1"' in text
    text = text.replace('"refresh-token": "r1"', '"<<": {"refresh-token": "r1"}')
    await asyncio.to_thread(file.path.write_text, text.replace('"<<"', "<<"))
    found = await file.source().fetch(rejected=False)
    assert found.authorization == f"Bearer {rotating.id_token}"
    assert "cannot be written" in caplog.text


async def test_a_race_for_a_token_is_lost_without_harm(
    rotating: Rotating, file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OTHERS_PATIENCE", 0.0)
    fresh = Tokens(token(3600), "r9")

    async def handle(request: web.Request) -> web.StreamResponse:
        if request.path == "/token":  # kubectl has just spent it, and writes
            await asyncio.to_thread(file.store.write, fresh)
            return web.json_response({"error": "invalid_grant"}, status=400)
        return await rotating.handle(request)

    rotating.kube.handler = handle
    found = await file.source().fetch(rejected=False)
    assert found.authorization == f"Bearer {fresh.id_token}"


async def test_a_kubeconfig_that_cannot_be_written_is_said_before_a_token_is_spent(
    rotating: Rotating,
    file: File,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(token_store, "LOCK_PATIENCE", 0.0)
    lock = file.path.with_name("kubeconfig.lock")
    await asyncio.to_thread(lock.touch)
    said: list[list[str]] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        said.append(list(caplog.messages))
        return await rotating.handle(request)

    rotating.kube.handler = handle
    source = file.source()
    await source.fetch(rejected=False)
    assert "cannot be written" in said[0][0]
    assert "other tools have to log in again" in said[0][0]
    await source.fetch(rejected=True)
    assert rotating.valid == "r3", "krelay keeps what it has"
    assert len(caplog.messages) == 1
    await asyncio.to_thread(lock.unlink)
    await source.fetch(rejected=True)
    assert (await file.tokens()).refresh_token == "r4"
    assert not any(secret in caplog.text for secret in ("r2", "r3", "r4"))


async def test_a_refresh_that_is_cancelled_writes_what_it_gets(
    rotating: Rotating, file: File
) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        if request.path == "/token":
            asked.set()
            await answer.wait()
        return await rotating.handle(request)

    rotating.kube.handler = handle
    task = asyncio.ensure_future(file.source().fetch(rejected=False))
    await asked.wait()
    task.cancel()
    asyncio.get_running_loop().call_later(0.05, answer.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await file.tokens()).refresh_token == rotating.valid == "r2"


@pytest.mark.process
async def test_a_completion_that_must_end_writes_what_it_gets(
    rotating: Rotating, file: File
) -> None:
    child: asyncio.subprocess.Process | None = None

    async def handle(request: web.Request) -> web.StreamResponse:
        if request.path == "/token":
            assert child is not None
            child.send_signal(signal.SIGALRM)
            await asyncio.sleep(0.2)
        return await rotating.handle(request)

    rotating.kube.handler = handle
    text = (
        "import sys\nfrom krelay.cli.flags import completion as c\n"
        "c._DEADLINE = c._PROCESS_DEADLINE = 20.0\nc.limit_time()\n"
        "c._list({'kubeconfig': sys.argv[1]}, 'v1', 'pods')\n"
    )
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", text, str(file.path))
    await child.wait()
    assert (await file.tokens()).refresh_token == rotating.valid == "r2"
    assert [found.name for found in file.path.parent.iterdir()] == ["kubeconfig"]


async def test_what_krelay_wrote_is_no_other_kubeconfig(
    rotating: Rotating, file: File, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "krelay")
    api = await Api.connect(kubeconfig=str(file.path))
    try:
        await api.access()
        assert (await file.tokens()).refresh_token == "r2"
        assert await api.reread() is None
        first = await api.access()
        await asyncio.to_thread(file.store.write, Tokens(token(3600), "r8"))
        change = await api.reread()
        assert change is not None
        assert change.words == ("credentials",)
        assert (await api.access()).headers != first.headers
        assert len(rotating.forms) == 1
    finally:
        await api.aclose()


async def test_tokens_that_could_not_be_written_outlast_an_edit(
    rotating: Rotating, file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_store, "LOCK_PATIENCE", 0.0)
    await asyncio.to_thread(file.path.with_name("kubeconfig.lock").touch)
    async with await Api.connect(kubeconfig=str(file.path)) as api:
        first = await api.access()
        text = await asyncio.to_thread(file.path.read_text)
        text = text.replace('"auth-provider"', '"as": "jane", "auth-provider"')
        await asyncio.to_thread(file.path.write_text, text)
        change = await api.reread()
        assert change is not None
        assert change.words == ("credentials",)
        second = await api.access()
        assert dict(second.headers).items() > dict(first.headers).items()
        assert rotating.valid == "r2", "the new tokens are used"
        api.reject(second)
        await api.access()
        assert rotating.valid == "r3"
