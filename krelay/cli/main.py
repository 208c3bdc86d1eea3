"""`krelay`: the command line and its exit codes (see `krelay.errors`)."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from krelay import __version__
from krelay.cli.output import complain, hush, say, set_up_logging
from krelay.errors import KrelayError, UsageError

_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", message="%(prog)s %(version)s")
def cli() -> None:
    """Relay local TCP and UDP ports into a Kubernetes cluster, as a file declares them."""


_file = click.option(
    "-f",
    "--file",
    metavar="FILE",
    help="krelay.yaml or targets.txt; `-` is standard input.  [default: ./krelay.yaml]",
)
_verbose = click.option("-v", "--verbose", count=True, help="Say more; twice: everything.")


@cli.command()
@_file
@click.option("--embedded", is_flag=True, help="Run the agent on this machine, without a cluster.")
@_verbose
@click.argument("names", metavar="[NAME]...", nargs=-1)
def up(file: str | None, embedded: bool, verbose: int, names: tuple[str, ...]) -> int:
    """Relay the file's targets (or those NAMEd) until Ctrl-C."""
    from krelay.cli.up import run

    set_up_logging(verbose)
    return run(_load(file), names, embedded=embedded)


@cli.command()
@_file
@click.argument("path", metavar="[FILE]", required=False)
def check(file: str | None, path: str | None) -> int:
    """Say what is wrong with a file; nothing is started."""
    config = _load(file or path)
    count = len(config.targets)
    say(f"{config.path}: ok, {count} target{'' if count == 1 else 's'}")
    return 0


@cli.command()
def schema() -> int:
    """Print the JSON Schema of krelay.yaml."""
    import json

    from krelay import config

    say(json.dumps(config.schema(), indent=2))
    return 0


def _load(file: str | None) -> Any:
    from krelay import config

    text = sys.stdin.buffer.read() if file == "-" else None
    return config.load(file, environ=os.environ, text=text)


def main() -> int:
    """Run the command line; returns the exit code."""
    try:
        return cli.main(prog_name="krelay", standalone_mode=False) or 0
    except click.ClickException as exc:
        exc.show()
        return UsageError.exit_code
    except KrelayError as exc:
        complain(exc)
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except BrokenPipeError:
        hush()
        return 1
