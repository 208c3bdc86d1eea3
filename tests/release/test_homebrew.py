"""The formula for Homebrew."""

from __future__ import annotations

import re
from typing import Any

import pytest

from release import homebrew
from release.homebrew import Sdist

ONE = Sdist("one", "https://example.com/one-1.tar.gz", "0a" * 32)
LOCK = f"one==1 \\\n    --hash=sha256:{ONE.sha256}\n"


def answer(**changes: Any) -> dict[str, Any]:
    """Return what an index says about a package."""
    sdist = {"url": ONE.url, "hashes": {"sha256": ONE.sha256}}
    return {"packages": [{"name": "one", "version": "1", "sdist": sdist, **changes}]}


def test_a_formula_has_krelay_and_a_resource_for_each_package() -> None:
    krelay = Sdist("krelay", "https://example.com/krelay-1.tar.gz", "0b" * 32)
    text = homebrew.formula("https://example.com", krelay, [ONE])
    assert re.findall(r"^ *(url|sha256|resource) (\S+)", text, re.MULTILINE) == [
        ("url", f'"{krelay.url}"'),
        ("sha256", f'"{krelay.sha256}"'),
        ("resource", '"one"'),
        ("url", f'"{ONE.url}"'),
        ("sha256", f'"{ONE.sha256}"'),
    ]
    assert 'shell_output("#{bin}/krelay --version")' in text
    assert len(re.findall(r"^ *(class|resource|def|test)\b", text, re.MULTILINE)) == len(
        re.findall(r"^ *end$", text, re.MULTILINE)
    )


def test_a_package_must_have_the_sdist_of_the_lock() -> None:
    assert homebrew.sdists(answer(), LOCK) == [ONE]
    with pytest.raises(ValueError, match="one is not that of requirements.lock"):
        homebrew.sdists(answer(), LOCK.replace("0a", "0c"))
    without = answer()
    del without["packages"][0]["sdist"]
    with pytest.raises(ValueError, match="one has no sdist"):
        homebrew.sdists(without, LOCK)
