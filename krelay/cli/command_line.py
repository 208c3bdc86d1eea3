"""Run the command line of this process: its errors, its exit code, and what it imports ahead."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress

import click

from krelay.cli.output import (
    UNWRITABLE,
    open_output,
    print_bug,
    print_error,
    print_usage_error,
    repeat_filter,
    set_up_logging,
    silence_stdout,
)
from krelay.errors import KrelayError, UsageError

_INTERRUPTED = 130


def wants_json(command: click.Command, args: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Return whether a command line asks for a log in JSON.

    This is known before click parses the line, so that errors in the line are JSON too.
    """
    given = list(args[: args.index("--")] if "--" in args else args)
    if isinstance(command, click.Group):
        word = next((arg for arg in given if not arg.startswith("-")), "")
        command = command.commands.get(word, command)
    # An unknown command may be a misspelt one that has the option.
    unknown = isinstance(command, click.Group) and bool(given)
    if not unknown and not any(param.name == "log_format" for param in command.params):
        return False
    found = environ.get("KRELAY_LOG_FORMAT", "")
    for number, arg in enumerate(given):
        option, equals, value = arg.partition("=")
        if option == "--log-format":
            found = value if equals else "".join(given[number + 1 : number + 2])
    return found == "json"


def run_command(command: click.Command, name: str) -> int:
    """Run the command line of this process, print its error if any, and return the exit code."""
    open_output()
    if hasattr(signal, "SIGCHLD"):
        # If it is ignored, wait(2) does not return the exit status of a child.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if wants_json(command, sys.argv[1:], os.environ):
        set_up_logging(0, json=True)
    try:
        return _run(command, name)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except SystemExit:
        raise
    except BaseException as exc:  # a CancelledError is not an Exception
        print_bug(exc)
        return KrelayError.exit_code
    finally:
        repeat_filter.flush()


def _run(command: click.Command, name: str) -> int:
    try:
        return command.main(prog_name=name, standalone_mode=False) or 0
    except click.ClickException as exc:
        print_usage_error(exc)
        return UsageError.exit_code
    except KrelayError as exc:
        print_error(exc)
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except BrokenPipeError:
        silence_stdout()
        return 1
    except OSError as exc:
        if exc.errno not in UNWRITABLE:
            raise
        silence_stdout()
        print_error(KrelayError(f"cannot write to stdout: {exc.strerror}"))
        return 1


def preload() -> None:
    """Import what reaches a cluster, in a thread, while the command reads its file.

    The import of aiohttp loads the system's certificates, and the agent's program is compressed:
    both leave the interpreter to other threads. The end of the process waits for the thread, since
    OpenSSL must not be cleaned up while it loads certificates.

    From here on Ctrl-C ends the process at once, until the event loop handles it. As an exception
    within the import system it would leave a lock held, for which the other thread waits for ever.
    """
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
    threading.Thread(target=_preload, name="preload").start()


def _interrupted(number: int, frame: object) -> None:
    os._exit(_INTERRUPTED)


def _preload() -> None:
    with suppress(Exception):  # it is raised again where it is needed
        from krelay import payload

        payload.payload()
        from krelay.cluster import agent_lifecycle, api, resolve  # noqa: F401
