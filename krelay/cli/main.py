"""`krelay`: the command line and its exit codes (see `krelay.errors`)."""

from __future__ import annotations

import os
import signal
import sys

import click

from krelay import __version__
from krelay.cli import client_commands, options
from krelay.cli.options import complete as _names
from krelay.cli.options import file as _file
from krelay.cli.options import output as _output
from krelay.cli.options import selection as _selection
from krelay.cli.options import verbose as _verbose
from krelay.cli.output import (
    UNWRITABLE,
    complain,
    complain_of_bug,
    complain_of_usage,
    hush,
    open_output,
    repeats,
    say,
    set_up_logging,
)
from krelay.errors import KrelayError, NotReadyError, UsageError

_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", message="%(prog)s %(version)s")
def cli() -> None:
    """Relay local TCP and UDP ports into a Kubernetes cluster, as a file declares them."""


@cli.command()
@_file
@click.option("--embedded", is_flag=True, help="Run the agent on this machine, without a cluster.")
@click.option("--watch/--no-watch", default=True, help="Follow edits of the file.  [default: on]")
@click.option("--strict", is_flag=True, help="Start all forwards, or none and fail.")
@click.option("--plain", is_flag=True, help="Lines instead of a live table, on a terminal too.")
@options.log_format
@_verbose
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=_names)
def up(
    file: str | None,
    embedded: bool,
    watch: bool,
    strict: bool,
    plain: bool,
    log_format: str,
    verbose: int,
    names: tuple[str, ...],
) -> int:
    """Relay the file's targets (or those NAMEd) until Ctrl-C.

    Edits of the file are carried out as they are saved; connections whose forward did not change
    are not touched.
    """
    from krelay.cli.up import run

    set_up_logging(verbose, json=log_format == "json")
    selection = _selection(file, names=names, embedded=embedded)
    live = not plain and log_format == "text"
    return run(selection, watch=watch, strict=strict, must_exist=strict, live=live)


@cli.command()
@click.option("-l", "--listen", default="127.0.0.1:1080", show_default=True, metavar="ADDRESS:PORT")
@click.option("--context", help="The kubeconfig context whose cluster it leads into.")
@click.option("--username", envvar="KRELAY_PROXY_USERNAME", help="Who may use it.")
@click.option(
    "--password", envvar="KRELAY_PROXY_PASSWORD", help="Better from the variable.", show_envvar=True
)
@click.option("--insecure", is_flag=True, help="Let other machines in without a password.")
@click.option("--embedded", is_flag=True, help="Run the agent on this machine, without a cluster.")
@options.log_format
@_verbose
def proxy(
    listen: str,
    context: str | None,
    username: str | None,
    password: str | None,
    insecure: bool,
    embedded: bool,
    log_format: str,
    verbose: int,
) -> int:
    """Run a SOCKS5 and HTTP proxy into the cluster until Ctrl-C; names are resolved there.

    With a username and a password, which KRELAY_PROXY_USERNAME and KRELAY_PROXY_PASSWORD hold
    as well, others are refused. Beyond loopback it takes these, or --insecure.
    """
    from krelay.cli.up import run
    from krelay.config.overlay import Overlay, Proxy

    if (username is None) != (password is None):
        raise UsageError("a username needs a password", hint="write both, or neither")
    credentials = (username, password) if username is not None and password is not None else None
    set_up_logging(verbose, json=log_format == "json")
    overlay = Overlay(context=context, insecure=insecure)
    return run(Proxy(listen, credentials, embedded, overlay))


@cli.command("run", cls=options.WithCommand, options_metavar="[OPTIONS]")
@_file
@click.option("--embedded", is_flag=True, help="Run the agent on this machine, without a cluster.")
@options.timeout
@options.log_format
@_verbose
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=_names)
@click.pass_context
def run_(
    context: click.Context,
    file: str | None,
    embedded: bool,
    timeout: float,
    log_format: str,
    verbose: int,
    names: tuple[str, ...],
) -> int:
    """Run CMD while the file's targets (or those NAMEd) are relayed, and exit as it does.

    CMD starts when every forward is ready. It finds them in KRELAY_<TARGET>_HOST, _PORT and
    _ADDR; a target with several ports has KRELAY_<TARGET>_<PORT>_HOST and so on besides.
    """
    from krelay.cli.run import run

    set_up_logging(verbose - 1, json=log_format == "json")
    selection = _selection(file, names=names, embedded=embedded)
    return run(selection, options.WithCommand.of(context), timeout=timeout)


@cli.command()
@_file
@_output
@click.argument("path", metavar="[FILE]", required=False)
def check(file: str | None, output: str, path: str | None) -> int:
    """Say what is wrong with a file; nothing is started."""
    from krelay.cli.check import run

    if file is not None and path is not None:
        raise UsageError("two files to check", hint="name one, with or without `-f`")
    return run(_selection(file or path), json=output == "json")


@cli.command()
@_file
@_output
@click.option("--exit-code", is_flag=True, help="Exit with 3 where there are changes.")
@click.argument("candidate", required=False)
def plan(file: str | None, output: str, exit_code: bool, candidate: str | None) -> int:
    """Say what an edit would do to the krelay that runs the file.

    The edit is what the file says now, or what CANDIDATE says (`-`: standard input).
    """
    from krelay.cli.plan import run

    if file == "-":
        raise UsageError("`-f` names the file that a krelay runs", hint="write `krelay plan -`")
    edit = None if candidate is None else _selection(candidate)
    changed = run(_selection(file), edit, json=output == "json")
    return NotReadyError.exit_code if changed and exit_code else 0


@cli.command()
@_file
@_output
def reload(file: str | None, output: str) -> int:
    """Have the krelay that runs the file carry out what it says now, and say what changed."""
    from krelay.cli.plan import reload

    reload(_selection(file), json=output == "json")
    return 0


@cli.command()
@_file
@click.option("--user", "users", multiple=True, help="Bind the Roles to this user.")
@click.option("--group", "groups", multiple=True, help="Bind them to this group.")
@click.option("--serviceaccount", "accounts", multiple=True, metavar="NAMESPACE:NAME")
@click.option("--optional", is_flag=True, help="Also the rights that only make errors clearer.")
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=_names)
def rbac(
    file: str | None,
    users: tuple[str, ...],
    groups: tuple[str, ...],
    accounts: tuple[str, ...],
    optional: bool,
    names: tuple[str, ...],
) -> int:
    """Print the least rights that the file's targets (or those NAMEd) need, as Roles."""
    from krelay.cli.rbac import run, subjects

    given = subjects(users, groups, accounts)
    return run(_selection(file, names=names), given, optional=optional)


@cli.command("import")
@click.argument("path", metavar="FILE|kubefwd")
@click.option("-n", "--namespace", "namespaces", multiple=True, help="For kubefwd: its namespaces.")
@click.option("--context", help="For kubefwd: the kubeconfig context.")
def import_(path: str, namespaces: tuple[str, ...], context: str | None) -> int:
    """Print a krelay.yaml made from another tool's file.

    FILE is a targets.txt, a kftray export or a .kportal.yaml; `kubefwd` stands for the Services
    of the namespaces.
    """
    from krelay.cli.importing import run

    return run(path, namespaces, context)


@cli.command()
@click.option("-f", "--file", metavar="FILE", help="The file to write.  [default: ./krelay.yaml]")
@click.option("--from-namespace", "namespace", help="With the Services that this namespace has.")
@click.option("--context", help="The kubeconfig context.")
@click.option("--force", is_flag=True, help="Write over a file that exists.")
def init(file: str | None, namespace: str | None, context: str | None, force: bool) -> int:
    """Write a krelay.yaml to begin with. Asks nothing."""
    from krelay.cli.importing import init as write

    return write(file, namespace, context, force=force)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print what a SHELL has to run to complete krelay's commands.

    For bash: `eval "$(krelay completion bash)"` in ~/.bashrc. `kubectl relay` is completed by
    kubectl's own completion.
    """
    from krelay.cli.completion import script

    click.echo(script(shell, cli, "krelay"))
    return 0


@cli.command()
def schema() -> int:
    """Print the JSON Schema of krelay.yaml."""
    import json

    from krelay import config

    say(json.dumps(config.schema(), indent=2))
    return 0


for _command in client_commands.COMMANDS:
    cli.add_command(_command)


def run_command(command: click.Command, name: str) -> int:
    """Run a command line; returns the exit code. Every error is told here."""
    open_output()
    if hasattr(signal, "SIGCHLD"):
        # Where it is ignored, nobody is told how a child has ended (wait(2)).
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if options.wants_json(command, sys.argv[1:], os.environ):
        set_up_logging(0, json=True)
    try:
        return _run(command, name)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except SystemExit:
        raise
    except BaseException as exc:  # a CancelledError is no Exception
        complain_of_bug(exc)
        return KrelayError.exit_code
    finally:
        repeats.flush()


def _run(command: click.Command, name: str) -> int:
    try:
        return command.main(prog_name=name, standalone_mode=False) or 0
    except click.ClickException as exc:
        complain_of_usage(exc)
        return UsageError.exit_code
    except KrelayError as exc:
        complain(exc)
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except BrokenPipeError:
        hush()
        return 1
    except OSError as exc:
        if exc.errno not in UNWRITABLE:
            raise
        hush()
        complain(KrelayError(f"cannot write what there is to say: {exc.strerror}"))
        return 1


def main() -> int:
    """`krelay`; returns the exit code."""
    return run_command(cli, "krelay")
