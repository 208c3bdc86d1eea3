"""Log lines about one target, tunnel or stream, which the text and the record's fields name."""

from __future__ import annotations

import logging
from typing import Any

FIELDS = ("target", "tunnel", "stream")
"""Attributes of a record that name its subject; the JSON log has them as keys."""


class About(logging.LoggerAdapter[logging.Logger]):
    """A logger whose lines begin with a name, as in `web: connection reset`."""

    def __init__(self, logger: logging.Logger, name: str, fields: dict[str, str]) -> None:
        super().__init__(logger, fields)
        self._name = name

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log `NAME: msg`, with the fields as attributes of the record."""
        if self.isEnabledFor(level):
            text = f"%s: {msg}"
            self.logger.log(level, text, self._name, *args, extra=self.extra, **kwargs)


def about(
    logger: logging.Logger,
    *,
    target: str | None = None,
    tunnel: str | None = None,
    stream: str | None = None,
    name: str | None = None,
) -> About:
    """Return `logger` for lines about a target, a tunnel or a stream.

    The text begins with `name`, or else with the most specific of the three.
    """
    fields = {"target": target, "tunnel": tunnel, "stream": stream}
    said = {key: value for key, value in fields.items() if value}
    return About(logger, name or stream or tunnel or target or "", said)
