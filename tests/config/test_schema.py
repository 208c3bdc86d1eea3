from __future__ import annotations

import pytest

from krelay.config.schema import is_secret, secret_keys


def test_the_schema_says_what_is_secret() -> None:
    assert secret_keys() == {"token", "password"}


@pytest.mark.parametrize(
    ("key", "expected"), [("token", True), ("passWord", True), ("username", False), (None, False)]
)
def test_a_key_is_known_by_its_name(key: str | None, expected: bool) -> None:
    assert is_secret(key) is expected
