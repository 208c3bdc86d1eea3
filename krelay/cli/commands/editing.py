"""Commands that edit the file: `add` and `remove`."""

from __future__ import annotations

import functools
from typing import Any

import click

from krelay.cli.flags.values import FILE
from krelay.cli.options import Cluster, cluster_options, complete_names, timeout_option_for
from krelay.errors import UsageError

_edited_file_option = click.option(
    "-f", "--file", metavar="FILE", type=FILE, help="File to edit.  [default: ./krelay.yaml]"
)


def _complete_words(context: click.Context, param: click.Parameter, word: str) -> list[Any]:
    from krelay.cli.flags.completion import relay_words

    return relay_words(context, param, word)


@click.command()
@_edited_file_option
@click.option("--name", metavar="NAME", help="Name of the target.  [default: the object's]")
@functools.partial(cluster_options, of="the target")
@timeout_option_for("Time for a running krelay to make it ready.", default="30s")
@click.argument("words", metavar="TYPE/NAME [PORT]...", nargs=-1, shell_complete=_complete_words)
def add(
    file: str | None, name: str | None, cluster: Cluster, timeout: float, words: tuple[str, ...]
) -> int:
    """Add a target to the file.

    PORT is [LOCAL:]REMOTE[/PROTOCOL]; without one, krelay asks the cluster for the object's ports.
    Comments and all other lines stay as they are. A running krelay relays the target at once.
    """
    from krelay.cli.edit import targets

    if not words:
        hint = "for example `krelay add svc/web 8080:80`"
        raise UsageError("TYPE/NAME is required", hint=hint)
    return targets.add(file, words, name or None, cluster, timeout=timeout)


@click.command()
@_edited_file_option
@click.argument("name", shell_complete=complete_names)
def remove(file: str | None, name: str) -> int:
    """Remove a target from the file.

    All other lines stay as they are. A running krelay lets its connections finish.
    """
    from krelay.cli.edit import targets

    return targets.remove(file, name)
