"""Commands for krelay itself: `completion`, and the hidden one that completes."""

from __future__ import annotations

import click

from krelay.cli.output import echo


@click.command()
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


@click.command("__complete", cls=_Unparsed, hidden=True)
@click.pass_context
def complete_(context: click.Context, words: list[str]) -> int:
    """Complete a command line: `words` and its words, or `line` and its text up to the cursor."""
    from krelay.cli.flags.completion import run, split_line

    form, *given = words
    run(context.find_root().command, "krelay", split_line(given[0]) if form == "line" else given)
    return 0
