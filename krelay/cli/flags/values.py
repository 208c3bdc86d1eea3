"""The values of flags: durations, file names, and the connection that kubectl's flags describe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from krelay.errors import UsageError

if TYPE_CHECKING:
    from krelay.cluster.auth.kubeconfig import Overrides


class FileName(click.types.StringParamType):
    """A path; the shell completes it."""

    name = "file"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Leave the completion to the shell."""
        return [CompletionItem(incomplete, type="file")]


FILE = FileName()


def seconds(text: str, option: str) -> float:
    """Return a duration given on the command line, in seconds."""
    from krelay.config.grammar import ParseError, parse_duration

    try:
        return parse_duration(text)
    except ParseError as exc:
        raise UsageError(f"{option}: {exc.message}", hint=exc.hint) from exc


def running_timeout(text: str) -> float:
    """Return `--pod-running-timeout` in seconds."""
    found = seconds(text, "--pod-running-timeout")
    if not found:
        raise UsageError("--pod-running-timeout must be higher than zero")
    return found


def overrides(given: Mapping[str, Any]) -> Overrides:
    """Return what the flags say about the connection to the API server."""
    from krelay.cluster.auth.kubeconfig import Overrides

    timeout = given.get("request_timeout")
    names = (
        *("cluster", "user", "server", "token", "username", "password", "as_", "as_uid"),
        *("certificate_authority", "client_certificate", "client_key", "tls_server_name"),
    )
    return Overrides(
        **{name: given.get(name) or None for name in names},
        as_group=given.get("as_group") or (),
        as_user_extra=tuple(map(_extra, given.get("as_user_extra") or ())),
        # kubectl gives `false` no meaning either: kubeconfig decides.
        insecure_skip_tls_verify=given.get("insecure_skip_tls_verify") or None,
        request_timeout=(seconds(timeout, "--request-timeout") or None) if timeout else None,
    )


def _extra(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UsageError(f'invalid argument "{text}" for --as-user-extra', hint="write KEY=VALUE")
    return key, value
