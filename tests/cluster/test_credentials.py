from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import os
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from krelay import __version__
from krelay.cluster.auth import credentials as module
from krelay.cluster.auth.credentials import Credentials
from krelay.cluster.auth.identity import ahead
from krelay.cluster.auth.kubeconfig import Login
from krelay.errors import CredentialsError, UnreachableError
from krelay.net.api_access import ApiAccess
from krelay.threads import use_daemons


async def opened(user: Mapping[str, Any], **cluster: Any) -> Credentials:
    server = cluster.pop("server", "https://h:6443")
    found = Credentials(lambda: Login(server, "default", {"server": server, **cluster}, user))
    await found.open()
    return found


def header(access: ApiAccess, name: str) -> str | None:
    return dict(access.headers).get(name)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ({}, None),
        ({"token": "t"}, "Bearer t"),
        ({"username": "u", "password": "p:q"}, "Basic dTpwOnE="),
        ({"username": "u"}, "Basic dTo="),
        ({"token": "t", "username": "u"}, "Bearer t"),
        ({"token": "t", "exec": {"command": "/none", "apiVersion": "v"}}, "Bearer t"),
    ],
)
async def test_a_token_password_or_certificate_of_kubeconfig_is_used(
    user: dict[str, Any], expected: str | None
) -> None:
    access = await (await opened(user)).access()
    assert header(access, "Authorization") == expected
    assert header(access, "User-Agent") == f"krelay/{__version__}"


async def test_an_access_has_all_that_a_tunnel_needs(pki: Path) -> None:
    credentials = await opened(
        {"token": "t"},
        server="https://h/k8s/clusters/c",
        **{
            "certificate-authority": str(pki / "ca.pem"),
            "tls-server-name": "kube.test",
            "proxy-url": "socks5://p:1080",
        },
    )
    access = await credentials.access()
    assert access.url == "https://h/k8s/clusters/c"
    assert access.server_hostname == "kube.test"
    assert access.proxy == "socks5://p:1080"
    assert access.ssl is not None
    assert access.ssl.verify_mode == ssl.CERT_REQUIRED
    assert access.ssl.check_hostname
    assert await credentials.access() is access, "the context is built once"


async def test_a_server_without_tls_gets_no_tls_context() -> None:
    access = await (await opened({}, server="http://h:8001")).access()
    assert access.ssl is None
    assert access.server_hostname is None


async def test_verification_is_off_only_where_kubeconfig_says_so() -> None:
    access = await (await opened({}, **{"insecure-skip-tls-verify": True})).access()
    assert access.ssl is not None
    assert access.ssl.verify_mode == ssl.CERT_NONE


async def test_an_access_has_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "p:3128")
    assert (await (await opened({})).access()).proxy == "http://p:3128"
    monkeypatch.setenv("NO_PROXY", "h")
    assert (await (await opened({})).access()).proxy is None
    assert (await (await opened({}, **{"proxy-url": "http://q"})).access()).proxy == "http://q"


async def test_an_access_shows_no_secret() -> None:
    credentials = await opened({"token": "s3cret"}, **{"proxy-url": "http://u:s3cret@q"})
    assert "s3cret" not in repr(await credentials.access())


async def test_impersonation_repeats_its_headers() -> None:
    user = {
        "as": "jane",
        "as-uid": "7",
        "as-groups": ["a", "b"],
        "as-user-extra": {"acme.com/p q": ["x", "y"]},
    }
    access = await (await opened(user)).access()
    assert [pair for pair in access.headers if pair[0].startswith("Impersonate")] == [
        ("Impersonate-User", "jane"),
        ("Impersonate-Uid", "7"),
        ("Impersonate-Group", "a"),
        ("Impersonate-Group", "b"),
        ("Impersonate-Extra-acme.com%2Fp%20q", "x"),
        ("Impersonate-Extra-acme.com%2Fp%20q", "y"),
    ]


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ({"as": "a\r\nX: y"}, "a header cannot"),
        ({"token": "a\nb"}, "has invalid characters"),
        ({"token": "a b"}, "has invalid characters"),
        ({"tokenFile": "/none/token"}, "cannot read the token file /none/token"),
        ({"client-certificate-data": "eA=="}, "no client-key"),
        ({"client-certificate-data": "eA==", "client-key-data": "eA=="}, "bad client certificate"),
        ({"client-certificate": "/none", "client-key-data": "eA=="}, "cannot read /none"),
    ],
)
async def test_unusable_credentials_are_an_error_with_the_reason(
    user: dict[str, Any], message: str
) -> None:
    credentials = await opened(user)
    with pytest.raises(CredentialsError, match=message):
        await credentials.access()


async def test_a_removed_auth_provider_is_an_error_with_a_hint() -> None:
    with pytest.raises(CredentialsError, match='removed the auth-provider "gcp"') as caught:
        await opened({"auth-provider": {"name": "gcp"}})
    assert caught.value.hint is not None


async def test_an_oidc_token_of_kubeconfig_is_used() -> None:
    claims = base64.urlsafe_b64encode(json.dumps({"exp": time.time() + 3600}).encode()).decode()
    config = {"id-token": f"e30.{claims}.c2ln"}
    access = await (await opened({"auth-provider": {"name": "oidc", "config": config}})).access()
    assert header(access, "Authorization") == f"Bearer {config['id-token']}"


async def test_a_bad_authority_is_a_credentials_error() -> None:
    with pytest.raises(CredentialsError, match="bad certificate-authority"):
        await (await opened({}, **{"certificate-authority-data": "eA=="})).access()


async def test_a_full_disk_is_a_passing_error(pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = await opened(
        {"client-certificate": str(pki / "client.pem"), "client-key": str(pki / "client-key.pem")}
    )

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tempfile.mkdtemp", full)
        with pytest.raises(UnreachableError, match="No space left"):
            await credentials.access()
        assert await credentials.reread() is None
    assert (await credentials.access()).ssl is not None


async def test_an_encrypted_key_is_an_error_and_no_prompt(pki: Path) -> None:
    user = {
        "client-certificate": str(pki / "client.pem"),
        "client-key": str(pki / "client-locked-key.pem"),
    }
    with pytest.raises(CredentialsError, match="encrypted"):
        await (await opened(user)).access()


class Clock:
    """A Unix time that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.time()
        monkeypatch.setattr("krelay.cluster.auth.credentials.time.time", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


async def test_token_files_are_read_again(tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "token"
    file.write_text("one\n")
    credentials = await opened({"tokenFile": str(file)})
    first = await credentials.access()
    assert header(first, "Authorization") == "Bearer one"
    file.write_text("two\n")
    assert await credentials.access() is first
    clock.now += module.FILES_PERIOD
    second = await credentials.access()
    assert header(second, "Authorization") == "Bearer two"
    assert second.ssl is first.ssl, "the context is kept"
    clock.now += module.FILES_PERIOD
    assert await credentials.access() is second, "nothing changed"


async def test_the_last_token_stays_when_its_file_vanishes(tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "token"
    file.write_text("one")
    credentials = await opened({"tokenFile": str(file)})
    first = await credentials.access()
    file.unlink()
    clock.now += module.FILES_PERIOD
    assert await credentials.access() is first
    credentials.reject(first)
    with pytest.raises(CredentialsError, match="cannot read the token file"):
        await credentials.access()


async def test_the_last_credentials_stay_when_no_thread_can_start(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    use_daemons(asyncio.get_running_loop())
    file = tmp_path / "token"
    file.write_text("first")
    credentials = await opened({"tokenFile": str(file)})
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(UnreachableError, match="no thread can be started"):
            await credentials.access()
    access = await credentials.access()
    clock.now += 61
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        assert await credentials.access() is access


async def test_certificates_in_files_are_read_again(
    tmp_path: Path, pki: Path, clock: Clock
) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes((pki / "ca.pem").read_bytes())
    credentials = await opened({}, **{"certificate-authority": str(ca)})
    first = await credentials.access()
    ca.write_bytes((pki / "other-ca.pem").read_bytes())
    clock.now += module.FILES_PERIOD
    assert (await credentials.access()).ssl is not first.ssl


async def test_a_rejection_reads_kubeconfig_again() -> None:
    logins = iter(
        Login("https://h", "default", {}, user) for user in ({"token": "old"}, {"token": "new"})
    )
    credentials = Credentials(lambda: next(logins))
    await credentials.open()
    first = await credentials.access()
    credentials.reject(first)
    second = await credentials.access()
    assert header(second, "Authorization") == "Bearer new"
    credentials.reject(first)
    assert await credentials.access() is second, "a late rejection of the old is no matter"


Program = Callable[[str, str], Path]
V1 = "client.authentication.k8s.io/v1"


def plugin(command: Path | str, **more: Any) -> dict[str, Any]:
    return {"exec": {"command": str(command), "apiVersion": V1, **more}}


def answer(**status: Any) -> str:
    """Return shell code that prints an ExecCredential."""
    body = json.dumps({"kind": "ExecCredential", "apiVersion": V1, "status": status})
    return f"cat <<'END'\n{body}\nEND"


def stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))


async def test_a_plugin_runs_once_for_many_callers(program: Program, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    script = program(
        "login", f"echo run >>{runs}; {answer(token='t', expirationTimestamp=stamp(3600))}"
    )
    credentials = await opened(plugin(script))
    async with asyncio.TaskGroup() as group:
        found = [group.create_task(credentials.access()) for _ in range(20)]
    assert {header(task.result(), "Authorization") for task in found} == {"Bearer t"}
    assert runs.read_text() == "run\n"


async def test_a_plugin_runs_again_when_its_token_expires(
    program: Program, tmp_path: Path, clock: Clock
) -> None:
    runs = tmp_path / "runs"
    script = program(
        "login", f"echo run >>{runs}\n{answer(token='t', expirationTimestamp=stamp(600))}"
    )
    credentials = await opened(plugin(script))
    await credentials.access()
    clock.now += 530
    await credentials.access()
    assert runs.read_text() == "run\n"
    clock.now += 20
    await credentials.access()
    assert runs.read_text() == "run\nrun\n"


async def test_a_plugin_runs_again_when_its_token_is_refused(
    program: Program, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    script = program("login", f"echo run >>{runs}; {answer(token='t')}")
    credentials = await opened(plugin(script))
    first = await credentials.access()
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            credentials.reject(first)
            group.create_task(credentials.access())
    assert runs.read_text() == "run\nrun\n"


async def test_a_plugin_gets_its_environment_and_exec_info(
    program: Program, tmp_path: Path, pki: Path
) -> None:
    seen = tmp_path / "seen"
    script = program(
        "login",
        f'echo "$KUBERNETES_EXEC_INFO" >{seen}; echo "$1 $COLOUR" >>{seen}; cat >>{seen}\n'
        + answer(token="t"),
    )
    cluster = {
        "certificate-authority": str(pki / "ca.pem"),
        "tls-server-name": "kube.test",
        "extensions": {"client.authentication.k8s.io/exec": {"audience": "a"}, "other": 1},
    }
    user = plugin(
        script,
        provideClusterInfo=True,
        interactiveMode="Never",
        args=["get-token"],
        env=[{"name": "COLOUR", "value": "red"}],
    )
    await (await opened(user, **cluster)).access()
    info, rest = seen.read_text().split("\n", 1)
    assert rest == "get-token red\n", "and standard input is empty"
    spec = json.loads(info)["spec"]
    assert spec["interactive"] is False
    data = spec["cluster"].pop("certificate-authority-data")
    assert spec["cluster"] == {
        "server": "https://h:6443",
        "tls-server-name": "kube.test",
        "config": {"audience": "a"},
    }
    assert data


async def test_a_plugin_gets_no_cluster_info_unless_configured(
    program: Program, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    script = program("login", f'echo "$KUBERNETES_EXEC_INFO" >{seen}\n' + answer(token="t"))
    await (await opened(plugin(script))).access()
    assert "cluster" not in json.loads(seen.read_text())["spec"]


async def test_a_plugin_that_needs_a_terminal_fails_without_one(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    credentials = await opened(plugin(program("login", ""), interactiveMode="Always"))
    with pytest.raises(CredentialsError, match="login needs your input"):
        await credentials.access()


async def test_the_certificate_of_a_plugin_is_used(program: Program, pki: Path) -> None:
    script = program(
        "login",
        answer(
            clientCertificateData=(pki / "client.pem").read_text(),
            clientKeyData=(pki / "client-key.pem").read_text(),
        ),
    )
    credentials = await opened(plugin(script))
    access = await credentials.access()
    assert header(access, "Authorization") is None
    assert (await credentials.access()).ssl is access.ssl


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("painted", [False, True])
async def test_at_a_live_table_the_log_shows_what_a_plugin_says(
    painted: bool,
    program: Program,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Otherwise the plugin has the terminal: its text would be painted over."""
    caplog.set_level("INFO", "krelay")
    for name in ("stdin", "stderr"):
        monkeypatch.setattr(sys, name, _Terminal())
    monkeypatch.setattr(caplog.handler, "paints", painted, raising=False)
    script = program("login", f"echo 'open a browser' >&2\n{answer(token='t')}")
    await (await opened(plugin(script))).access()
    assert ("login: open a browser" in caplog.messages) is painted


async def test_a_plugin_that_fails_says_why(
    program: Program, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "krelay")
    script = program("login", "echo 'token has expired,\nrun: acme login' >&2; exit 3")
    with pytest.raises(CredentialsError) as caught:
        await (await opened(plugin(script))).access()
    assert caught.value.message == "login failed with status 3: token has expired, run: acme login"
    assert "login: run: acme login" in caplog.messages


async def test_a_plugin_that_is_missing_says_how_to_install_it() -> None:
    user = plugin("krelay-no-such-plugin", installHint="  brew install it\n")
    with pytest.raises(CredentialsError, match="cannot run .* No such file") as caught:
        await (await opened(user)).access()
    assert caught.value.hint == "brew install it"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo hello", "did not answer with an ExecCredential"),
        ("echo '[]'", "did not answer with an ExecCredential"),
        (answer(token="t", expirationTimestamp="soon"), "did not answer with an ExecCredential"),
        (
            answer(token="t").replace("/v1", "/v1beta1"),
            "answered in .*/v1beta1, but kube",
        ),
        (answer(clientCertificateData="x"), "neither a token nor a certificate with its key"),
        (answer(), "neither a token nor a certificate with its key"),
        (answer(token="a b"), "has invalid characters"),
        ("yes | head -c 3000000", "did not answer with an ExecCredential"),
    ],
)
async def test_a_malformed_answer_of_a_plugin_is_an_error(
    program: Program, script: str, message: str
) -> None:
    with pytest.raises(CredentialsError, match=message):
        await (await opened(plugin(program("login", script)))).access()


async def test_a_hanging_plugin_is_killed_at_the_deadline(
    program: Program, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("krelay.cluster.auth.exec_plugin.PATIENCE", 0.01)
    monkeypatch.setattr("krelay.cluster.auth.exec_plugin.DEADLINE", 0.1)
    with pytest.raises(CredentialsError, match="gave no answer"):
        await (await opened(plugin(program("login", "exec sleep 60")))).access()
    assert "waiting for the credential plugin login" in caplog.text


async def test_a_plugin_whose_child_holds_its_pipes_ends_at_the_deadline(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """asyncio has nothing left to clean up when the loop closes."""
    made: list[asyncio.subprocess.Process] = []
    start = asyncio.create_subprocess_exec

    async def keep(*command: Any, **more: Any) -> asyncio.subprocess.Process:
        made.append(await start(*command, **more))
        return made[-1]

    monkeypatch.setattr("asyncio.create_subprocess_exec", keep)
    monkeypatch.setattr("krelay.cluster.auth.exec_plugin.DEADLINE", 0.5)
    script = program("login", f"sleep 60 & echo $! > {tmp_path}/pid; wait")
    with pytest.raises(CredentialsError, match="gave no answer"):
        await (await opened(plugin(script))).access()
    assert made[0]._transport.is_closing()  # type: ignore[attr-defined]
    if (tmp_path / "pid").exists():
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


async def test_a_token_that_lives_outlasts_a_failed_plugin(
    program: Program, tmp_path: Path, clock: Clock, pki: Path
) -> None:
    flag = tmp_path / "flag"
    script = program(
        "login", f"test -e {flag} && exit 1\n{answer(token='t', expirationTimestamp=stamp(600))}"
    )
    ca = {"certificate-authority": str(pki / "ca.pem")}
    credentials = await opened(plugin(script), **ca)
    await credentials.access()
    flag.write_text("")
    clock.now += module.FILES_PERIOD
    await credentials.access()
    clock.now += 600
    with pytest.raises(CredentialsError, match="status 1"):
        await credentials.access()


def test_the_renewal_margin_is_at_most_a_fifth_of_the_time_left() -> None:
    now = time.time()
    assert ahead(math.inf) == math.inf
    assert ahead(now - 5) == now - 5
    assert ahead(now + 3600) == now + 3540
    assert now + 7 < ahead(now + 10) < now + 9


# -- without TLS ------------------------------------------------------------------------------


SECRETS = (
    {"token": "t"},
    {"tokenFile": "/nowhere"},
    {"username": "me", "password": "pw"},
    {"client-certificate": "/nowhere", "client-key": "/nowhere"},
    {"exec": {"command": "/nowhere", "apiVersion": "client.authentication.k8s.io/v1"}},
    {"auth-provider": {"name": "oidc", "config": {"id-token": "a.b.c"}}},
)


@pytest.mark.parametrize("user", SECRETS, ids=lambda user: next(iter(user)))
@pytest.mark.parametrize("server", ["http://127.0.0.1:1", "HTTP://kube.test:1"])
async def test_no_credentials_are_sent_without_tls(user: dict[str, Any], server: str) -> None:
    """As client-go; impersonation alone is no secret."""
    access = await (await opened({**user, "as": "jane"}, server=server)).access()
    assert [name for name, _ in access.headers] == ["User-Agent", "Impersonate-User"]
    assert access.ssl is None
    assert access.private is (server == "http://127.0.0.1:1")


async def test_withheld_credentials_are_a_warning_for_a_remote_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    await opened({"token": "t"}, server="http://127.0.0.1:1")
    assert not caplog.messages
    await opened({"token": "t"}, server="http://kube.test:1")
    assert caplog.messages == ["http://kube.test:1 has no TLS: krelay sends it no credentials"]


@pytest.mark.parametrize(
    ("url", "proxy", "private"),
    [
        ("https://kube.test", None, True),
        ("https://kube.test", "http://proxy:3128", True),
        ("http://kube.test", None, False),
        ("http://10.0.0.1:8080", None, False),
        ("http://0x7f.1:8080", None, False),
        ("http://127.0.0.1.nip.test", None, False),
        ("http://localhost.evil.test", None, False),
        ("http://127.0.0.1@evil.test", None, False),
        ("http://127.0.0.1:8001", "http://proxy:3128", False),
        ("http://127.0.0.1:8001", "socks5://127.0.0.1:1", False),
        ("http://127.0.0.1:8001/prefix", None, True),
        ("http://127.9.9.9", None, True),
        ("http://[::1]:8001", None, True),
        ("http://[::ffff:127.0.0.1]:8001", None, True),
        ("http://[::ffff:10.0.0.1]:8001", None, False),
        ("http://LocalHost.:8001", None, True),
    ],
)
def test_an_access_is_private_under_tls_or_on_this_machine(
    url: str, proxy: str | None, private: bool
) -> None:
    access = ApiAccess(url, None, None, (), proxy)
    assert access.private is private
    if private:
        access.require_private()
        return
    with pytest.raises(CredentialsError, match="is not encrypted") as caught:
        access.require_private()
    assert caught.value.exit_code == 4
    assert "kubectl proxy" in str(caught.value.hint)
