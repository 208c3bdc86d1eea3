from __future__ import annotations

import json
import time

import pytest

from krelay.errors import TunnelError
from krelay.net.error_body import MAX_BODY, page_words, status_message, words
from krelay.transport.upgrade import stream_error


def test_the_message_of_a_status_is_found() -> None:
    body = json.dumps({"kind": "Status", "message": "no such pod"}).encode()
    assert status_message(body) == status_message(body, kind=True) == "no such pod"
    assert status_message(b'{"message": "x"}') == "x"
    assert status_message(b'{"message": "x"}', kind=True) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"message": 5}',
        b'{"message": null}',
        b"[" * MAX_BODY,
        b"9" * MAX_BODY,
        b"\xff",
    ],
    ids=range(7),
)
def test_a_body_that_is_no_status_has_no_message(body: bytes) -> None:
    assert status_message(body) is None


def test_the_words_of_a_page_are_without_tags_and_cut() -> None:
    assert page_words(b"<html><h1>Bad\nGateway</h1> 1 < 2 </html>", 99) == "Bad Gateway 1 < 2"
    assert page_words(b"\xffa" * 9, 3) == "\ufffda\ufffd"
    assert words("a\n\t b\n" * 9, 5) == "a b a"


@pytest.mark.parametrize(
    "piece",
    [
        "<",
        "<a",
        "network namespace for sandbox ",
        "network namespace for sandbox x",
        "sandbox ",
        "sandbox -",
        "sandbox x not ",
        "pod ",
        "pods x not ",
        'User "',
        'User "a" cannot ',
        "\n",
    ],
)
def test_reading_a_body_takes_linear_time(piece: str) -> None:
    """The same input of 64 KiB and of 4 MiB (cut to 64 KiB): both within a small bound, which a
    quadratic expression misses by far (16 s for 160 KiB of `<`)."""
    for size in (1 << 14, 1 << 15, 1 << 16, 1 << 22):
        text = piece * (size // len(piece))
        began = time.process_time()
        page_words(text.encode(), 300)
        status_message(text.encode())
        assert isinstance(stream_error(text[:MAX_BODY]), TunnelError)
        assert time.process_time() - began < 0.5
