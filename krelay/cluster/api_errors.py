"""API errors: an API server's error answer as one of krelay's errors.

kubernetes.io, "API concepts"; the text of a 403 comes from apiserver
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
from krelay.net.error_body import error_text

_FORBIDDEN = re.compile(
    r'User "(?P<user>[^"]*)" cannot (?P<verb>\S+) resource "(?P<resource>[^"]+)"'
    r' in API group "(?P<group>[^"]*)"'
    r'(?: in the namespace "(?P<namespace>[^"]*)"| at the cluster scope)'
)
_ADMISSION = re.compile("admission webhook|ValidatingAdmissionPolicy|quota")
_TERMINATING = "because it is being terminated"
"""What a namespace that is being deleted answers to a creation, with a 403."""
_MAX_MESSAGE = 500


class StatusError(Exception):
    """An answer that is not a success: its HTTP status, its body, and Retry-After in seconds."""

    def __init__(self, code: int, body: bytes, retry_after: float | None = None) -> None:
        super().__init__(code)
        self.code, self.body, self.retry_after = code, body, retry_after

    def to_cluster_error(self, where: str) -> ClusterError:
        """Return krelay's error; `where` names context and server."""
        message = error_text(self.body, _MAX_MESSAGE)
        if self.code == 401:
            return CredentialsError(
                f"the API server rejects the credentials ({where}): {message or 'Unauthorized'}",
                hint="log in again; `kubectl auth whoami` should fail too",
            )
        if self.code == 403 and (found := _FORBIDDEN.search(message)):
            return _access_denied(found)
        refused = "cannot " in message and not _ADMISSION.search(message)
        if self.code == 403 and (refused or not message):
            return AccessDeniedError(f"access denied ({where}): {message or 'Forbidden'}")
        if self.code == 404 or _TERMINATING in message:
            return NotFoundError(message or f"not found ({where})")
        if self.code in (407, 502, 503, 504):
            return UnreachableError(
                f"the API server cannot answer ({where}): {self.code} {message}".rstrip(),
                hint="is it starting, or is a proxy in between?",
            )
        return ClusterError(f"the API server refused: {message or self.code}")


def _access_denied(found: re.Match[str]) -> AccessDeniedError:
    """Return RBAC's refusal, and as a hint the two commands that would allow the request."""
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
    # Users paste this line: each of the server's words must stay one word of the shell.
    role = ["kubectl", "create", kind, "krelay", *scope, f"--verb={verb}", f"--resource={name}"]
    binding = ["kubectl", "create", f"{kind}binding", "krelay", *scope, f"--{kind}=krelay", subject]
    return AccessDeniedError(
        f"cannot {verb} {name}{in_namespace}",
        hint=f"{shlex.quote(user)} needs a {title} that allows it: "
        f"{shlex.join(role)} && {shlex.join(binding)}",
        user=user,
    )
