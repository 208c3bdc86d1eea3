"""`krelay doctor`: print each finding when it is known, or all of them as JSON."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import click

from krelay.cli.output import echo, note
from krelay.cli.signals import on_signal, run_to_exit
from krelay.doctor import Finding, Source, Status, examine
from krelay.doctor.finding import exit_code
from krelay.errors import UsageError
from krelay.platforms import require_posix
from krelay.threads import in_thread

_INTERRUPTED = 130
_COLOURS = {Status.OK: "green", Status.WARNING: "yellow", Status.FAILED: "red"}
_STATUS_WIDTH, _CHECK_WIDTH = 9, 13
_INDENT = " " * (_STATUS_WIDTH + _CHECK_WIDTH)
_NARROWEST, _WIDEST = 40, 120


def doctor(
    source: Source | None,
    *,
    quick: bool,
    json: bool,
    bundle: str | None = None,
    context: str | None = None,
    namespace: str | None = None,
    kubeconfig: str | None = None,
) -> int:
    """Examine what `source` needs, print the findings, and return the exit code."""
    require_posix()
    return run_to_exit(
        _doctor(
            source,
            quick=quick,
            in_json=json,
            bundle=Path(bundle) if bundle else None,
            context=context,
            namespace=namespace,
            kubeconfig=kubeconfig,
        )
    )


async def _doctor(
    source: Source | None,
    *,
    quick: bool,
    in_json: bool,
    bundle: Path | None,
    context: str | None,
    namespace: str | None,
    kubeconfig: str | None,
) -> int:
    task = asyncio.current_task()
    assert task is not None
    on_signal(signal.SIGTERM, task.cancel)
    found: list[Finding] = []
    printer = None if in_json else _Printer()
    if bundle is not None and await in_thread(bundle.exists):  # before minutes of work
        raise UsageError(f"{bundle} exists", hint="choose another name for the bundle")
    try:
        async with aclosing(
            examine(
                source, quick=quick, context=context, namespace=namespace, kubeconfig=kubeconfig
            )
        ) as findings:
            async for finding in findings:
                found.append(finding)
                if printer is not None:
                    printer.print(finding)
    except asyncio.CancelledError:
        return _INTERRUPTED
    code = exit_code(found)
    if printer is None:
        findings_json = [finding.as_json() for finding in found]
        echo(json.dumps({"exit_code": code, "findings": findings_json}, indent=2))
    else:
        printer.end()
        echo(_summary(found))
    if bundle is not None:
        from krelay.doctor.bundle import write

        names = await write(bundle, found, source, context=context, kubeconfig=kubeconfig)
        note(f"{bundle}: {len(names)} files without known secrets; look before you share it")
    return code


class _Printer:
    """Prints findings as they come, and joins those of checks that were not made."""

    def __init__(self) -> None:
        self._context: str | None = None
        self._unmade: list[Finding] = []

    def print(self, finding: Finding) -> None:
        """Print a finding, now or with the next ones."""
        if finding.context != self._context:
            self.end()
            self._context = finding.context
            if finding.context is not None:
                echo(f"context {finding.context}:")
        if "needs" in finding.details:
            self._unmade.append(finding)
            return
        self.end()
        self._write(finding)

    def end(self) -> None:
        """Print the findings that were kept back."""
        unmade, self._unmade = self._unmade, []
        if len(unmade) == 1:
            self._write(unmade[0])
        elif unmade:
            names = ", ".join(finding.check for finding in unmade)
            text = f"need {unmade[0].details['needs']}: {names}"
            self._write(Finding(f"{len(unmade)} checks", Status.SKIPPED, text))

    def _write(self, finding: Finding) -> None:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        # Findings are clean already, and `echo` would remove the colours.
        for line in lines(finding, _width(), colour=colour):
            click.echo(line, color=colour)
        sys.stdout.flush()


def lines(finding: Finding, width: int | None, *, colour: bool = False) -> list[str]:
    """Return a finding as lines of at most `width` characters; None breaks no line.

    A command is never broken, so that it can be copied.
    """
    head = finding.status.value.ljust(_STATUS_WIDTH)
    if colour and finding.status in _COLOURS:
        head = click.style(head, fg=_COLOURS[finding.status])
    first, *rest = _wrapped(finding.text, width)
    found = [f"{head}{finding.check.ljust(_CHECK_WIDTH)}{first}".rstrip()]
    found += [_INDENT + line for line in rest]
    if finding.hint:
        first, *rest = _wrapped(f"hint: {finding.hint}", width and width - 2)
        found += [_INDENT + first, *(f"{_INDENT}  {line}" for line in rest)]
    if finding.command:
        found.append(f"  $ {finding.command}")
    return found


def _wrapped(text: str, width: int | None) -> list[str]:
    if width is None:
        return [text]
    room = max(width, _NARROWEST) - len(_INDENT)
    return textwrap.wrap(text, room, break_on_hyphens=False) or [""]


def _summary(found: Sequence[Finding]) -> str:
    counts = {status: sum(one.status is status for one in found) for status in Status}
    words = {
        Status.FAILED: "failed",
        Status.WARNING: "warning" if counts[Status.WARNING] == 1 else "warnings",
        Status.SKIPPED: "skipped",
        Status.OK: "ok",
    }
    return ", ".join(f"{counts[status]} {word}" for status, word in words.items() if counts[status])


def _width() -> int | None:
    """Return the columns to use; None if stdout is no terminal: a line is then one finding."""
    if not sys.stdout.isatty():
        return None
    return min(shutil.get_terminal_size().columns, _WIDEST)
