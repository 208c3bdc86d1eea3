"""The errors of krelay, and the exit code of each.

::

    KrelayError                   exit 1   it failed at run time
    ├─ UsageError                 exit 2   the command line is invalid
    ├─ ConfigError                exit 2   the file is invalid; `problems` holds every problem
    ├─ NotReadyError              exit 3   not ready in time; `unready` says what is not, and why
    ├─ ClusterError               exit 4   the cluster refused, or is out of reach
    │   ├─ CredentialsError       exit 4   kubeconfig: no such context, a failed exec plugin, …
    │   ├─ UnreachableError       exit 4   the API server does not answer
    │   ├─ AccessDeniedError      exit 4   RBAC refused; names verb, resource and namespace
    │   ├─ NotFoundError          exit 4   the object does not exist
    │   ├─ NotRunningError        exit 4   the pod has ended
    │   ├─ MalformedError         exit 4   an answer violates its protocol; names the field
    │   └─ AgentError             exit 4   the agent's pod cannot start; gives the cluster's reason
    ├─ ListenError                exit 1   a local address cannot be bound
    └─ TunnelError                exit 1   the agent cannot be reached
        ├─ TunnelRefusedError     exit 1   the agent refused (version, secret, unknown session)
        ├─ NotListeningError      exit 1   the pod runs, but its agent does not listen (yet)
        ├─ EndedError             exit 1   the agent closed the connection
        └─ PodGoneError           exit 1   the pod behind the tunnel no longer runs

`krelay.wire` has its own errors, since the agent ships without this module; `mux` and
`datapath` translate them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from krelay.text import one_line


class KrelayError(Exception):
    """An error to be shown to the user.

    Message and hint may quote a server, a pod or a file: they pass `krelay.text` here.

    Args:
        message: what failed, and on what; one line without a full stop.
        hint: what the user can do about it.
    """

    exit_code = 1
    fails_start = False
    """Whether a start that meets this error ends at once, instead of dialling again."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.message = one_line(message)
        self.hint = one_line(hint) if hint else None
        super().__init__(self.message)

    def details(self) -> list[str]:
        """Return the lines that precede the message."""
        return []

    def line(self) -> str:
        """Return the message and the hint on one line, for the log."""
        return f"{self}; hint: {self.hint}" if self.hint else str(self)

    def report(self) -> list[str]:
        """Return details, message and hint, a line each, without colour."""
        return [*self.details(), self.message, *([f"  hint: {self.hint}"] if self.hint else [])]


class UsageError(KrelayError):
    exit_code = 2


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """A problem in a file.

    `line` and `column` count from 1; 0 means unknown. `path` names the file if it is not that of
    the ConfigError.
    """

    line: int
    column: int
    message: str
    hint: str | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", one_line(self.message))
        object.__setattr__(self, "hint", one_line(self.hint) if self.hint else None)


class ConfigError(KrelayError):
    """An invalid file, with every problem found in it.

    `problems` are sorted: those of the file itself come before those of the files that it includes.
    `files` holds the path of every file that was read or could not be: one of them needs an edit.
    """

    exit_code = 2

    def __init__(
        self,
        path: str,
        problems: list[Problem],
        *,
        hint: str | None = None,
        files: tuple[str, ...] = (),
    ) -> None:
        self.path = path
        self.files = files

        def place(problem: Problem) -> tuple[str, int, int, str]:
            other = "" if problem.path in (None, path) else str(problem.path)
            return other, problem.line, problem.column, problem.message

        self.problems = sorted(problems, key=place)
        count = len(self.problems)
        super().__init__(f"{path}: {count} problem{'' if count == 1 else 's'}", hint=hint)

    def details(self) -> list[str]:
        """Return `path:line:column: message` for each problem, and its hint."""
        lines = []
        for problem in self.problems:
            place = "".join(f":{n}" for n in (problem.line, problem.column) if n)
            lines.append(f"{one_line(problem.path or self.path)}{place}: {problem.message}")
            if problem.hint:
                lines.append(f"  hint: {problem.hint}")
        return lines


class NotReadyError(KrelayError):
    """A forward is not ready in time; `unready` has a line for each, with the reason."""

    exit_code = 3

    def __init__(
        self, message: str, unready: Sequence[str] = (), *, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.unready = tuple(map(one_line, unready))

    def details(self) -> list[str]:
        """Return a line for each forward that is not ready."""
        return list(self.unready)


class ClusterError(KrelayError):
    exit_code = 4
    fails_start = True
    no_agent = False
    """Whether the cluster lets krelay have no agent, whatever is asked for."""


class CredentialsError(ClusterError):
    pass


class UnreachableError(ClusterError):
    pass


class AccessDeniedError(ClusterError):
    """RBAC refused.

    `user` is the one that was refused, if the server named it. `agent_namespace` is where the
    missing right is the agent's; empty for any other right.
    """

    no_agent = True

    def __init__(
        self, message: str, *, hint: str | None = None, user: str = "", agent_namespace: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.user = one_line(user)
        self.agent_namespace = agent_namespace


class NotFoundError(ClusterError):
    pass


class NotRunningError(ClusterError):
    pass


class MalformedError(ClusterError):
    pass


class AgentError(ClusterError):
    """The agent cannot run. `settings` are a part of the file's `agent` with which it would.

    `no_agent` is as in ClusterError: admission refuses it, or its image cannot be pulled.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        settings: dict[str, Any] | None = None,
        no_agent: bool = False,
    ) -> None:
        super().__init__(message, hint=hint)
        self.settings = settings or {}
        self.no_agent = no_agent


class ListenError(KrelayError):
    pass


class TunnelError(KrelayError):
    pass


class TunnelRefusedError(TunnelError):
    fails_start = True


class NotListeningError(TunnelError):
    pass


class EndedError(TunnelError):
    pass


class PodGoneError(TunnelError):
    pass
