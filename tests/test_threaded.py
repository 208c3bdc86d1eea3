"""A loop in a thread: what it gives, how it fails, and that nobody waits for it without an end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from krelay.errors import KrelayError, NotReadyError, TunnelError
from krelay.threaded import Threaded


class Runs:
    """Starts and ends as it is told; `calls` has what was called."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.waits = False
        self.fails = False
        self.hangs = threading.Event()
        self.hangs.set()
        self.begun = threading.Event()

    async def start(self) -> int:
        self.begun.set()
        self.hangs.wait()  # the whole loop, where it is not set
        if self.fails:
            raise TunnelError("no")
        try:
            if self.waits:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.calls.append("cancelled")
            raise
        return threading.get_ident()

    async def end(self, *, cut: bool) -> None:
        self.hangs.wait()
        self.calls.append("cut" if cut else "end")
        if self.fails:
            raise TunnelError("no")


@contextmanager
def threaded(runs: Runs, grace: float = 5.0) -> Iterator[Threaded[int]]:
    """Whatever happens, its thread has ended in the end."""
    made = Threaded(runs, grace=grace)
    try:
        yield made
    finally:
        runs.hangs.set()
        made._thread.join(5)
        assert not made._thread.is_alive()
        assert made._loop.is_closed()


def test_it_runs_in_another_thread_until_it_is_ended() -> None:
    runs = Runs()
    with threaded(runs) as thread:
        assert thread.start(5) == thread._thread.ident != threading.get_ident()
        assert runs.calls == []
        thread.end(cut=False)
        assert not thread._thread.is_alive()
    assert runs.calls == ["end"]


def test_cut_is_said() -> None:
    runs = Runs()
    with threaded(runs) as thread:
        thread.start(5)
        thread.end(cut=True)
    assert runs.calls == ["cut"]


def test_a_failure_at_the_start_is_the_callers() -> None:
    runs = Runs()
    runs.fails = True
    with threaded(runs) as thread, pytest.raises(TunnelError):
        thread.start(5)


def test_a_failure_at_the_end_is_the_callers_unless_he_has_one_himself() -> None:
    for cut in (False, True):
        runs = Runs()
        with threaded(runs) as thread:
            thread.start(5)
            runs.fails = True
            if cut:
                thread.end(cut=True)
            else:
                with pytest.raises(TunnelError):
                    thread.end(cut=False)


def test_a_loop_that_hangs_at_the_start_is_given_up(blocking_calls: None) -> None:
    runs = Runs()
    runs.hangs.clear()
    with threaded(runs, grace=0.05) as thread:
        with pytest.raises(NotReadyError, match="no word from the relaying thread in 0.15 s"):
            thread.start(0.1)


def test_a_loop_that_hangs_at_the_end_is_given_up(blocking_calls: None) -> None:
    runs = Runs()
    with threaded(runs, grace=0.1) as thread:
        thread.start(5)
        runs.hangs.clear()
        with pytest.raises(KrelayError, match="did not end in 0.1 s"):
            thread.end(cut=False)


def test_who_gives_up_waiting_for_the_start_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As for a Ctrl-C, which comes anywhere."""
    runs = Runs()
    runs.waits = True
    with threaded(runs) as thread:

        def interrupted(timeout: float) -> int:
            runs.begun.wait()
            raise KeyboardInterrupt

        monkeypatch.setattr(thread._ready, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            thread.start(5)
        assert not thread._thread.is_alive()
    assert runs.calls == ["cancelled"]


def test_what_is_ended_before_it_began_never_begins() -> None:
    runs = Runs()
    with threaded(runs) as thread:
        thread._tell(thread._cancel)
        with pytest.raises(KrelayError, match="ended before it was ready"):
            thread.start(5)
    assert not runs.begun.is_set()


def test_what_has_ended_already_ends_again_without_a_word() -> None:
    runs = Runs()
    with threaded(runs) as thread:
        thread.start(5)
        thread.end(cut=False)
        thread.end(cut=True)
    assert runs.calls == ["end"]
