"""Plain data as YAML, for what krelay prints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def documents(values: Iterable[Any]) -> str:
    """The values as documents of one text, keys in their order."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    text: str = yaml.dump_all(values, Dumper=Dumper, sort_keys=False, explicit_start=True)
    return text
