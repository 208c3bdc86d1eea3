"""kubectl's global flags (`kubectl options`), and those of older releases of the Go krelay."""

from __future__ import annotations

import logging
from typing import Any

import click

from krelay.cli.flags.values import FILE

logger = logging.getLogger("krelay.relay")


def namespaces(context: click.Context, param: click.Parameter, word: str) -> list[Any]:
    """Complete a namespace."""
    from krelay.cli.flags import completion

    return completion.namespaces(context, param, word)


def kubeconfig_names(context: click.Context, param: click.Parameter, word: str) -> list[Any]:
    """Complete the name of a context, cluster or user of kubeconfig."""
    from krelay.cli.flags import completion

    return completion.kubeconfig_names(context, param, word)


_CONNECTION = (
    click.option("--kubeconfig", metavar="FILE", type=FILE, help="Path to the kubeconfig file."),
    click.option("--context", shell_complete=kubeconfig_names, help="Kubeconfig context to use."),
    click.option("--cluster", shell_complete=kubeconfig_names, help="Kubeconfig cluster to use."),
    click.option("--user", shell_complete=kubeconfig_names, help="Kubeconfig user to use."),
    click.option("-n", "--namespace", shell_complete=namespaces, help="Namespace of the targets."),
    click.option("-s", "--server", help="Address and port of the API server."),
    click.option("--token", help="Bearer token for the API server."),
    click.option("--username", metavar="NAME", help="User name for basic authentication."),
    click.option("--password", help="Password for basic authentication."),
    click.option(
        "--client-certificate", metavar="FILE", type=FILE, help="Client certificate for TLS."
    ),
    click.option("--client-key", metavar="FILE", type=FILE, help="Key of the client certificate."),
    click.option("--as", "as_", metavar="USER", help="User to impersonate."),
    click.option("--as-uid", metavar="UID", help="UID to impersonate."),
    click.option("--as-group", multiple=True, help="Group to impersonate; may be repeated."),
    click.option(
        "--as-user-extra",
        multiple=True,
        metavar="KEY=VALUE",
        help="Extra of the user to impersonate; may be repeated.",
    ),
    click.option(
        "--certificate-authority",
        metavar="FILE",
        type=FILE,
        help="CA certificate of the API server.",
    ),
    click.option("--tls-server-name", help="Name to check the server's certificate against."),
    click.option(
        "--insecure-skip-tls-verify", is_flag=True, help="Do not check the server's certificate."
    ),
    click.option(
        "--request-timeout", metavar="TIME", help="Timeout of single requests; 0 for none."
    ),
)

# What kubectl and the Go krelay accept too, and what means nothing to krelay.
_IGNORED_FILES = ("cache-dir", "kuberc", "profile-output", "log-dir", "log-file")
_IGNORED = (
    *("log-flush-frequency", "profile", "vmodule"),
    *("log-backtrace-at", "log-file-max-size", "stderrthreshold"),
)
_IGNORED_BOOLEANS = (
    *("disable-compression", "match-server-version", "warnings-as-errors", "add-dir-header"),
    *("alsologtostderr", "logtostderr", "one-output", "skip-headers", "skip-log-headers"),
)

_OLDER = {
    "server_namespace": "--server.namespace is called --agent-namespace now",
    "old_server_image": "--server-image is called --server.image now",
    "rm": "--rm has no effect: krelay always removes its agent",
}
"""Flags of older releases of the Go krelay, and what their users should know."""


def connection(command: Any) -> Any:
    """Add kubectl's global flags to a command."""
    for option in reversed(_CONNECTION):
        command = option(command)
    for name in (*_IGNORED_FILES, *_IGNORED):
        kind = FILE if name in _IGNORED_FILES else None
        command = click.option(f"--{name}", type=kind, hidden=True, expose_value=False)(command)
    for name in _IGNORED_BOOLEANS:
        option = click.option(f"--{name}", is_flag=True, hidden=True, expose_value=False)
        command = option(command)
    return command


def older(command: Any) -> Any:
    """Add the flags of older releases of the Go krelay."""
    command = click.option("--server.namespace", "server_namespace", hidden=True)(command)
    command = click.option("--server-image", "old_server_image", hidden=True)(command)
    return click.option("--rm", is_flag=True, hidden=True)(command)


def understand(given: dict[str, Any]) -> dict[str, Any]:
    """Return the flags with those of older releases under their present names.

    As with pflag, an empty value is none.
    """
    found = {name: None if value == "" else value for name, value in given.items()}
    for name, message in _OLDER.items():
        if found[name]:
            logger.warning("%s", message)
    found["agent_namespace"] = found["agent_namespace"] or found["server_namespace"]
    found["server_image"] = found["server_image"] or found["old_server_image"]
    return found
