"""Commands for a krelay that runs: `status`, `ps`, `port`, `wait`, `logs`, `reload`, `restart` and
`down`."""

from __future__ import annotations

import os

import click

from krelay.cli.flags.compose import FOLLOW
from krelay.cli.options import (
    complete_names,
    complete_ports,
    names_argument,
    output_option,
    path_of_running,
    running_file_option,
    timeout_option,
)


@click.command()
@running_file_option
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "wide", "json"]),
    default="text",
    show_default=True,
    help="Output format; wide shows every column, and the tunnels.",
)
@click.option("--watch", is_flag=True, help="Refresh until Ctrl-C, and show throughput.")
@names_argument
def status(file: str | None, output: str, watch: bool, names: tuple[str, ...]) -> int:
    """Show the state of the forwards.

    With NAMEs, show only the forwards of these targets. Exits with 0 whatever the state, and with 1
    if krelay is not running for the file.
    """
    from krelay.cli import client_commands

    return client_commands.status(path_of_running(file), names, output=output, watch=watch)


@click.command()
@output_option
def ps(output: str) -> int:
    """List every krelay of this user that runs a file.

    READY counts the targets that are ready.
    """
    from krelay.cli.background.ps import ps

    return ps(as_json=output == "json")


@click.command()
@running_file_option
@output_option
@click.argument("name", metavar="NAME", shell_complete=complete_names)
@click.argument("port", metavar="[PORT]", required=False, shell_complete=complete_ports)
def port(file: str | None, output: str, name: str, port: str | None) -> int:
    """Print the local address of a target.

    PORT is its remote port, a number or a name, if it has several; `53/udp` if it has both
    protocols. A target that listens on every address is reached at the loopback address.
    """
    from krelay.cli import client_commands

    as_json = output == "json"
    return client_commands.port(path_of_running(file), name, port, as_json=as_json)


@click.command()
@running_file_option
@timeout_option
@names_argument
def wait(file: str | None, timeout: float, names: tuple[str, ...]) -> int:
    """Wait until the forwards are ready.

    With NAMEs, wait only for the forwards of these targets. krelay need not be running yet. On a
    timeout, prints what is not ready and why, and exits with 3.
    """
    from krelay.cli import client_commands

    return client_commands.wait(path_of_running(file), names, timeout=timeout)


@click.command()
@running_file_option
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
@names_argument
def logs(file: str | None, follow: bool, lines: int, names: tuple[str, ...]) -> int:
    """Print the last lines of the running krelay's log.

    With NAMEs, print only lines about these targets.
    """
    from krelay.cli import client_commands
    from krelay.status.client import NotRunningError

    try:
        return client_commands.logs(path_of_running(file), lines, names=names, follow=follow)
    except NotRunningError as exc:
        if file is not None and not os.path.exists(file):
            exc.hint = FOLLOW
        raise


@click.command()
@running_file_option
@output_option
def reload(file: str | None, output: str) -> int:
    """Make the running krelay apply its file now.

    Prints what changed.
    """
    from krelay.cli import file_commands

    file_commands.reload(path_of_running(file), json=output == "json")
    return 0


@click.command()
@running_file_option
@output_option
@names_argument
def restart(file: str | None, output: str, names: tuple[str, ...]) -> int:
    """Relay targets anew: look them up again, and reset their connections.

    Without NAMEs, also replace the agent. The connections are reset once the new agent runs and the
    targets are looked up; if that fails, nothing changes. Local addresses stay, and new connections
    wait meanwhile.
    """
    from krelay.cli import client_commands

    path = path_of_running(file)
    return client_commands.restart(path, names, as_json=output == "json")


@click.command()
@running_file_option
def down(file: str | None) -> int:
    """Stop the running krelay, and wait until it has ended.

    Connections get the same time to finish as on Ctrl-C.
    """
    from krelay.cli import client_commands

    return client_commands.down(path_of_running(file))
