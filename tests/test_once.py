"""OnceUntilChanged: a failure that repeats is told apart from a new one."""

from __future__ import annotations

import pytest

from krelay.errors import KrelayError, TunnelError
from krelay.once import OnceUntilChanged


def test_the_first_failure_is_new() -> None:
    assert OnceUntilChanged().is_new(OSError(2, "no such file"))


def test_an_equal_failure_is_a_repeat() -> None:
    once = OnceUntilChanged()
    once.is_new(OSError(2, "no such file"))
    assert not once.is_new(OSError(2, "no such file"))
    assert not once.is_new(OSError(2, "no such file"))


@pytest.mark.parametrize("other", [KrelayError("shut"), TunnelError("open")], ids=["type", "text"])
def test_a_failure_of_another_type_or_text_is_new(other: Exception) -> None:
    once = OnceUntilChanged()
    once.is_new(TunnelError("shut"))
    assert once.is_new(other)
    assert once.is_new(TunnelError("shut"))


def test_a_failure_is_new_again_after_clear() -> None:
    once = OnceUntilChanged()
    once.is_new(TunnelError("shut"))
    once.clear()
    assert once.is_new(TunnelError("shut"))
