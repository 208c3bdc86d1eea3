"""Refusals: an API server's Status (or whatever else it answered) as one of our errors.

kubernetes.io, "API concepts"; the words of a 403 are those of apiserver
pkg/endpoints/handlers/responsewriters/errors.go.
"""

from __future__ import annotations

import re
import shlex

from krelay.errors import (
    AccessDeniedError,
    ClusterError,
    CredentialsError,
    NotFoundError,
    UnreachableError,
)
from krelay.net.error_body import page_words, status_message, words

_FORBIDDEN = re.compile(
    r'User "(?P<user>[^"]*)" cannot (?P<verb>\S+) resource "(?P<resource>[^"]+)"'
    r' in API group "(?P<group>[^"]*)"'
    r'(?: in the namespace "(?P<namespace>[^"]*)"| at the cluster scope)'
)
_SHOWN = 500


class Refusal(Exception):
    """An answer that is no success: its status, its body, and Retry-After in seconds."""

    def __init__(self, status: int, body: bytes, after: float | None = None) -> None:
        super().__init__(status)
        self.status, self.body, self.after = status, body, after

    def error(self, where: str) -> ClusterError:
        """The same for people; `where` names context and server."""
        return _error(self.status, _message(self.body), where)


def _error(status: int, message: str, where: str) -> ClusterError:
    if status == 401:
        return CredentialsError(
            f"the API server does not know us ({where}): {message or 'Unauthorized'}",
            hint="log in again; `kubectl auth whoami` should fail alike",
        )
    if status == 403 and (found := _FORBIDDEN.search(message)):
        return _denied(found)
    if status == 403 and ("cannot " in message or not message):
        return AccessDeniedError(f"access denied ({where}): {message or 'Forbidden'}")
    if status == 404:
        return NotFoundError(message or f"not found ({where})")
    if status in (407, 502, 503, 504):
        return UnreachableError(
            f"the API server cannot answer ({where}): {status} {message}".rstrip(),
            hint="is it starting, or is a proxy in between?",
        )
    return ClusterError(f"the API server refused: {message or status}")


def _message(body: bytes) -> str:
    message = status_message(body)
    return page_words(body, _SHOWN) if message is None else words(message, _SHOWN)


def _denied(found: re.Match[str]) -> AccessDeniedError:
    """RBAC's own words, and the two commands that would allow it."""
    user, verb, resource, group, namespace = found.group(
        "user", "verb", "resource", "group", "namespace"
    )
    what, _, sub = resource.partition("/")
    name = (f"{what}.{group}" if group else what) + (f"/{sub}" if sub else "")
    in_namespace = f' in namespace "{namespace}"' if namespace else " in the cluster"
    title, scope = ("Role", ["-n", namespace]) if namespace else ("ClusterRole", [])
    kind = title.lower()
    account = re.fullmatch(r"system:serviceaccount:([^:]+):([^:]+)", user)
    subject = f"--serviceaccount={account[1]}:{account[2]}" if account else f"--user={user}"
    # A person may paste this line: no word of the server's may be more than a word.
    role = ["kubectl", "create", kind, "krelay", *scope, f"--verb={verb}", f"--resource={name}"]
    binding = ["kubectl", "create", f"{kind}binding", "krelay", *scope, f"--{kind}=krelay", subject]
    return AccessDeniedError(
        f"cannot {verb} {name}{in_namespace}",
        hint=f"{shlex.quote(user)} needs a {title} that allows it: "
        f"{shlex.join(role)} && {shlex.join(binding)}",
    )
