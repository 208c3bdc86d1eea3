"""Commands for krelay itself: `doctor`, `completion`, and the hidden one that completes."""

from __future__ import annotations

import click

from krelay.cli.options import (
    Cluster,
    cluster_options,
    file_option,
    names_argument,
    output_option,
    select,
    verbose_option,
)
from krelay.cli.output import echo, set_up_logging
from krelay.errors import UsageError


@click.command()
@file_option
@cluster_options
@click.option("--quick", is_flag=True, help="Create nothing in the cluster, not even an agent.")
@output_option
@verbose_option
@names_argument
def doctor(
    file: str | None,
    cluster: Cluster,
    quick: bool,
    output: str,
    verbose: int,
    names: tuple[str, ...],
) -> int:
    """Find out why krelay does not work here.

    Examines the file, this machine, kubeconfig, the API server, the rights that the file needs,
    what the cluster thinks of the agent, and the targets. Without --quick, also starts an agent,
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
