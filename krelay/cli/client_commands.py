"""The commands that ask the krelay which runs a file: `status`, `wait`, `logs` and `down`."""

from __future__ import annotations

import click

from krelay.cli import options


@click.command()
@options.running_file
@click.option(
    "--output",
    type=click.Choice(["text", "wide", "json"]),
    default="text",
    show_default=True,
    help="For people, with all there is to say, or for programs.",
)
@click.option("--watch", is_flag=True, help="Show it again and again, with rates, until Ctrl-C.")
@options.names
def status(file: str | None, output: str, watch: bool, names: tuple[str, ...]) -> int:
    """Show how the forwards (or those of the targets NAMEd) are.

    Exits with 0 where it could tell, whatever they are, and with 1 where no krelay runs the file.
    """
    from krelay.cli.status import run

    return run(options.running(file), names, output=output, watch=watch)


@click.command()
@options.running_file
@options.timeout
@options.names
def wait(file: str | None, timeout: float, names: tuple[str, ...]) -> int:
    """Wait until the forwards (or those of the targets NAMEd) are ready, also for a krelay that is
    yet to start. Exits with 3 where that takes too long, and says what is not ready and why.
    """
    from krelay.cli.wait import run

    return run(options.running(file), names, timeout=timeout)


@click.command()
@options.running_file
@click.option("--follow", is_flag=True, help="Go on until it ends, or Ctrl-C.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    metavar="N",
    help="How many of the last lines.",
)
def logs(file: str | None, follow: bool, lines: int) -> int:
    """Print the last lines of the log of the krelay that runs the file."""
    from krelay.cli.logs import run

    return run(options.running(file), lines, follow=follow)


@click.command()
@options.running_file
def down(file: str | None) -> int:
    """End the krelay that runs the file, as Ctrl-C does, and wait until it has gone."""
    from krelay.cli.down import run

    return run(options.running(file))


COMMANDS = (status, wait, logs, down)
