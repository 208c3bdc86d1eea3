"""Commands for krelay itself and for other programs: `doctor`, `mcp` and `completion`."""

from __future__ import annotations

import sys

import click

from krelay.cli.flags.values import FILE
from krelay.cli.options import (
    Cluster,
    cluster_options,
    file_option,
    names_argument,
    output_option,
    path_of_running,
    select,
    verbose_option,
)
from krelay.cli.output import echo, note, set_up_logging
from krelay.errors import UsageError

_MCP_PACKAGES = ("mcp", "mcp_types", "pydantic")


@click.command()
@file_option
@cluster_options
@click.option("--quick", is_flag=True, help="Create nothing in the cluster, not even an agent.")
@click.option(
    "--bundle",
    metavar="FILE.tar.gz",
    type=click.Path(dir_okay=False),
    help="Also write an archive for a bug report, without secrets.",
)
@output_option
@verbose_option
@names_argument
def doctor(
    file: str | None,
    cluster: Cluster,
    quick: bool,
    bundle: str | None,
    output: str,
    verbose: int,
    names: tuple[str, ...],
) -> int:
    """Find out why krelay does not work here.

    Examines the file, this machine, kubeconfig, the API server, the rights that the file needs,
    whether the cluster accepts the agent, and the targets. Without --quick, also starts an agent,
    measures the ways to it, and removes it. Without a file, examines kubeconfig and the cluster.
    """
    from krelay.cli.terminal import doctor as report
    from krelay.config import files

    set_up_logging(verbose - 1)
    source = None
    if file is not None or names or files.is_found():
        source = select(file, names=names, cluster=cluster)
    return report.doctor(
        source,
        quick=quick,
        json=output == "json",
        bundle=bundle,
        context=cluster.context,
        namespace=cluster.namespace,
        kubeconfig=cluster.kubeconfig,
    )


@click.command()
@click.argument("shell", required=False, type=click.Choice(["bash", "zsh", "fish"]))
@click.option(
    "--install",
    is_flag=True,
    help="Write the script where SHELL, by default $SHELL, looks for completions.",
)
def completion(shell: str | None, install: bool) -> int:
    """Print the completion script of a shell, or install it.

    SHELL is bash, zsh or fish. kubectl's own completion completes `kubectl relay`.
    """
    if install:
        from krelay.cli.flags import installation

        return installation.install(shell)
    if shell is None:
        raise UsageError(
            "no shell given",
            hint="`krelay completion --install` installs the script of your shell,"
            " and `krelay completion bash` prints one",
        )
    from krelay.cli.flags.scripts import SCRIPTS

    echo(SCRIPTS[shell].strip())
    return 0


def _tool_names(
    context: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> frozenset[str]:
    """Return the names in lists with commas."""
    from krelay.mcp import OPTIONAL

    names = frozenset(",".join(values).replace(",", " ").split())
    if unknown := sorted(names - set(OPTIONAL)):
        raise click.BadParameter(
            f"{', '.join(unknown)}: choose from {', '.join(OPTIONAL)}", context, param
        )
    return names


@click.command("mcp")
@click.option(
    "-f",
    "--file",
    metavar="FILE",
    type=FILE,
    help="The file of the krelay to ask.  [default: ./krelay.yaml, else the only one that runs]",
)
@click.option(
    "--allow",
    metavar="TOOLS",
    multiple=True,
    callback=_tool_names,
    help="Also offer these tools: plan, reload and run, separated by commas; may be repeated.",
)
@verbose_option
def mcp_(file: str | None, allow: frozenset[str], verbose: int) -> int:
    """Serve the Model Context Protocol over stdin and stdout.

    A language model's client starts this. Its tools ask the running krelay for targets, state,
    events and its log. With `run`, the model can run any program as you.
    """
    from krelay.cli.signals import run_to_exit

    path = None if file is None else path_of_running(file)
    try:
        from krelay.mcp.krelays import restore_variables
        from krelay.mcp.server import serve
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in _MCP_PACKAGES:
            raise
        hint = "install it with `pip install 'krelay[mcp]'`"
        raise UsageError("`krelay mcp` needs the SDK of the protocol", hint=hint) from None
    set_up_logging(verbose - 1)
    restore_variables()
    if sys.stdin.isatty():
        note("serving MCP over stdin and stdout to the client that started this; Ctrl-C ends")
    return run_to_exit(serve(path, allow))


class _Unparsed(click.Command):
    """A command that takes every word as it is."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the words."""
        ctx.params["words"] = args
        return []


@click.command("__complete", cls=_Unparsed, hidden=True)
@click.pass_context
def complete_(context: click.Context, words: list[str]) -> int:
    """Complete a command line: `words` and its words, or `line` and its text up to the cursor."""
    from krelay.cli.flags.completion import run, split_line

    form, *given = words
    run(context.find_root().command, "krelay", split_line(given[0]) if form == "line" else given)
    return 0
