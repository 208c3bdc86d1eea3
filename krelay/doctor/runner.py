"""Runner: run checks at once as far as they allow, and yield their findings in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from krelay.doctor.finding import Finding, Status, failed, failure, skipped
from krelay.errors import KrelayError
from krelay.tasks import TaskGroup

logger = logging.getLogger("krelay.doctor")

DEADLINE = 5.0


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    It runs once the checks that it `needs` have been made, and is skipped if one of them failed or
    was skipped. It also waits for the checks of `after`, whatever they find, so that they do not
    disturb each other. `deadline` is in seconds; a check that is late has failed with `exit_code`.
    """

    name: str
    run: Callable[[], Awaitable[Finding | Sequence[Finding]]]
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    deadline: float = DEADLINE
    exit_code: int = KrelayError.exit_code


async def run_checks(checks: Sequence[Check]) -> AsyncGenerator[Finding]:
    """Run `checks`, and yield their findings in the order of `checks`, each as soon as it is known.

    The end of the iteration ends the checks that still run.
    """
    made: dict[str, asyncio.Task[list[Finding]]] = {}
    async with TaskGroup() as tasks:
        for check in checks:
            assert check.name not in made, check.name
            made[check.name] = tasks.create_task(_make(check, dict(made)), name=check.name)
        try:
            for task in made.values():
                for finding in await task:
                    yield finding
        finally:
            for task in made.values():
                task.cancel()


async def _make(check: Check, made: dict[str, asyncio.Task[list[Finding]]]) -> list[Finding]:
    """Return what a check finds. Errors are findings: they must not end the other checks."""
    for name in (*check.needs, *check.after):
        if name in made:
            await asyncio.wait((made[name],))
    for name in check.needs:
        if name in made and _is_missing(made[name].result()):
            return [skipped(check.name, f"needs: {name}", needs=name)]
    try:
        async with asyncio.timeout(check.deadline):
            found = await check.run()
    except TimeoutError:
        late = f"no answer within {check.deadline:g} s"
        return [failed(check.name, late, exit_code=check.exit_code)]
    except KrelayError as exc:
        return [failure(check.name, exc)]
    except Exception as exc:
        logger.debug("the check %s failed", check.name, exc_info=exc)
        text = f"internal error: {type(exc).__name__}: {exc}"
        return [failed(check.name, text, "please report it; -v shows the traceback")]
    return [found] if isinstance(found, Finding) else list(found)


def _is_missing(findings: Sequence[Finding]) -> bool:
    return any(one.status in (Status.FAILED, Status.SKIPPED) for one in findings)
