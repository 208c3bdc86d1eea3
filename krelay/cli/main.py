"""`krelay`: its commands, and the exit codes (see `krelay.errors`)."""

from __future__ import annotations

import click

from krelay import __version__
from krelay.cli.command_line import run_command
from krelay.cli.commands import editing, files, relaying, running, tools


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", message="%(prog)s %(version)s")
def cli() -> None:
    """Relay local TCP and UDP ports into a Kubernetes cluster, as declared in a file."""


COMMANDS = (
    *(relaying.up, relaying.run_, relaying.proxy),
    *(running.status, running.ps, running.port, running.wait, running.logs),
    *(running.reload, running.restart, running.down),
    *(editing.add, editing.remove),
    *(files.init, files.check, files.plan, files.import_, files.rbac, files.schema),
    *(tools.doctor, tools.mcp_, tools.completion, tools.complete_),
)
for _command in COMMANDS:
    cli.add_command(_command)


def main() -> int:
    """Run `krelay`; return its exit code."""
    return run_command(cli, "krelay")
