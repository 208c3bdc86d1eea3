"""The options and arguments that several commands of `krelay` share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from krelay.cli.flags.connection import kubeconfig_names, namespaces
from krelay.cli.flags.values import FILE, seconds
from krelay.errors import UsageError

if TYPE_CHECKING:
    from krelay.config.sources import Selection

_F = TypeVar("_F", bound=Callable[..., Any])


def complete_names(context: click.Context, param: click.Parameter, word: str) -> list[Any]:
    """Complete a target of the file, or a word of the other command line."""
    if WithCommand.begins_in(context):
        return FILE.shell_complete(context, param, word)
    from krelay.cli.flags.completion import target_names

    return target_names(context, param, word)


def complete_names_or_words(context: click.Context, param: click.Parameter, word: str) -> list[Any]:
    """Complete a target of the file, or a word of a target."""
    from krelay.cli.flags.completion import names_or_words

    return names_or_words(context, param, word)


def complete_ports(context: click.Context, param: click.Parameter, word: str) -> list[Any]:
    """Complete a remote port of the target that was named."""
    from krelay.cli.flags.completion import ports_of_target

    return ports_of_target(context, param, word)


file_option = click.option(
    "-f",
    "--file",
    metavar="FILE",
    type=FILE,
    help="A krelay.yaml or targets.txt; `-` reads standard input.  [default: ./krelay.yaml]",
)
running_file_option = click.option(
    "-f",
    "--file",
    metavar="FILE",
    type=FILE,
    help="The file that krelay runs.  [default: ./krelay.yaml]",
)
names_argument = click.argument(
    "names", metavar="[NAME]...", nargs=-1, shell_complete=complete_names
)
embedded_option = click.option(
    "--embedded", is_flag=True, help="Run the agent on this machine, without a cluster."
)
kubeconfig_option = click.option(
    "--kubeconfig", metavar="FILE", type=FILE, help="Path to the kubeconfig file."
)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where a command line says that targets are, instead of kubeconfig and the file."""

    context: str | None = None
    namespace: str | None = None
    kubeconfig: str | None = None

    def words(self) -> list[str]:
        """Return the options that say so."""
        given = {
            "--kubeconfig": self.kubeconfig,
            "--context": self.context,
            "-n": self.namespace,
        }
        return [word for flag, value in given.items() if value for word in (flag, value)]


def cluster_options(
    command: Callable[..., int], *, of: str = "targets that name none"
) -> Callable[..., int]:
    """Add `--context`, `--namespace` and `--kubeconfig`, which `command` gets as its `cluster`.

    The help says whose context and namespace they are.
    """

    @functools.wraps(command)
    def with_cluster(
        *args: Any, context: str | None, namespace: str | None, kubeconfig: str | None, **more: Any
    ) -> int:
        cluster = Cluster(context or None, namespace or None, kubeconfig or None)
        return command(*args, cluster=cluster, **more)

    for add in (
        kubeconfig_option,
        click.option(
            "-n",
            "--namespace",
            shell_complete=namespaces,
            help=f"Namespace of {of}, instead of the file's.",
        ),
        click.option(
            "--context",
            shell_complete=kubeconfig_names,
            help=f"Kubeconfig context of {of}, instead of the file's.",
        ),
    ):
        add(with_cluster)
    return with_cluster


verbose_option = click.option(
    "-v", "--verbose", count=True, help="Log more; repeat to log everything."
)
output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Output format.",
)
log_format_option = click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    envvar="KRELAY_LOG_FORMAT",
    show_envvar=True,
    help="Log format; json writes one object per line.",
)


def timeout_option_for(help: str, *, default: str = "60s") -> Callable[[_F], _F]:
    """Return the option `--timeout` of a command that waits until forwards are ready."""
    return click.option(
        "--timeout",
        metavar="TIME",
        default=default,
        show_default=True,
        callback=lambda context, param, value: seconds(value, param.opts[0]),
        help=help,
    )


timeout_option = timeout_option_for("Time to wait for the forwards to become ready.")


class WithCommand(click.Command):
    """A command that takes another command line after `--`."""

    _KEY = "krelay.command"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments before `--`, and keep those after it."""
        end = args.index("--") if "--" in args else len(args)
        ctx.meta[self._KEY] = tuple(args[end + 1 :]) if end < len(args) else None
        return super().parse_args(ctx, args[:end])

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return the pieces of the usage line, with the other command line at its end."""
        return [*super().collect_usage_pieces(ctx), "-- CMD [ARG]..."]

    @classmethod
    def begins_in(cls, context: click.Context) -> bool:
        """Return whether the other command line has begun."""
        return context.meta.get(cls._KEY) is not None

    @classmethod
    def of(cls, context: click.Context) -> tuple[str, ...]:
        """Return the other command line."""
        command: tuple[str, ...] | None = context.meta[cls._KEY]
        if not command:
            raise UsageError(
                "no command to run", hint="write it after `--`: `krelay run -- make test`"
            )
        return command


def select(
    file: str | None,
    *,
    names: tuple[str, ...] = (),
    embedded: bool = False,
    cluster: Cluster = Cluster(),
) -> Selection:
    """Return the file, or some of its targets; standard input and pipes are read now."""
    from krelay.config import files
    from krelay.config.sources import Selection

    return Selection(
        file,
        names,
        embedded,
        os.environ,
        files.read_once(file),
        context=cluster.context,
        namespace=cluster.namespace,
    )


def path_of_running(file: str | None) -> str:
    """Return the path of the file whose krelay a command asks."""
    from krelay.config import files

    if file == files.STDIN or files.read_once(file) is not None:
        hint = "it cannot be standard input or a pipe"
        raise UsageError("`-f` names the file that krelay runs", hint=hint)
    hint = "`krelay ps` lists the files that krelay runs; name one with `-f FILE`"
    return files.find(file, hint=hint)
