"""Refusal: what a failed upgrade or a stream's error means, in krelay's own errors.

Texts of the runtimes: containerd internal/cri/server/sandbox_portforward*.go, CRI-O
server/sandbox_portforward.go; of the kubelet: pkg/kubelet/server/server.go.
"""

from __future__ import annotations

import re

from krelay.errors import (
    AccessDeniedError,
    CredentialsError,
    EndedError,
    KrelayError,
    NotListeningError,
    PodGoneError,
    TunnelError,
)
from krelay.net.error_body import page_words, status_message, words
from krelay.transport.upgrade import Refused

_SHOWN = 300
_LOOKED_AT = 4096
_GONE = re.compile(
    r"network namespace for sandbox \S{1,200} is closed"
    r"|sandbox( \S{1,200}| container)? is not running"
    r"|sandbox [\\\"\w-]{1,200}( in store)?:? not found|could not find sandbox|no such container"
    r"|pod does not exist|pods?( \S{1,300})? not found",
    re.IGNORECASE,
)


class UnauthorizedError(CredentialsError):
    """The API server does not know us (401): other credentials may help, and nothing else."""


def final(refused: Refused) -> bool:
    """Whether the other way would be answered the same: who we are, or the pod, is unknown."""
    if refused.status == 404:
        return _status(refused) is not None or _gone(refused)
    return refused.status == 401 or _gone(refused)


def upgrade_error(refused: Refused, *, namespace: str, pod: str) -> KrelayError:
    """The error for an upgrade that was refused."""
    status = _status(refused)
    said = page_words(refused.body, _SHOWN) if status is None else words(status, _SHOWN)
    if refused.status == 401:
        return UnauthorizedError(
            f"the API server does not know us: {said or 'Unauthorized'}",
            hint="log in again; `kubectl auth whoami` should fail alike",
        )
    if refused.status == 403:
        # What an API server says of RBAC the message says better; anything else is shown.
        more = "" if "pods/portforward" in said or not said else f": {said}"
        return access_denied(refused.verb, namespace, more)
    if refused.status == 404 or _GONE.search(said):
        return PodGoneError(f"pod {namespace}/{pod} is gone: {said or 'not found'}")
    return TunnelError(
        f"no port-forward to pod {namespace}/{pod}: "
        f"{said or 'the answer is empty'} ({refused.status or 'a wrong answer'})"
    )


def access_denied(verbs: str, namespace: str, more: str = "") -> AccessDeniedError:
    """RBAC's no; `verbs` in words."""
    return AccessDeniedError(
        f'cannot {verbs} pods/portforward in namespace "{namespace}"{more}',
        hint="the Role needs the verbs get and create on pods/portforward",
    )


def stream_error(text: str) -> TunnelError:
    """The error for what came on the error stream (nothing: the forward just ended)."""
    said = " ".join(text.split())
    if not said:
        return EndedError("the agent ended the connection")
    if gone := _GONE.search(said):
        return PodGoneError(f"the agent's pod is gone: {words(gone[0], _SHOWN)}")
    if "connection refused" in said:
        return NotListeningError("nothing listens on the agent's port in its pod")
    return TunnelError(f"the port-forward ended: {said[-_SHOWN:]}")  # the cause comes last


def _status(refused: Refused) -> str | None:
    """The message of the Status that was answered, None if there is none."""
    return status_message(refused.body, kind=True)


def _gone(refused: Refused) -> bool:
    return _GONE.search(page_words(refused.body, _LOOKED_AT)) is not None
