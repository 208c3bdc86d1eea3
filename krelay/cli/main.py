"""`krelay`: its commands, and the exit codes (see `krelay.errors`)."""

from __future__ import annotations

from typing import Any

import click

from krelay import __version__
from krelay.cli.command_line import run_command
from krelay.cli.commands import editing, files, relaying, running, tools
from krelay.cli.flags import compose

GROUPS = {
    "Relay": (relaying.up, running.down, running.restart, relaying.run_, relaying.proxy),
    "Look": (
        *(running.status, running.ps, running.port, running.wait, running.logs, tools.doctor),
    ),
    "Edit": (editing.add, editing.remove, files.check, files.plan, running.reload),
    "Set up": (
        *(files.init, files.import_, files.rbac, files.schema, tools.completion, tools.mcp_),
    ),
}
"""The commands by task, as `krelay --help` lists them."""


class _Commands(click.Group):
    """A group that lists its commands by task, each with its whole first sentence, and knows
    those of docker compose."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command, its name and its arguments."""
        if args[0] not in self.commands:
            compose.check_command(args[0])
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that the arguments name."""
        try:
            return super().invoke(ctx)
        except (click.NoSuchOption, click.BadOptionUsage) as exc:
            compose.check_option(ctx.invoked_subcommand or "", exc)
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each task, with the same columns."""
        width = max(len(name) for name in self.commands)
        for title, commands in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl(
                    [
                        (str(command.name).ljust(width), command.get_short_help_str(limit=1000))
                        for command in commands
                    ]
                )


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Begin with `krelay init`, or `krelay add svc/web 8080:80`, then `krelay up`. "
    "`krelay COMMAND --help` lists the options of a command.",
)
@click.version_option(__version__, "-V", "--version", message="%(prog)s %(version)s")
def cli() -> None:
    """Relay local TCP and UDP ports into a Kubernetes cluster, as declared in a file."""


for _commands in (*GROUPS.values(), (tools.complete_,)):
    for _command in _commands:
        cli.add_command(_command)


def main() -> int:
    """Run `krelay`; return its exit code."""
    return run_command(cli, "krelay")
