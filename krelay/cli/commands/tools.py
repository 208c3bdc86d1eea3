"""Commands for krelay itself: `completion`, and the hidden one that completes."""

from __future__ import annotations

import click

from krelay.cli.output import echo
from krelay.errors import UsageError


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
