"""`krelay`: its commands and options, and the exit codes (see `krelay.errors`)."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from krelay import __version__
from krelay.cli.flags.connection import kubeconfig_names, namespaces
from krelay.cli.flags.values import FILE, seconds
from krelay.cli.output import (
    UNWRITABLE,
    echo,
    open_output,
    print_bug,
    print_error,
    print_usage_error,
    repeat_filter,
    set_up_logging,
    silence_stdout,
)
from krelay.errors import KrelayError, NotReadyError, UsageError

if TYPE_CHECKING:
    from krelay.config.sources import Selection

_INTERRUPTED = 130


# -- options of several commands -------------------------------------------------------------------


def _complete_names(context: click.Context, param: click.Parameter, word: str) -> list[Any]:
    if WithCommand.begins_in(context):
        return FILE.shell_complete(context, param, word)
    from krelay.cli.flags.completion import target_names

    return target_names(context, param, word)


def _complete_names_or_words(
    context: click.Context, param: click.Parameter, word: str
) -> list[Any]:
    from krelay.cli.flags.completion import names_or_words

    return names_or_words(context, param, word)


_file = click.option(
    "-f",
    "--file",
    metavar="FILE",
    type=FILE,
    help="A krelay.yaml or targets.txt; `-` reads standard input.  [default: ./krelay.yaml]",
)
_running_file = click.option(
    "-f",
    "--file",
    metavar="FILE",
    type=FILE,
    help="The file that krelay runs.  [default: ./krelay.yaml]",
)
_names = click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=_complete_names)
_embedded = click.option(
    "--embedded", is_flag=True, help="Run the agent on this machine, without a cluster."
)
_verbose = click.option("-v", "--verbose", count=True, help="Log more; repeat to log everything.")
_output = click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Output format.",
)
_log_format = click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    envvar="KRELAY_LOG_FORMAT",
    show_envvar=True,
    help="Log format; json writes one object per line.",
)
_timeout = click.option(
    "--timeout",
    metavar="TIME",
    default="60s",
    show_default=True,
    callback=lambda context, param, value: seconds(value, param.opts[0]),
    help="Time to wait for the forwards to become ready.",
)


class WithCommand(click.Command):
    """A command that takes another command line after `--`."""

    _KEY = "krelay.command"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments before `--`, and keep those after it."""
        end = args.index("--") if "--" in args else len(args)
        ctx.meta[self._KEY] = tuple(args[end + 1 :]) if end < len(args) else None
        return super().parse_args(ctx, args[:end])

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return the pieces of the usage line, with the other command line at its end."""
        return [*super().collect_usage_pieces(ctx), "-- CMD [ARG]..."]

    @classmethod
    def begins_in(cls, context: click.Context) -> bool:
        """Return whether the other command line has begun."""
        return context.meta.get(cls._KEY) is not None

    @classmethod
    def of(cls, context: click.Context) -> tuple[str, ...]:
        """Return the other command line."""
        command: tuple[str, ...] | None = context.meta[cls._KEY]
        if not command:
            raise UsageError(
                "no command to run", hint="write it after `--`: `krelay run -- make test`"
            )
        return command


def _select(file: str | None, *, names: tuple[str, ...] = (), embedded: bool = False) -> Selection:
    """Return the file, or some of its targets; standard input and pipes are read now."""
    from krelay.config import files
    from krelay.config.sources import Selection

    return Selection(file, names, embedded, os.environ, files.read_once(file))


def _path_of_running(file: str | None) -> str:
    """Return the path of the file whose krelay a command asks."""
    from krelay.config import files

    if file == files.STDIN:
        hint = "it cannot be standard input"
        raise UsageError("`-f` names the file that krelay runs", hint=hint)
    return files.find(file)


def preload() -> None:
    """Import what reaches a cluster, in a thread, while the command reads its file.

    The import of aiohttp loads the system's certificates, and the agent's program is compressed:
    both leave the interpreter to other threads. The end of the process waits for the thread, since
    OpenSSL must not be cleaned up while it loads certificates.
    """
    threading.Thread(target=_preload, name="preload").start()


def _preload() -> None:
    with suppress(Exception):  # it is raised again where it is needed
        from krelay import payload

        payload.payload()
        from krelay.cluster import agent_lifecycle, api, resolve  # noqa: F401


# -- commands --------------------------------------------------------------------------------------


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", message="%(prog)s %(version)s")
def cli() -> None:
    """Relay local TCP and UDP ports into a Kubernetes cluster, as declared in a file."""


@cli.command()
@_file
@_embedded
@click.option("--watch/--no-watch", default=True, help="Apply edits of the file.  [default: on]")
@click.option("--strict", is_flag=True, help="Fail if any forward cannot start.")
@click.option("--plain", is_flag=True, help="Log plain lines instead of a live table.")
@_log_format
@_verbose
@_names
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
    """Relay the targets of the file until Ctrl-C.

    With NAMEs, relay only these targets. Saved edits of the file apply at once; connections of
    unchanged forwards stay open.
    """
    preload()
    from krelay.cli.up import run

    set_up_logging(verbose, json=log_format == "json")
    selection = _select(file, names=names, embedded=embedded)
    live = not plain and log_format == "text"
    return run(selection, watch=watch, strict=strict, must_exist=strict, live=live)


@cli.command()
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
@_embedded
@_log_format
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
    """Run a SOCKS5 and HTTP proxy into the cluster until Ctrl-C.

    The cluster resolves the names that clients ask for. Listening beyond loopback requires a
    username and a password, or --insecure.
    """
    preload()
    from krelay.cli.up import run
    from krelay.config.sources import Overlay, Proxy

    if (username is None) != (password is None):
        raise UsageError(
            "a username needs a password, and a password a username", hint="set both, or neither"
        )
    credentials = (username, password) if username is not None and password is not None else None
    set_up_logging(verbose, json=log_format == "json")
    overlay = Overlay(context=context, insecure=insecure)
    return run(Proxy(listen, credentials, embedded, overlay))


@cli.command("run", cls=WithCommand, options_metavar="[OPTIONS]")
@_file
@_embedded
@_timeout
@_log_format
@_verbose
@_names
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
    """Run CMD while relaying the targets of the file.

    CMD starts once every forward is ready, and krelay exits with its exit code. It finds the
    forwards in the variables KRELAY_<TARGET>_HOST, _PORT and _ADDR; each port of a target with
    several also has KRELAY_<TARGET>_<PORT>_HOST and so on. With NAMEs, relay only these targets.
    """
    preload()
    from krelay.cli.run import run

    set_up_logging(verbose - 1, json=log_format == "json")
    selection = _select(file, names=names, embedded=embedded)
    return run(selection, WithCommand.of(context), timeout=timeout)


@cli.command()
@_running_file
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "wide", "json"]),
    default="text",
    show_default=True,
    help="Output format; wide shows every column, and the tunnels.",
)
@click.option("--watch", is_flag=True, help="Refresh until Ctrl-C, and show throughput.")
@_names
def status(file: str | None, output: str, watch: bool, names: tuple[str, ...]) -> int:
    """Show the state of the forwards.

    With NAMEs, show only the forwards of these targets. Exits with 0 whatever the state, and with 1
    if krelay is not running for the file.
    """
    from krelay.cli import client_commands

    return client_commands.status(_path_of_running(file), names, output=output, watch=watch)


@cli.command()
@_running_file
@_timeout
@_names
def wait(file: str | None, timeout: float, names: tuple[str, ...]) -> int:
    """Wait until the forwards are ready.

    With NAMEs, wait only for the forwards of these targets. krelay need not be running yet. On a
    timeout, prints what is not ready and why, and exits with 3.
    """
    from krelay.cli import client_commands

    return client_commands.wait(_path_of_running(file), names, timeout=timeout)


@cli.command()
@_running_file
@click.option("--follow", is_flag=True, help="Print new lines until krelay ends, or Ctrl-C.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    metavar="N",
    help="Number of lines to print.",
)
def logs(file: str | None, follow: bool, lines: int) -> int:
    """Print the last lines of the running krelay's log."""
    from krelay.cli import client_commands

    return client_commands.logs(_path_of_running(file), lines, follow=follow)


@cli.command()
@_running_file
def down(file: str | None) -> int:
    """Stop the running krelay, and wait until it has ended.

    Connections get the same time to finish as on Ctrl-C.
    """
    from krelay.cli import client_commands

    return client_commands.down(_path_of_running(file))


@cli.command()
@_file
@_output
@click.argument("path", metavar="[FILE]", required=False, type=FILE)
def check(file: str | None, output: str, path: str | None) -> int:
    """Check a file without starting anything."""
    from krelay.cli import file_commands

    if file is not None and path is not None:
        raise UsageError("two files to check", hint="name one, with or without `-f`")
    return file_commands.check(_select(file or path), json=output == "json")


@cli.command()
@_running_file
@_output
@click.option("--exit-code", is_flag=True, help="Exit with 3 if there are changes.")
@click.argument("candidate", required=False, type=FILE)
def plan(file: str | None, output: str, exit_code: bool, candidate: str | None) -> int:
    """Show what an edit would change in the running krelay.

    Compares what runs with the file as it is now, or with CANDIDATE (`-` reads standard input).
    """
    from krelay.cli import file_commands

    if file == "-":
        raise UsageError("`-f` names the file that krelay runs", hint="try `krelay plan -`")
    edit = None if candidate is None else _select(candidate)
    changed = file_commands.plan(_select(file), edit, json=output == "json")
    return NotReadyError.exit_code if changed and exit_code else 0


@cli.command()
@_running_file
@_output
def reload(file: str | None, output: str) -> int:
    """Make the running krelay apply its file now.

    Prints what changed.
    """
    from krelay.cli import file_commands

    file_commands.reload(_select(file), json=output == "json")
    return 0


@cli.command()
@_file
@click.option("--user", "users", multiple=True, metavar="NAME", help="Bind the Roles to this user.")
@click.option(
    "--group", "groups", multiple=True, metavar="NAME", help="Bind the Roles to this group."
)
@click.option(
    "--serviceaccount",
    "accounts",
    multiple=True,
    metavar="NAMESPACE:NAME",
    help="Bind the Roles to this service account.",
)
@click.option(
    "--optional",
    is_flag=True,
    help="Include rights that only make tunnels faster or errors clearer.",
)
@click.option(
    "--context",
    shell_complete=kubeconfig_names,
    help="Print only the Roles for this kubeconfig context.",
)
@click.option(
    "-n",
    "--namespace",
    shell_complete=namespaces,
    help="Namespace to use instead of the context's.",
)
@click.option(
    "--agent-namespace",
    metavar="NAMESPACE",
    shell_complete=namespaces,
    help="Namespace of the agent.",
)
@click.option(
    "--via",
    type=click.Choice(["auto", "agent", "direct"]),
    help="Way into the cluster, as for `kubectl relay`.",
)
@click.option("--name", metavar="NAME", help="Name of the Roles and their bindings.")
@click.argument(
    "words",
    metavar="[NAME...|TYPE/NAME PORT...|proxy]",
    nargs=-1,
    shell_complete=_complete_names_or_words,
)
def rbac(
    file: str | None,
    users: tuple[str, ...],
    groups: tuple[str, ...],
    accounts: tuple[str, ...],
    optional: bool,
    context: str | None,
    namespace: str | None,
    agent_namespace: str | None,
    via: str | None,
    name: str | None,
    words: tuple[str, ...],
) -> int:
    """Print Roles with the least rights that the targets need.

    With NAMEs, print only the rights for these targets of the file. TYPE/NAME PORT is a target as
    for `kubectl relay`, and `proxy` stands for its proxy: they need no file.
    """
    from krelay.cli import file_commands
    from krelay.config.sources import PROXY_WORD, Overlay, Proxy, Words
    from krelay.model import Via

    overlay = Overlay(
        namespace=namespace, agent_namespace=agent_namespace, via=Via(via) if via else None
    )
    source: Selection | Words | Proxy
    if file is None and words == (PROXY_WORD,):
        source = Proxy(overlay=overlay)
    elif file is None and words and "/" in words[0]:
        source = Words(words, overlay)
    else:
        source = dataclasses.replace(_select(file, names=words), overlay=overlay)
    return file_commands.rbac(
        source,
        file_commands.rbac_subjects(users, groups, accounts),
        optional=optional,
        context=context,
        namespace=namespace,
        name=name,
    )


@cli.command("import")
@click.argument("path", metavar="FILE|kubefwd", type=FILE)
@click.option(
    "-n",
    "--namespace",
    "namespaces",
    multiple=True,
    shell_complete=namespaces,
    help="Namespace, for kubefwd.",
)
@click.option(
    "--context",
    shell_complete=kubeconfig_names,
    help="Kubeconfig context of the result, for targets without one.",
)
@click.option("--offline", is_flag=True, help="Ask no cluster for the ports of Services.")
def import_(path: str, namespaces: tuple[str, ...], context: str | None, offline: bool) -> int:
    """Convert another tool's file into a krelay.yaml, and print it.

    FILE is a targets.txt, a kftray export or a .kportal.yaml. `kubefwd` converts the Services of
    the namespaces. kftray and kportal name ports of pods: the clusters of the file are asked which
    port of a Service leads there.
    """
    from krelay.cli import file_commands

    return file_commands.import_(path, namespaces, context, offline=offline)


@cli.command()
@click.option(
    "-f", "--file", metavar="FILE", type=FILE, help="File to write.  [default: ./krelay.yaml]"
)
@click.option(
    "--from-namespace",
    "namespace",
    shell_complete=namespaces,
    help="Add the Services of this namespace.",
)
@click.option(
    "--context", shell_complete=kubeconfig_names, help="Kubeconfig context, which the file keeps."
)
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def init(file: str | None, namespace: str | None, context: str | None, force: bool) -> int:
    """Write a starter krelay.yaml, without prompting."""
    from krelay.cli import file_commands

    return file_commands.init(file, namespace, context, force=force)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print the completion script of a shell.

    For bash, add `eval "$(krelay completion bash)"` to ~/.bashrc. kubectl's own completion
    completes `kubectl relay`.
    """
    from krelay.cli.flags.scripts import SCRIPTS

    echo(SCRIPTS[shell].strip())
    return 0


class _Unparsed(click.Command):
    """A command that takes every word as it is."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the words."""
        ctx.params["words"] = args
        return []


@cli.command("__complete", cls=_Unparsed, hidden=True)
def complete_(words: list[str]) -> int:
    """Complete a command line: `words` and its words, or `line` and its text up to the cursor."""
    from krelay.cli.flags.completion import run, split_line

    form, *given = words
    run(cli, "krelay", split_line(given[0]) if form == "line" else given)
    return 0


@cli.command()
def schema() -> int:
    """Print the JSON Schema of krelay.yaml."""
    from krelay import config

    echo(config.schema_text().rstrip())
    return 0


# -- running a command line ------------------------------------------------------------------------


def wants_json(command: click.Command, args: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Return whether a command line asks for a log in JSON.

    This is known before click parses the line, so that errors in the line are JSON too.
    """
    given = list(args[: args.index("--")] if "--" in args else args)
    if isinstance(command, click.Group):
        word = next((arg for arg in given if not arg.startswith("-")), "")
        command = command.commands.get(word, command)
    # An unknown command may be a misspelt one that has the option.
    unknown = isinstance(command, click.Group) and bool(given)
    if not unknown and not any(param.name == "log_format" for param in command.params):
        return False
    found = environ.get("KRELAY_LOG_FORMAT", "")
    for number, arg in enumerate(given):
        option, equals, value = arg.partition("=")
        if option == "--log-format":
            found = value if equals else "".join(given[number + 1 : number + 2])
    return found == "json"


def run_command(command: click.Command, name: str) -> int:
    """Run the command line of this process, print its error if any, and return the exit code."""
    open_output()
    if hasattr(signal, "SIGCHLD"):
        # If it is ignored, wait(2) does not return the exit status of a child.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if wants_json(command, sys.argv[1:], os.environ):
        set_up_logging(0, json=True)
    try:
        return _run(command, name)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except SystemExit:
        raise
    except BaseException as exc:  # a CancelledError is not an Exception
        print_bug(exc)
        return KrelayError.exit_code
    finally:
        repeat_filter.flush()


def _run(command: click.Command, name: str) -> int:
    try:
        return command.main(prog_name=name, standalone_mode=False) or 0
    except click.ClickException as exc:
        print_usage_error(exc)
        return UsageError.exit_code
    except KrelayError as exc:
        print_error(exc)
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except BrokenPipeError:
        silence_stdout()
        return 1
    except OSError as exc:
        if exc.errno not in UNWRITABLE:
            raise
        silence_stdout()
        print_error(KrelayError(f"cannot write to stdout: {exc.strerror}"))
        return 1


def main() -> int:
    """Run `krelay`; return its exit code."""
    return run_command(cli, "krelay")
