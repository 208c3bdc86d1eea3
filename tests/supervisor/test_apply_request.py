"""What somebody waits for ends once, in one way."""

from __future__ import annotations

from krelay.errors import KrelayError
from krelay.model import Config
from krelay.supervisor.apply_request import ApplyRequest


def test_one_that_is_replaced_or_given_up_is_over() -> None:
    first, second = ApplyRequest(Config(()), "first"), ApplyRequest(Config(()), "second")
    first.replace(second)
    assert first.done.is_set()
    assert first.newer is second
    second.give_up(KrelayError("too late"))
    assert second.done.is_set()
    assert str(second.failure) == "too late"


def test_one_that_is_over_stays_as_it_is() -> None:
    done = ApplyRequest(Config(()), "done")
    done.done.set()
    done.replace(ApplyRequest(Config(()), "newer"))
    done.give_up(KrelayError("too late"))
    assert (done.newer, done.failure) == (None, None)
