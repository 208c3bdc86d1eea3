"""Suppression of repeated log lines."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from krelay.cli import log_repeats as module
from krelay.cli.log_repeats import FIRST, LONGEST, RepeatFilter
from krelay.cli.output import LineFormatter
from krelay.mux.log import about


@dataclass
class Log:
    """Handlers of the root logger that share a filter with a fake clock."""

    now: float = 1000.0
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.repeats = RepeatFilter(lambda: self.now)
        self.handlers = [self._handler(self.lines), self._handler([])]

    def _handler(self, into: list[str]) -> logging.Handler:
        formatter = LineFormatter(colour=False)

        class Kept(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                into.append(formatter.format(record)[9:])

        found = Kept()
        found.addFilter(self.repeats)
        return found

    def take(self) -> list[str]:
        """Return the lines written since the last call."""
        found, self.lines[:] = self.lines[:], []
        return found


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    made = Log()
    root, ours = logging.getLogger(), logging.getLogger("krelay")
    monkeypatch.setattr(root, "handlers", made.handlers)
    ours.setLevel(logging.DEBUG)
    yield made
    made.repeats.flush()


def warn(reason: str = "refused", name: str = "web", logger: str = "krelay.listener") -> None:
    logging.getLogger(logger).warning("%s: connection reset: %s", name, reason)


def test_the_first_line_passes_and_repeats_are_counted(log: Log) -> None:
    for _ in range(30):
        warn()
        log.now += 1
    assert log.take() == ["warning: web: connection reset: refused"]
    log.now += FIRST
    warn("another")
    assert log.take() == [
        "warning: web: connection reset: refused (29 more in the last minute)",
        "warning: web: connection reset: another",
    ]


def test_all_handlers_of_a_log_write_the_same_lines(log: Log) -> None:
    more: list[str] = []
    logging.getLogger().addHandler(log._handler(more))
    for _ in range(3):
        warn()
    log.repeats.flush()
    assert more == log.take()
    assert len(more) == 2


def test_another_reason_subject_level_or_logger_passes_at_once(log: Log) -> None:
    for _ in range(2):
        warn()
        warn("timed out")
        warn(name="db")
        warn(logger="krelay.tunnel")
        logging.getLogger("krelay.listener").error("%s: connection reset: %s", "web", "refused")
    assert len(log.take()) == 5


def test_fields_of_a_record_are_its_subject(log: Log) -> None:
    logger = logging.getLogger("krelay.listener")
    for _ in range(2):
        about(logger, target="web", name="web[80]").warning("connection reset")
        about(logger, target="web", name="web[443]").warning("connection reset")
        about(logger, tunnel="p1t1", name="web[443]").warning("connection reset")
    assert len(log.take()) == 3
    about(logging.getLogger("krelay.tunnel"), target="web", name="web[80]").info("up")
    about(logger, target="web", name="web[80]").warning("connection reset")
    assert log.take() == ["web[80]: up"]


def test_streams_of_one_target_repeat_each_other(log: Log) -> None:
    logger = logging.getLogger("krelay.listener")
    for number in range(3):
        about(logger, target="web", stream=f"p1t1#{number}").warning("connection reset")
    assert log.take() == ["warning: p1t1#0: connection reset"]


def test_a_line_that_differs_by_a_number_or_a_generated_name_is_a_repeat(log: Log) -> None:
    logger = logging.getLogger("krelay.tunnel")
    for pod in ("krelay-server-8wz4j-jqc5w", "krelay-server-x7k2p-bbcdf"):
        logger.warning('p1t1: no tunnel: pods "%s" is gone after %d s', pod, len(pod))
    assert len(log.take()) == 1


def test_counts_are_reported_less_and_less_often(log: Log) -> None:
    for _ in range(4 * 3600 // 14):
        warn()
        log.now += 14
    told = log.take()
    assert told[1] == "warning: web: connection reset: refused (4 more in the last minute)"
    assert told[2].endswith(" more in the last 2 minutes)")
    assert told[-1].endswith(" more in the last 16 minutes)")
    assert len(told) < 25


def test_a_line_is_new_after_a_quiet_period(log: Log) -> None:
    warn()
    log.now += FIRST + 1
    warn()
    assert log.take() == 2 * ["warning: web: connection reset: refused"]


def test_info_about_a_subject_makes_its_warnings_new(log: Log) -> None:
    tunnel = logging.getLogger("krelay.tunnel")
    for _ in range(2):
        tunnel.warning("%s: tunnel lost: %s", "p1t1", "it ended")
        tunnel.warning("%s: tunnel lost: %s", "p1t2", "it ended")
        tunnel.warning("%s: tunnel lost: %s", "p1t1", "it ended")
        tunnel.info("%s: tunnel up", "p1t1")
    assert log.take() == [
        "warning: p1t1: tunnel lost: it ended",
        "warning: p1t2: tunnel lost: it ended",
        "warning: p1t1: tunnel lost: it ended (1 more in the last second)",
        "p1t1: tunnel up",
        "warning: p1t1: tunnel lost: it ended",
        "warning: p1t1: tunnel lost: it ended (1 more in the last second)",
        "p1t1: tunnel up",
    ]


def test_info_always_passes_except_an_agent_s_progress(log: Log) -> None:
    for number in range(2):
        logging.getLogger("krelay.resolve").info("web: -> 10.0.0.1:80")
        logging.getLogger("krelay.agent").info("agent: waiting for the Job's pod")
        logging.getLogger("krelay.agent").info("agent: embedded, process %d", number)
    assert log.take() == [
        "web: -> 10.0.0.1:80",
        "agent: waiting for the Job's pod",
        "agent: embedded, process 0",
        "web: -> 10.0.0.1:80",
        "agent: embedded, process 1",
    ]


def test_debug_and_answers_to_the_user_always_pass(log: Log) -> None:
    for _ in range(2):
        logging.getLogger("krelay.listener").debug("web: again")
        logging.getLogger("krelay.reload").error("krelay.yaml:1:1: wrong")
        logging.getLogger("krelay.cli").error("it failed")
    assert len(log.take()) == 6


def test_every_job_left_behind_is_named(log: Log) -> None:
    names = [f"tools/krelay-server-kx7d9q2{letter}" for letter in "bcdf"]
    for name in names:
        logging.getLogger("krelay.jobs").warning("the Job %s may be left behind", name)
    assert log.take() == [f"warning: the Job {name} may be left behind" for name in names]


def test_a_repeated_bug_has_one_traceback(log: Log) -> None:
    for _ in range(5):
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            logging.getLogger("krelay.health").exception("web: probing failed")
    log.repeats.flush()
    told = log.take()
    assert [line.count("Traceback") for line in told] == [1, 0]


def test_a_flush_reports_the_counted_warnings(log: Log) -> None:
    for _ in range(3):
        warn()
        logging.getLogger("krelay.agent").info("agent: waiting for a node")
        log.now += 5
    log.take()
    log.repeats.flush()
    assert log.take() == ["warning: web: connection reset: refused (2 more in the last 15 seconds)"]
    log.repeats.flush()
    assert log.take() == []


def test_lines_that_vary_without_end_become_one_kind(log: Log) -> None:
    for number in range(200):
        warn("no such host: " + chr(97 + number % 26) * (1 + number))
    assert len(log.take()) == module.VARIETY + 1
    log.repeats.flush()
    assert log.take()[0].endswith(" (179 more in the last second)")


def test_the_oldest_subject_is_forgotten_beyond_the_limit(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SUBJECTS", 3)
    for name in "abcd":
        warn(name=name)
        warn(name=name)
    assert len(log.repeats._kinds) == 3
    assert log.take()[3:5] == [
        "warning: a: connection reset: refused (1 more in the last second)",
        "warning: d: connection reset: refused",
    ]


def test_a_count_is_reported_although_nothing_more_is_logged(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST", 0.01)
    warn()
    warn()
    log.now += 1
    while len(log.lines) < 2:
        if timer := log.repeats._timer:
            timer.join()
    assert log.take()[-1].endswith("refused (1 more in the last second)")


def test_without_a_thread_the_next_record_triggers_the_report(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Timer.start", refuse)
    warn()
    warn()
    log.now += FIRST
    warn(name="db")
    assert len(log.take()) == 3


def test_a_record_that_cannot_be_formatted_is_left_to_its_handler(log: Log) -> None:
    record = logging.LogRecord("krelay.x", logging.WARNING, "x.py", 1, "%d", ("no",), None)
    assert log.repeats.filter(record)


def test_the_longest_period_is_bounded() -> None:
    assert LONGEST / FIRST == 16
