"""Running checks: their order, what they wait for, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

from krelay.doctor.finding import Finding, Status, exit_code, failed, ok, skipped, warning
from krelay.doctor.runner import Check, run_checks
from krelay.errors import CredentialsError


async def report(*checks: Check) -> list[Finding]:
    async with aclosing(run_checks(checks)) as found:
        return [finding async for finding in found]


def returning(name: str, *needs: str, status: Status = Status.OK) -> Check:
    async def run() -> Finding:
        return Finding(name, status, name)

    return Check(name, run, needs)


async def test_findings_come_in_the_order_of_the_checks_whichever_ends_first() -> None:
    second_ran = asyncio.Event()

    async def first() -> Finding:
        await second_ran.wait()
        return ok("first", "")

    async def second() -> Sequence[Finding]:
        second_ran.set()
        return [ok("second", "a"), ok("second", "b")]

    found = await report(Check("first", first), Check("second", second))
    assert [(one.check, one.text) for one in found] == [
        ("first", ""),
        ("second", "a"),
        ("second", "b"),
    ]


async def test_a_check_is_skipped_if_one_that_it_needs_failed_or_was_skipped() -> None:
    found = await report(
        returning("a", status=Status.FAILED),
        returning("b", "a"),
        returning("c", "b"),
        returning("d", status=Status.WARNING),
        returning("e", "d", "unknown"),
    )
    assert [one.status.value for one in found] == ["failed", "skipped", "skipped", "warning", "ok"]
    assert found[1].text == "needs: a"


async def test_a_check_waits_for_those_after_which_it_comes_even_if_they_fail() -> None:
    order = []

    async def run(name: str, error: bool) -> Finding:
        await asyncio.sleep(0)
        order.append(name)
        if error:
            raise CredentialsError("no")
        return ok(name, "")

    found = await report(
        Check("a", lambda: run("a", True)), Check("b", lambda: run("b", False), after=("a",))
    )
    assert order == ["a", "b"]
    assert [one.status.value for one in found] == ["failed", "ok"]


async def test_errors_are_findings() -> None:
    async def run(error: Exception) -> Finding:
        raise error

    found = await report(
        Check("a", lambda: run(CredentialsError("expired", hint="log in"))),
        Check("b", lambda: run(ZeroDivisionError("oh"))),
    )
    assert [(one.exit_code, one.text) for one in found] == [
        (4, "expired"),
        (1, "internal error: ZeroDivisionError: oh"),
    ]
    assert found[0].hint == "log in"


async def test_a_late_check_has_failed_with_its_exit_code() -> None:
    async def run() -> Finding:
        await asyncio.Event().wait()
        raise AssertionError

    (found,) = await report(Check("a", run, deadline=0.01, exit_code=4))
    assert (found.status, found.text, found.exit_code) == (
        Status.FAILED,
        "no answer within 0.01 s",
        4,
    )


async def test_closing_ends_the_checks_that_still_run() -> None:
    ended = asyncio.Event()

    async def run() -> Finding:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    async with aclosing(run_checks([returning("a"), Check("b", run)])) as found:
        async for one in found:
            assert one.check == "a"
            break
    assert ended.is_set()


def test_the_exit_code_is_that_of_the_first_failure() -> None:
    findings = [ok("a", ""), warning("b", ""), skipped("c", "")]
    assert exit_code(findings) == 0
    assert exit_code([*findings, failed("d", "", exit_code=4), failed("e", "")]) == 4


def test_text_is_clean_and_json_has_no_empty_values() -> None:
    found = failed("a", "x\x1b[31m\ny", "h\n", exit_code=4, port=1)
    assert found.text == "x y"
    assert found.as_json() == {
        "check": "a",
        "status": "failed",
        "text": "x y",
        "hint": "h",
        "details": {"port": 1},
        "exit_code": 4,
    }
