"""Redaction: a krelay.yaml without its secrets, for a bug report."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from krelay.config.schema import is_secret

if TYPE_CHECKING:
    import yaml

REDACTED = "<redacted>"

_SENSITIVE = re.compile(
    r"pass(word|wd|phrase)|secret|token|credential|(api|access|private)[-_.]?key|authorization"
    r"|cookie",
    re.IGNORECASE,
)
"""Keys that users choose themselves: annotations, variables of a container."""

_VALUE = "value"
"""The key of a variable's value in a patch, whose name may stand anywhere beside it."""


def is_sensitive(name: str) -> bool:
    """Return whether a value of this name is a secret, by the schema or by its name."""
    return is_secret(name) or _SENSITIVE.search(name) is not None


def redacted(text: str) -> tuple[str, frozenset[str]]:
    """Return a YAML text without its secrets and comments, and the secrets.

    Variables are not expanded, and aliases not followed. A text that is no mapping, such as a
    targets.txt, has no secrets and is returned as it is.

    Raises:
        ValueError: it is not YAML; its secrets are unknown.
    """
    import yaml

    secrets: set[str] = set()
    try:
        events = [*yaml.parse(text, Loader=yaml.SafeLoader)]
        if not any(isinstance(event, yaml.MappingStartEvent) for event in events[:3]):
            return text, frozenset()
        found: str = yaml.emit(_events(events, secrets), width=1 << 20)
    except (yaml.YAMLError, RecursionError) as exc:
        raise ValueError("it is not YAML") from exc
    return found, frozenset(secrets)


@dataclass(slots=True)
class _Level:
    """A mapping or a sequence. `secret`: so is all that is inside it."""

    mapping: bool
    secret: bool
    at_key: bool = True
    under_secret: bool = False


def _events(events: list[yaml.Event], secrets: set[str]) -> Iterator[yaml.Event]:
    """Yield the events with secret scalars replaced; add these to `secrets`."""
    import yaml

    levels: list[_Level] = []
    for event in events:
        if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            levels.pop()
        level = levels[-1] if levels else None
        is_key = level is not None and level.mapping and level.at_key
        secret = level is not None and (level.secret or level.under_secret)
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            levels.append(_Level(isinstance(event, yaml.MappingStartEvent), secret))
        elif isinstance(event, yaml.ScalarEvent):
            if is_key and level is not None:
                level.under_secret = is_sensitive(event.value) or event.value == _VALUE
            elif secret:
                secrets.add(event.value)
                event = yaml.ScalarEvent(event.anchor, None, (True, True), REDACTED)
        elif not isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent | yaml.AliasEvent):
            yield event
            continue
        yield event
        if level is not None and not isinstance(
            event, yaml.MappingStartEvent | yaml.SequenceStartEvent
        ):
            level.at_key = not level.at_key
