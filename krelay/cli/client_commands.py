"""Commands that ask the krelay that runs a file: `status`, `wait`, `port`, `logs`, `restart` and
`down`.

Each returns its exit code, or raises a KrelayError: NotRunningError if no krelay runs the file,
UsageError for an unknown target, NotReadyError if `wait` ends too early.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from krelay.cli.output import echo, echo_event, in_json, note
from krelay.config.grammar import quote
from krelay.errors import KrelayError, NotReadyError, UsageError
from krelay.state.error_codec import to_json
from krelay.state.snapshot import connect_address
from krelay.state.states import ForwardState, State, readiness
from krelay.status.client import Changes, NotRunningError, ask, is_running

if TYPE_CHECKING:
    from rich.text import Text

    from krelay.cli.terminal.figures import Rates

_ANSWER_DEADLINE = 10.0
_WATCH_EVERY = 1.0
_LOOK_EVERY = 0.25
"""Seconds between two looks for a krelay that does not run yet, or has no room for a subscriber."""
_WAIT_ANSWER_DEADLINE = 5.0
"""Seconds, also for the last look: a busy krelay can still say what is not ready."""
_FOLLOW_EVERY = 0.3
_DOWN_LOOK_EVERY = 0.1
_CLEANUP = 30.0
"""Seconds that krelay has to delete its agents after the drain."""
_RESTART_DEADLINE = 300.0
"""Seconds, which include the start of an agent."""
_UNLIMITED = 10_000
"""Columns of output that is not to be cut."""

Snapshot = Mapping[str, Any]
"""The answer of `/v1/status`."""


# -- status ----------------------------------------------------------------------------------------


def status(file: str, names: Collection[str], *, output: str, watch: bool) -> int:
    """Print the state of the forwards of `names`, or of all; `output` is `text`, `wide` or `json`.

    With `watch`, refresh until interrupted.
    """
    found = ask_snapshot(file, names)
    check_names(file, names, _targets(found))
    if watch:
        _watch(file, names, output)
    elif output == "json":
        echo(json.dumps(found, indent=2))
    else:
        if not sys.stdout.isatty():
            from krelay.cli.terminal.view import out_of_sync

            # It is above the table at a terminal, and must not be missed in a pipe.
            for line in out_of_sync(found, datetime.now(UTC)):
                note(line.plain)
        _print(_lines(found, None, wide=output == "wide"))
    return 0


def _watch(file: str, names: Collection[str], output: str) -> None:
    """Show the state until interrupted, also over a restart of krelay."""
    from krelay.cli.terminal.figures import RateMeter
    from krelay.cli.terminal.screen import supports_live_table

    if output != "json" and supports_live_table():
        from krelay.cli.terminal.watch import watch

        return watch(lambda: ask_snapshot(file, names), wide=output == "wide")
    meter = RateMeter()
    while True:
        try:
            found = ask_snapshot(file, names)
        except NotRunningError as exc:
            found = {"error": to_json(exc)}
        if output == "json":
            echo(json.dumps(found))
        elif "error" in found:
            echo(f"{found['error']['message']}\n")
        else:
            rates = meter.update(found, time.monotonic())
            _print(_lines(found, rates, wide=output == "wide"))
            echo("")
        time.sleep(_WATCH_EVERY)


def ask_snapshot(file: str, names: Collection[str] = ()) -> dict[str, Any]:
    """Return the snapshot with the forwards of `names`, or with all forwards if that is empty."""
    found: dict[str, Any] = ask(file, "GET", "/v1/status", timeout=_ANSWER_DEADLINE)
    if names:
        found["forwards"] = [f for f in found["forwards"] if f["target"] in names]
    return found


def _lines(snapshot: Snapshot, rates: Rates | None, *, wide: bool) -> Sequence[Text]:
    """Return the table, at a terminal below a line about the run."""
    from krelay.cli.terminal import view

    now = datetime.now(UTC)
    if sys.stdout.isatty():
        columns = shutil.get_terminal_size().columns
        return view.summary(snapshot, now, max(1, columns - 1), rates=rates, wide=wide)
    return view.lines(snapshot, now, rates, wide=wide)


def _print(lines: Sequence[Text]) -> None:
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=_UNLIMITED)
    for line in lines:
        with console.capture() as captured:
            console.print(line, no_wrap=True)
        echo(captured.get().rstrip())


# -- wait ------------------------------------------------------------------------------------------


def wait(file: str, names: Collection[str], *, timeout: float) -> int:
    """Wait until the forwards of `names`, or all, are ready, at most `timeout` seconds."""
    found = wait_ready(file, names, timeout=timeout)
    count = sum(not names or forward["target"] in names for forward in found["forwards"])
    echo("1 forward is ready" if count == 1 else f"{count} forwards are ready")
    return 0


def wait_ready(file: str, names: Collection[str], *, timeout: float) -> Snapshot:
    """Return the snapshot once the forwards of `names`, or all, are ready.

    krelay may be about to start.

    Raises:
        NotReadyError: they are not ready within `timeout` seconds.
    """
    until = time.monotonic() + timeout
    changes: Changes | None = None
    checked = noted = False
    try:
        while True:
            found, missing = _try_snapshot(file)
            relayed = _targets(found) if found else set()
            if not checked and not relayed.issuperset(names):
                check_names(file, names, relayed)
                checked = True
            late = unready(found, names) if found else [missing]
            if found and not late:
                return found
            left = until - time.monotonic()
            if left <= 0:
                raise NotReadyError(f"not ready after {timeout:g} s", late)
            if not found and not noted:
                note(f"{missing}; waiting")
                noted = True
            if found and changes is None and (changes := Changes.subscribe(file)):
                continue  # the state may have changed before the subscription
            if found and changes and changes.wait(left):
                continue
            if changes is not None:
                changes.close()
                changes = None
            time.sleep(min(_LOOK_EVERY, left))
    finally:
        if changes is not None:
            changes.close()


def print_routes(snapshot: Snapshot, names: Collection[str]) -> None:
    """Print where the forwards of `names`, or all, listen, as `krelay up` does."""
    for forward in map(ForwardState.from_json, snapshot["forwards"]):
        if not names or forward.target in names:
            for line in forward.routes():
                if in_json():
                    echo_event(line, forward.target)
                else:
                    echo(line)


def _try_snapshot(file: str) -> tuple[Snapshot | None, str]:
    """Return the snapshot; or None and the reason for that."""
    try:
        return ask(file, "GET", "/v1/status", timeout=_WAIT_ANSWER_DEADLINE), ""
    except KrelayError as exc:
        return None, exc.message


def check_names(file: str, names: Collection[str], relayed: Collection[str]) -> None:
    """Check that each name is that of a target in the file or of one that is relayed."""
    from krelay.config.sources import Selection

    others = tuple(name for name in names if name not in relayed)
    if others:
        Selection(file, others, environ=os.environ).load()


def _targets(snapshot: Snapshot) -> set[str]:
    return {forward["target"] for forward in snapshot["forwards"]}


def unready(snapshot: Snapshot, names: Collection[str] = ()) -> list[str]:
    """Return a line for each forward, or target of `names`, that is not ready.

    Forwards that an edit has removed and that only drain do not count.
    """
    found = readiness([ForwardState.from_json(each) for each in snapshot["forwards"]], names)
    missing = names if found.starting else found.unknown
    lines = [str(forward) for forward in found.waiting]
    lines += [f"{name}: not relayed (yet)" for name in sorted(set(missing))]
    return lines or (["krelay is starting"] if found.starting else [])


# -- port ------------------------------------------------------------------------------------------


def port(file: str, name: str, wanted: str | None, *, as_json: bool) -> int:
    """Print the local address of a target, or of its remote port `wanted`: a number or a name."""
    found = ask_snapshot(file)
    check_names(file, [name], _targets(found))
    forwards = [
        forward
        for forward in map(ForwardState.from_json, found["forwards"])
        if forward.target == name and forward.state is not State.DRAINING
    ]
    if not forwards:
        raise KrelayError(f"{name} is not relayed (yet)", hint="`krelay status` shows what is")
    chosen = [forward for forward in forwards if wanted in (None, *_port_names(forward))]
    if len(chosen) != 1:
        ports = ", ".join(_port_names(forward)[-1] for forward in forwards)
        if not chosen:
            raise UsageError(f"{name} has no port {quote(wanted)}", hint=f"it has: {ports}")
        raise UsageError(f"{name} has several ports", hint=f"name one of them: {ports}")
    (forward,) = chosen
    if not forward.listen:
        raise KrelayError(f"{forward.name} has no local address: {forward.reason}")
    address = connect_address(forward.listen[0])
    if as_json:
        fields = {"host": address.host, "port": address.port, "protocol": forward.protocol}
        echo(json.dumps({"target": name, "address": str(address), **fields, "to": forward.to}))
    else:
        echo(str(address))
    return 0


def _port_names(forward: ForwardState) -> tuple[str, ...]:
    """Return the words that name the port of a forward: `53` and `53/udp`."""
    remote = forward.remote
    return remote, f"{remote}/{forward.protocol}" if forward.protocol else remote


# -- logs ------------------------------------------------------------------------------------------


def logs(file: str, lines: int, *, names: Collection[str] = (), follow: bool) -> int:
    """Print the last `lines` of krelay's log, or of those about the targets `names`; with `follow`,
    print new ones until krelay ends."""
    if names:
        check_names(file, names, _targets(ask_snapshot(file)))
    try:
        found = _log(file, names, lines=lines)
    except NotRunningError as exc:
        from krelay.status import log_file

        if log := log_file.find(file):
            raise NotRunningError(exc.message, hint=f"what the last one logged: {log}") from exc
        raise
    last = found["last"]
    _print_lines(found)
    while follow:
        time.sleep(_FOLLOW_EVERY)
        try:
            found = _log(file, names, after=last)
            if found["last"] < last:  # krelay has restarted, and counts its lines from 1 again
                found = _log(file, names)
        except NotRunningError:
            note("krelay has ended")
            break
        _print_lines(found)
        last = found["last"]
    return 0


def _log(file: str, names: Collection[str], **body: int) -> Any:
    about = {"targets": list(names)} if names else {}
    return ask(file, "GET", "/v1/logs", {**body, **about}, timeout=_ANSWER_DEADLINE)


def _print_lines(found: Any) -> None:
    for line in found["lines"]:
        echo(line["text"])


# -- restart ---------------------------------------------------------------------------------------


def restart(file: str, names: Collection[str], *, as_json: bool) -> int:
    """Make krelay begin anew with the targets `names`, or with everything."""
    if names:
        check_names(file, names, _targets(ask_snapshot(file)))
    body = {"targets": list(names)}
    found = ask(file, "POST", "/v1/restart", body, timeout=_RESTART_DEADLINE)
    if as_json:
        echo(json.dumps(found))
        return 0
    count, agents = found["connections"], found["agents"]
    what = ", ".join(found["targets"]) if names else f"{len(found['targets'])} targets"
    if agents:
        what += " and the agent" if agents == 1 else f" and the agents of {agents} contexts"
    echo(f"restarted {what}; {count} connection{'s' * (count != 1)} reset")
    return 0


# -- down ------------------------------------------------------------------------------------------


def down(file: str) -> int:
    """Stop krelay, and wait until it has ended."""
    ending = ask(file, "POST", "/v1/stop", timeout=_ANSWER_DEADLINE)
    pid, drain = ending["pid"], float(ending["drain"])
    if live := ending.get("live", 0):
        note(f"{live} connections get {drain:g} s to finish")
    until = time.monotonic() + drain + _CLEANUP
    while is_running(file):
        if time.monotonic() >= until:
            raise KrelayError(
                f"krelay (pid {pid}) still runs after {drain + _CLEANUP:g} s",
                hint=f"`kill {pid}` makes it drop the remaining connections",
            )
        time.sleep(_DOWN_LOOK_EVERY)
    echo(f"krelay (pid {pid}) has ended")
    return 0
