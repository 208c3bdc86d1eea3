"""Commands that relay: `up`, `run` and `proxy`."""

from __future__ import annotations

import sys
from contextlib import nullcontext

import click
from click.core import ParameterSource

from krelay.cli.command_line import preload
from krelay.cli.flags.connection import kubeconfig_names
from krelay.cli.options import (
    Cluster,
    WithCommand,
    cluster_options,
    embedded_option,
    file_option,
    kubeconfig_option,
    log_format_option,
    names_argument,
    select,
    timeout_option,
    timeout_option_for,
    verbose_option,
)
from krelay.cli.output import set_up_logging
from krelay.errors import UsageError


@click.command()
@file_option
@cluster_options
@embedded_option
@click.option(
    "-d",
    "--detach",
    is_flag=True,
    help="Relay in the background; return once every forward is ready.",
)
@timeout_option_for("With -d, time to wait for the forwards to become ready.")
@click.option("--watch/--no-watch", default=True, help="Apply edits of the file.  [default: on]")
@click.option("--strict", is_flag=True, help="Fail if any forward cannot start.")
@click.option("--plain", is_flag=True, help="Log plain lines instead of a live table.")
@log_format_option
@verbose_option
@names_argument
@click.pass_context
def up(
    context: click.Context,
    file: str | None,
    cluster: Cluster,
    embedded: bool,
    detach: bool,
    timeout: float,
    watch: bool,
    strict: bool,
    plain: bool,
    log_format: str,
    verbose: int,
    names: tuple[str, ...],
) -> int:
    """Relay the targets of the file until Ctrl-C, or in the background.

    With NAMEs, relay only these targets. Saved edits of the file apply at once; connections of
    unchanged forwards stay open.

    With -d, krelay goes on in the background when this command ends and its terminal closes.
    `krelay ps` lists those that run, `krelay logs` prints what they log, `krelay down` stops one.
    On a timeout, prints what is not ready and why, and exits with 3; krelay goes on.
    """
    from krelay.cli.background.child import report

    if not detach and context.get_parameter_source("timeout") is ParameterSource.COMMANDLINE:
        hint = "`krelay wait --timeout` waits for a krelay that runs elsewhere"
        raise UsageError("`--timeout` is for `-d`", hint=hint)
    background = report()
    if detach and background is None:
        from krelay.cli.background.start import start

        selection = select(file, names=names, embedded=embedded, cluster=cluster)
        return start(selection, sys.argv[1:], timeout=timeout)
    preload()
    from krelay.cli.up import run
    from krelay.supervisor.contexts import Contexts

    with background.errors() if background else nullcontext():
        set_up_logging(
            verbose, json=log_format == "json", to=background.log_file() if background else None
        )
        selection = select(file, names=names, embedded=embedded, cluster=cluster)
        return run(
            selection,
            contexts=Contexts(cluster.kubeconfig),
            watch=watch,
            strict=strict,
            must_exist=strict,
            live=not plain and log_format == "text",
            report=background,
        )


@click.command("run", cls=WithCommand, options_metavar="[OPTIONS]")
@file_option
@cluster_options
@embedded_option
@timeout_option
@log_format_option
@verbose_option
@names_argument
@click.pass_context
def run_(
    context: click.Context,
    file: str | None,
    cluster: Cluster,
    embedded: bool,
    timeout: float,
    log_format: str,
    verbose: int,
    names: tuple[str, ...],
) -> int:
    """Run CMD while relaying the targets of the file.

    CMD starts once every forward is ready, and krelay exits with its exit code. It finds the
    forwards in the variables KRELAY_<TARGET>_HOST, _PORT and _ADDR; each port of a target with
    several also has KRELAY_<TARGET>_<PORT>_HOST and so on. With NAMEs, relay only these targets.
    """
    preload()
    from krelay.cli.run import run
    from krelay.supervisor.contexts import Contexts

    set_up_logging(verbose - 1, json=log_format == "json")
    selection = select(file, names=names, embedded=embedded, cluster=cluster)
    contexts = Contexts(cluster.kubeconfig)
    return run(selection, WithCommand.of(context), timeout=timeout, contexts=contexts)


@click.command()
@click.option(
    "-l",
    "--listen",
    default="127.0.0.1:1080",
    show_default=True,
    metavar="ADDRESS:PORT",
    help="Address to listen on.",
)
@click.option(
    "--context", shell_complete=kubeconfig_names, help="Kubeconfig context of the cluster."
)
@kubeconfig_option
@click.option(
    "--username",
    envvar="KRELAY_PROXY_USERNAME",
    show_envvar=True,
    help="Username that clients must send.",
)
@click.option(
    "--password",
    envvar="KRELAY_PROXY_PASSWORD",
    show_envvar=True,
    help="Password that clients must send; safer in the variable.",
)
@click.option("--insecure", is_flag=True, help="Allow other machines without a password.")
@embedded_option
@log_format_option
@verbose_option
def proxy(
    listen: str,
    context: str | None,
    kubeconfig: str | None,
    username: str | None,
    password: str | None,
    insecure: bool,
    embedded: bool,
    log_format: str,
    verbose: int,
) -> int:
    """Run a SOCKS5 and HTTP proxy into the cluster until Ctrl-C.

    The cluster resolves the names that clients ask for. Listening beyond loopback requires a
    username and a password, or --insecure.
    """
    preload()
    from krelay.cli.up import run
    from krelay.config.sources import Overlay, Proxy
    from krelay.supervisor.contexts import Contexts

    if (username is None) != (password is None):
        raise UsageError(
            "a username needs a password, and a password a username", hint="set both, or neither"
        )
    credentials = (username, password) if username is not None and password is not None else None
    set_up_logging(verbose, json=log_format == "json")
    overlay = Overlay(context=context, insecure=insecure)
    source = Proxy(listen, credentials, embedded, overlay)
    return run(source, contexts=Contexts(kubeconfig or None))
