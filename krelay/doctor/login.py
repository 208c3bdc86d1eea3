"""Login: what kubeconfig says of a context, what of it ends when, and the proxy in the way."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from krelay.cluster import proxies
from krelay.cluster.auth.files import read_file, read_pem
from krelay.cluster.auth.kubeconfig import Login
from krelay.config import files
from krelay.doctor.expiry import Validity, in_words, of_certificate, of_token
from krelay.doctor.finding import Finding, failed, ok, warning
from krelay.errors import ClusterError, CredentialsError

LOG_IN_AGAIN = "log in again, as for kubectl"
AUTHORITY_SOON = timedelta(days=30)
"""An authority is mentioned only if it ends that soon: to replace it takes a while."""


def kubeconfig(login: Login) -> list[Finding]:
    """Say which context this is, and how it logs in."""
    where = f"{login.address}, namespace {login.namespace}"
    if login.in_cluster:
        return [ok("kubeconfig", f"this pod's service account: {where}", **_details(login))]
    paths = os.pathsep.join(map(files.shortened, login.files))
    name = f"context {login.context} of {paths}" if login.context else paths
    found = [ok("kubeconfig", f"{name}: {where}, {method(login.user)}", **_details(login))]
    if login.cluster.get("insecure-skip-tls-verify"):
        found.append(
            warning(
                "kubeconfig",
                "insecure-skip-tls-verify: anyone on the way can pose as the API server",
                "set certificate-authority instead",
            )
        )
    return found


def _details(login: Login) -> dict[str, Any]:
    return {
        "context": login.context,
        "server": login.address,
        "namespace": login.namespace,
        "method": method(login.user),
        "files": list(login.files),
    }


def method(user: Mapping[str, Any]) -> str:
    """Return how a kubeconfig user logs in, without a secret."""
    certificate = any(user.get(key) for key in ("client-certificate", "client-certificate-data"))
    ways = [
        ("a client certificate", certificate),
        ("a token", user.get("token")),
        ("a token file", user.get("tokenFile")),
        ("a name and a password", user.get("username")),
        ("OIDC", user.get("auth-provider")),
    ]
    found = [name for name, given in ways if given]
    if (plugin := user.get("exec")) and not certificate:
        found.append(f"the plugin {os.path.basename(plugin['command'])}")
    return f"by {' and '.join(found)}" if found else "without credentials"


# -- what ends when --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Expiry:
    """When `what` is valid; None if that is not known."""

    what: str
    valid: Validity | None


def expiries(login: Login) -> Iterator[Expiry]:
    """Yield the credentials that kubeconfig holds, and when they end. Blocks.

    Raises:
        CredentialsError: a file that it names cannot be read.
    """
    user = login.user
    if (pem := read_pem(user, "client-certificate")) is not None:
        yield Expiry("client certificate", of_certificate(pem))
    if token := _token(user):
        yield Expiry("token", of_token(token))
    config = (user.get("auth-provider") or {}).get("config") or {}
    if (held := config.get("id-token")) and not config.get("refresh-token"):
        yield Expiry("OIDC token", of_token(held))


def _authority(login: Login) -> Validity | None:
    pem = read_pem(login.cluster, "certificate-authority")
    return None if pem is None else of_certificate(pem)


def _token(user: Mapping[str, Any]) -> str:
    if path := user.get("tokenFile"):
        try:
            return read_file(path).decode().strip()
        except (OSError, UnicodeError) as exc:
            raise CredentialsError(f"cannot read the token file {path}: {exc}") from exc
    return str(user.get("token") or "")


def expiry(login: Login, now: datetime | None = None) -> list[Finding]:
    """Judge when the credentials of kubeconfig end. Blocks. Raises CredentialsError."""
    now = now or datetime.now(UTC)
    found = [_judged(one, now) for one in expiries(login)]
    authority = _authority(login)
    if authority is not None and authority.end < now + AUTHORITY_SOON:
        found.append(_judged(Expiry("certificate authority", authority), now))
    if plugin := login.user.get("exec"):
        found += _plugin(plugin["command"], plugin.get("installHint", ""))
    return found or [ok("expiry", "kubeconfig holds no credentials that end")]


def _judged(one: Expiry, now: datetime) -> Finding:
    if one.valid is None:
        return ok("expiry", f"{one.what}: krelay cannot tell when it ends")
    end = one.valid.end
    left = end - now
    when = f"{end:%Y-%m-%d %H:%M} UTC, {in_words(left)}"
    details = {"what": one.what, "at": end.isoformat()}
    if left <= timedelta():
        hint = LOG_IN_AGAIN
        text = f"{one.what}: ended {when}"
        return failed("expiry", text, hint, exit_code=ClusterError.exit_code, **details)
    if one.valid.ends_soon(now):
        return warning("expiry", f"{one.what}: ends {when}", LOG_IN_AGAIN, **details)
    return ok("expiry", f"{one.what}: until {when}", **details)


def _plugin(command: str, install: str) -> list[Finding]:
    if shutil.which(command):
        return []
    text = f"the credential plugin {command} is not on this machine"
    hint = install.strip() or "install it, or add its folder to PATH"
    return [failed("expiry", text, hint, exit_code=ClusterError.exit_code)]


def credentials(login: Login, expires: float) -> Finding:
    """Say that credentials can be had, and when those of a plugin or an issuer end."""
    if not login.user:
        return ok("credentials", "none: the server treats this user as anonymous")
    if math.isinf(expires):
        return ok("credentials", "at hand")
    end = datetime.fromtimestamp(expires, UTC)
    left = in_words(end - datetime.now(UTC))
    return ok("credentials", f"at hand, renewed {left}", at=end.isoformat())


# -- the proxy -------------------------------------------------------------------------------------


def proxy(login: Login, environ: Mapping[str, str] = os.environ) -> Finding:
    """Say which proxy is in the way to the API server. Raises CredentialsError."""
    given = proxies.from_kubeconfig(login.cluster.get("proxy-url"))
    found = given or proxies.from_environment(login.server, environ)
    name = f"{urlsplit(login.server).scheme}_proxy".upper()
    if found is None:
        set_ = environ.get(name) or environ.get(name.lower())
        return ok(
            "http-proxy", f"none: NO_PROXY exempts the server from {name}" if set_ else "none"
        )
    parts = urlsplit(found)
    shown = f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
    by = "proxy-url in kubeconfig" if given else name
    return ok("http-proxy", f"{shown} (by {by})", proxy=shown, by=by)
