"""One line in the log for an API server that is lost, whatever the number of watches."""

from __future__ import annotations

import contextlib

import pytest

from krelay.cluster.contact import Contact
from krelay.errors import AccessDeniedError, UnreachableError

LOST = UnreachableError("connection refused")


@pytest.fixture(autouse=True)
def info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "krelay.cluster")


def test_a_server_lost_by_many_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    contact = Contact()
    with contextlib.ExitStack() as stack:
        watches = [stack.enter_context(contact.watching(f"/{n}")) for n in range(5)]
        for _ in range(2):
            for _ in range(3):
                for watch in watches:
                    watch.lost(LOST)
            for watch in watches:
                watch.good()
                watch.good()
    assert (
        caplog.messages
        == [
            "out of touch with the API server, the last known state stays: connection refused",
            "in touch with the API server again",
        ]
        * 2
    )


def test_a_right_is_lost_by_each_collection(caplog: pytest.LogCaptureFixture) -> None:
    contact = Contact()
    with contact.watching("/a") as first, contact.watching("/b") as second:
        first.lost(AccessDeniedError("no"))
        second.lost(AccessDeniedError("no"))
        second.good()
    assert caplog.messages == [
        "out of touch with /a, the last known state stays: no",
        "out of touch with /b, the last known state stays: no",
        "in touch with /b again",
    ]


def test_a_watch_that_ends_while_it_is_lost_is_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    contact = Contact()
    with contact.watching("/a") as first:
        first.lost(LOST)
        with contact.watching("/b") as second:
            second.lost(LOST)
        first.good()
    with contact.watching("/c") as third:
        third.lost(LOST)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "WARNING"]
