"""The commands and options of docker compose that krelay has under another name, or not at all."""

from __future__ import annotations

import click

from krelay.errors import UsageError

COMMANDS = {
    "attach": "`krelay logs --follow` prints new lines of the log",
    "config": "`krelay check` checks the file",
    "kill": "`krelay down` stops the running krelay",
    "ls": "`krelay ps` lists every krelay that runs",
    "rm": "`krelay down` stops the running krelay, and leaves nothing to remove",
    "start": "`krelay up -d` relays in the background",
    "stats": "`krelay status --watch` shows the throughput",
    "stop": "`krelay down` stops the running krelay",
    "top": "`krelay status --watch` shows the state and the throughput",
    "version": "`krelay --version` prints it",
}
_CLEAN = "`krelay down` alone already removes what krelay made in the cluster"
_ALL = "`krelay ps` alone lists every krelay that runs; none is listed once it has ended"
_DRAIN = "the file's `tunnel.drain` is the time that connections get to finish"
_RESTART = "`krelay restart` begins anew with another agent"
FOLLOW = "`krelay logs --follow` prints new lines; `-f` is short for `--file`"
"""The hint of `krelay logs` if what follows `-f` is no file that krelay runs."""
OPTIONS = {
    "down": {
        "-v": _CLEAN,
        "--volumes": _CLEAN,
        "--rmi": _CLEAN,
        "--remove-orphans": _CLEAN,
        "-t": _DRAIN,
        "--timeout": _DRAIN,
    },
    "logs": {
        "-f": FOLLOW,
        "--tail": "`krelay logs --lines N` prints the last N lines",
        "-t": "every line of `krelay logs` begins with its time",
        "--timestamps": "every line of `krelay logs` begins with its time",
    },
    "ps": {
        "-a": _ALL,
        "--all": _ALL,
        "-q": "`krelay ps -o json` prints the pids for a program",
        "--quiet": "`krelay ps -o json` prints the pids for a program",
    },
    "up": {
        "--build": _RESTART,
        "--force-recreate": _RESTART,
        "--wait": "`krelay up -d` returns once every forward is ready",
        "--wait-timeout": "`krelay up -d --timeout TIME` limits the wait",
    },
}


def check_command(word: str) -> None:
    """Raise UsageError with krelay's own way if `word` is a command that only compose has."""
    if hint := COMMANDS.get(word):
        raise UsageError(f"krelay has no command `{word}`", hint=hint)


def check_option(command: str, error: click.NoSuchOption | click.BadOptionUsage) -> None:
    """Raise UsageError with krelay's own way if `error` is about an option of compose."""
    hint = OPTIONS.get(command, {}).get(error.option_name)
    if hint is None:
        return
    if isinstance(error, click.NoSuchOption):
        raise UsageError(f"`krelay {command}` has no option `{error.option_name}`", hint=hint)
    raise UsageError(f"`{error.option_name}` requires an argument", hint=hint)
