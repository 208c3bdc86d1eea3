from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.config.grammar import LARGEST_SIZE, SMALLEST_SIZE, ParseError, parse_size


@pytest.mark.parametrize(
    ("value", "size"),
    [("4Mi", 4 << 20), ("512Ki", 512 << 10), ("131072", SMALLEST_SIZE), (1048576, 1 << 20)]
    + [(262144.0, 256 << 10), ("256Mi", LARGEST_SIZE)],
)
def test_sizes(value: float | str, size: int) -> None:
    assert parse_size(value) == size


@pytest.mark.parametrize("value", ["", "4MB", "4 Mi", "-1", "1.5Mi", "Mi", 131072.5, "4Gi"])
def test_what_is_no_size(value: float | str) -> None:
    with pytest.raises(ParseError, match="is not a size"):
        parse_size(value)


@pytest.mark.parametrize("value", [0, "1Ki", "257Mi", "999999999999Mi"])
def test_what_is_too_small_or_too_large(value: float | str) -> None:
    with pytest.raises(ParseError, match="is out of range"):
        parse_size(value)


@given(st.one_of(st.text(max_size=20), st.integers(), st.floats()))
def test_anything_is_a_size_or_a_flaw(value: float | str) -> None:
    with contextlib.suppress(ParseError):
        assert SMALLEST_SIZE <= parse_size(value) <= LARGEST_SIZE
