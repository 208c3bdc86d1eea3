"""Options that several commands have, and the file that they select."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from krelay.errors import UsageError

if TYPE_CHECKING:
    from krelay.config.selection import Selection

_Command = TypeVar("_Command", bound=Callable[..., Any])


def complete(context: click.Context, param: click.Parameter, word: str) -> list[Any]:
    """The file's targets, for a shell."""
    from krelay.cli.completion import names

    return names(context, param, word)


file = click.option(
    "-f",
    "--file",
    metavar="FILE",
    help="krelay.yaml or targets.txt; `-` is standard input.  [default: ./krelay.yaml]",
)
running_file = click.option(
    "-f", "--file", metavar="FILE", help="The file that a krelay runs.  [default: ./krelay.yaml]"
)
verbose = click.option("-v", "--verbose", count=True, help="Say more; twice: everything.")
output = click.option(
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="For people or for programs.",
)
log_format = click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    envvar="KRELAY_LOG_FORMAT",
    help="Lines for people, or a JSON object an event; also from KRELAY_LOG_FORMAT.",
)


def wants_json(command: click.Command, args: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether a command line asks for a log in JSON. It is known before the line is parsed, so that
    its errors are JSON too."""
    given = list(args[: args.index("--")] if "--" in args else args)
    if isinstance(command, click.Group):
        word = next((arg for arg in given if not arg.startswith("-")), "")
        command = command.commands.get(word, command)
    # What is no command may have been meant as one of those.
    wrong = isinstance(command, click.Group) and bool(given)
    if not wrong and not any(param.name == "log_format" for param in command.params):
        return False
    found = environ.get("KRELAY_LOG_FORMAT", "")
    for number, arg in enumerate(given):
        option, equals, value = arg.partition("=")
        if option == "--log-format":
            found = value if equals else "".join(given[number + 1 : number + 2])
    return found == "json"


names = click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete)


class WithCommand(click.Command):
    """A command of krelay's before `--`, and any command line after it."""

    _KEY = "krelay.command"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Only what comes before `--` is krelay's."""
        end = args.index("--") if "--" in args else len(args)
        ctx.meta[self._KEY] = tuple(args[end + 1 :])
        return super().parse_args(ctx, args[:end])

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """With the other command line."""
        return [*super().collect_usage_pieces(ctx), "-- CMD [ARG]..."]

    @classmethod
    def of(cls, context: click.Context) -> tuple[str, ...]:
        """The other command line.

        Raises:
            UsageError: there is none.
        """
        command: tuple[str, ...] = context.meta[cls._KEY]
        if not command:
            raise UsageError(
                "no command to run", hint="write it after `--`: `krelay run -- make test`"
            )
        return command


def timeout(command: _Command) -> _Command:
    """`--timeout`: how long to wait, in seconds."""
    return click.option(
        "--timeout",
        metavar="TIME",
        default="60s",
        show_default=True,
        callback=lambda context, param, value: seconds(value, "--timeout"),
        help="How long to wait.",
    )(command)


def seconds(text: str, option: str) -> float:
    """A duration of the command line.

    Raises:
        UsageError: it is none.
    """
    from krelay.config.duration import parse_duration
    from krelay.config.parse_error import Flaw

    try:
        return parse_duration(text)
    except Flaw as flaw:
        raise UsageError(f"{option}: {flaw.message}", hint=flaw.hint) from flaw


def selection(
    file: str | None, *, names: tuple[str, ...] = (), embedded: bool = False
) -> Selection:
    """The file, or some of its targets; standard input and pipes are read now.

    Raises:
        UsageError: it cannot be read.
    """
    from krelay.config import files
    from krelay.config.selection import Selection

    return Selection(file, names, embedded, os.environ, files.given(file))


def running(file: str | None) -> str:
    """The path of the file that a running krelay is to be asked about.

    Raises:
        UsageError: it is none.
    """
    from krelay.config import files

    if file == files.STDIN:
        raise UsageError("`-f` names the file that a krelay runs", hint="standard input is none")
    return files.find(file)
