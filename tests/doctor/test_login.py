"""What kubeconfig says of a login, what of it ends when, and the proxy."""

from __future__ import annotations

import base64
import json
import shutil
import ssl
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from krelay.cluster.auth.kubeconfig import Login, load
from krelay.doctor import Status, login, machine
from krelay.doctor.expiry import Validity, in_words, of_certificate, of_token
from krelay.doctor.local import faults
from krelay.errors import CredentialsError
from krelay.model import Config
from tests.cluster.conftest import write_kubeconfig

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
CLUSTER = {"server": "https://10.0.0.1:6443"}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Login]:
    def make(user: dict[str, Any], **cluster: Any) -> Login:
        path = tmp_path / "config"
        write_kubeconfig(path, {**CLUSTER, **cluster}, user)
        return load(None, str(path))

    return make


def token(**claims: Any) -> str:
    parts = (b"{}", json.dumps(claims).encode(), b"signature")
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


# -- validity --------------------------------------------------------------------------------------


def dates(path: Path) -> list[datetime]:
    """Return what openssl says of a certificate."""
    command = ["openssl", "x509", "-in", str(path), "-noout", "-dates"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [
        datetime.strptime(line.partition("=")[2], "%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC)
        for line in out.splitlines()
    ]


@pytest.mark.process
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
@pytest.mark.parametrize("name", ["client", "expired", "future", "ca"])
def test_the_validity_of_a_certificate_is_that_which_openssl_reads(name: str, pki: Path) -> None:
    path = pki / f"{name}.pem"
    begin, end = dates(path)
    assert of_certificate(path.read_bytes()) == Validity(begin, end)


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
        b"-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----",
    ],
)
def test_what_is_no_certificate_has_no_validity(pem: bytes) -> None:
    assert of_certificate(pem) is None


def test_the_validity_of_a_certificate_without_a_version() -> None:
    def element(tag: int, *content: bytes) -> bytes:
        body = b"".join(content)
        return bytes([tag, len(body)]) + body

    times = element(0x17, b"990101000000Z"), element(0x18, b"20600101000000Z")
    signed = element(0x30, element(2, b"1"), element(0x30), element(0x30), element(0x30, *times))
    pem = ssl.DER_cert_to_PEM_cert(element(0x30, signed)).encode()
    begin, end = datetime(1999, 1, 1, tzinfo=UTC), datetime(2060, 1, 1, tzinfo=UTC)
    assert of_certificate(pem) == Validity(begin, end)


def test_the_validity_of_a_token() -> None:
    end = NOW.timestamp()
    assert of_token(token(exp=end, iat=end - 60)) == Validity(NOW - timedelta(minutes=1), NOW)
    assert of_token(token(exp=end)) == Validity(None, NOW)


@pytest.mark.parametrize(
    "text",
    [
        "opaque",
        "a.b.c",
        "a.%%.c",
        token(),
        token(exp="soon"),
        token(exp=1e300),
        ".".join(("a", base64.urlsafe_b64encode(b"[]").decode(), "c")),
        ".".join(("a", base64.urlsafe_b64encode(b"[" * 9000).decode().rstrip("="), "c")),
        "a." + "b" * 70_000 + ".c",
    ],
)
def test_other_tokens_have_no_validity(text: str) -> None:
    assert of_token(text) is None


def test_what_was_issued_for_hours_does_not_end_soon_at_once() -> None:
    fresh = Validity(NOW - timedelta(hours=1), NOW + timedelta(hours=11))
    assert not fresh.ends_soon(NOW)
    assert fresh.ends_soon(NOW + timedelta(hours=9))
    assert Validity(None, NOW + timedelta(hours=11)).ends_soon(NOW)
    assert not Validity(None, NOW + timedelta(hours=25)).ends_soon(NOW)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(90_000, "in 1 day"), (7_300, "in 2 hours"), (61, "in 1 minute"), (-3, "3 seconds ago")],
)
def test_times_in_words(seconds: int, words: str) -> None:
    assert in_words(timedelta(seconds=seconds)) == words


# -- findings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ({}, "without credentials"),
        ({"username": "jane", "password": "s3cret"}, "by a name and a password"),
        ({"token": "s3cret"}, "by a token"),
        ({"auth-provider": {"name": "oidc"}}, "by OIDC"),
        (
            {
                "exec": {
                    "command": "/usr/bin/aws",
                    "apiVersion": "client.authentication.k8s.io/v1beta1",
                }
            },
            "by the plugin aws",
        ),
    ],
)
def test_ways_to_log_in_are_named_without_their_secrets(
    make: Callable[..., Login], user: dict[str, Any], words: str
) -> None:
    (found,) = login.kubeconfig(make(user))
    assert found.text.endswith(f"https://10.0.0.1:6443, namespace team, {words}")
    assert "s3cret" not in str(found)


def test_a_pod_is_named(make: Callable[..., Login]) -> None:
    (found,) = login.kubeconfig(replace(make({}), in_cluster=True, context=None))
    assert found.text.startswith("this pod's service account: ")


def test_a_server_that_is_not_verified_is_a_warning(make: Callable[..., Login]) -> None:
    found = login.kubeconfig(make({}, **{"insecure-skip-tls-verify": True}))
    assert [one.status.value for one in found] == ["ok", "warning"]


@pytest.mark.parametrize(
    ("hours", "status", "text"),
    [
        (-2, "failed", "token: ended 2026-06-01 10:00 UTC, 2 hours ago"),
        (2, "warning", "token: ends 2026-06-01 14:00 UTC, in 2 hours"),
        (50, "ok", "token: until 2026-06-03 14:00 UTC, in 2 days"),
    ],
)
def test_the_end_of_a_token(make: Callable[..., Login], hours: int, status: str, text: str) -> None:
    end = (NOW + timedelta(hours=hours)).timestamp()
    (found,) = login.expiry(make({"token": token(exp=end)}), NOW)
    assert (found.status.value, found.text) == (status, text)
    assert found.exit_code == (4 if status == "failed" else 0)


def test_a_token_file_and_an_oidc_token_without_a_refresh(
    make: Callable[..., Login], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(token(exp=0))
    (found,) = login.expiry(make({"tokenFile": str(tmp_path / "token")}), NOW)
    assert found.status is Status.FAILED
    provider = {"name": "oidc", "config": {"id-token": token(exp=0)}}
    (found,) = login.expiry(make({"auth-provider": provider}), NOW)
    assert found.text.startswith("OIDC token: ended")
    provider["config"]["refresh-token"] = "r"  # type: ignore[index]
    (found,) = login.expiry(make({"auth-provider": provider}), NOW)
    assert found.text == "kubeconfig holds no credentials that end"


def test_certificates_of_the_user_and_of_an_authority_that_ends(
    make: Callable[..., Login], pki: Path
) -> None:
    user = {
        "client-certificate": str(pki / "client.pem"),
        "client-key": str(pki / "client-key.pem"),
    }
    made = make(user, **{"certificate-authority": str(pki / "ca.pem")})
    (found,) = login.expiry(made, NOW)
    assert found.text.startswith("client certificate: until ")
    late = datetime(2400, 1, 1, tzinfo=UTC)
    assert [one.text.partition(":")[0] for one in login.expiry(made, late)] == [
        "client certificate",
        "certificate authority",
    ]


def test_an_opaque_token_has_no_end_that_krelay_knows(make: Callable[..., Login]) -> None:
    (found,) = login.expiry(make({"token": "opaque"}), NOW)
    assert found.text == "token: krelay cannot tell when it ends"


def test_a_missing_token_file_is_an_error(make: Callable[..., Login], tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match="cannot read the token file"):
        login.expiry(make({"tokenFile": str(tmp_path / "none")}), NOW)


def test_credentials_that_are_renewed(make: Callable[..., Login]) -> None:
    end = datetime.now(UTC) + timedelta(minutes=10, seconds=30)
    jane = make({"token": "t"})
    assert login.credentials(jane, end.timestamp()).text == "at hand, renewed in 10 minutes"
    assert login.credentials(jane, float("inf")).text == "at hand"
    assert login.credentials(make({}), float("inf")).text.startswith("none")


@pytest.mark.parametrize(
    ("cluster", "environ", "text"),
    [
        ({}, {}, "none"),
        (
            {"proxy-url": "http://jane:s3cret@proxy:3128"},
            {},
            "http://proxy:3128 (by proxy-url in kubeconfig)",
        ),
        ({}, {"HTTPS_PROXY": "socks5://u:s3cret@p"}, "socks5://p (by HTTPS_PROXY)"),
        (
            {},
            {"https_proxy": "http://p", "NO_PROXY": "10.0.0.0/8"},
            "none: NO_PROXY exempts the server from HTTPS_PROXY",
        ),
    ],
)
def test_the_proxy_is_named_without_its_password(
    make: Callable[..., Login], cluster: dict[str, str], environ: dict[str, str], text: str
) -> None:
    found = login.proxy(make({}, **cluster), environ)
    assert found.text == text
    assert "s3cret" not in str(found)


# -- what `krelay up` says -------------------------------------------------------------------------


def test_krelay_up_hears_of_faults_only(
    make: Callable[..., Login], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine, ended = make({}), make({"token": token(exp=0)})
    assert faults(Config(()), [fine]) == []
    (found,) = faults(Config(()), [fine, ended])
    assert found.text.startswith("token: ended")
    assert faults(Config(()), [make({"tokenFile": str(tmp_path / "none")})]) == []
    date = formatdate(1_000_000_000, usegmt=True)
    assert faults(Config(()), [], [(date, 1_000_000_002.0), ("yesterday", 0.0)]) == []
    (found,) = faults(Config(()), [], [(date, 1_000_000_100.0)])
    assert found.text == "this machine is 99 s ahead of the server"
    (found,) = faults(Config(()), [], [(date, 1_000_000_000.0 - 60)])
    assert found.text == "this machine is 60 s behind the server"
    monkeypatch.setattr(machine, "_limit", lambda: 64)
    assert [one.check for one in faults(Config(()), [])] == ["descriptors"]
