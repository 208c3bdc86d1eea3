"""Log lines about a target, a tunnel or a stream."""

from __future__ import annotations

import logging

import pytest

from krelay.mux.log import about

LOGGER = logging.getLogger("krelay.test")


def test_a_line_begins_with_the_name_and_has_the_fields(caplog: pytest.LogCaptureFixture) -> None:
    about(LOGGER, target="web", name="web[80]").warning("100 %% of %s", "it")
    (record,) = caplog.records
    assert record.getMessage() == "web[80]: 100 % of it"
    assert record.__dict__["target"] == "web"
    assert "tunnel" not in record.__dict__


def test_the_most_specific_field_names_the_line(caplog: pytest.LogCaptureFixture) -> None:
    about(LOGGER, target="web", tunnel="t1", stream="t1/s3").error("cut")
    (record,) = caplog.records
    assert record.getMessage() == "t1/s3: cut"
    assert record.__dict__["tunnel"] == "t1"


def test_a_percent_sign_in_a_name_is_text(caplog: pytest.LogCaptureFixture) -> None:
    about(LOGGER, target="a%sb").error("failed: %s", "x")
    assert caplog.records[0].getMessage() == "a%sb: failed: x"


def test_an_exception_keeps_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError("odd")
    except ValueError:
        about(LOGGER, tunnel="t1").exception("failed")
    assert caplog.records[0].exc_info is not None
