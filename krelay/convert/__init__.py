"""Other tools' files, and what a namespace has, as a krelay.yaml: `krelay import` and `init`."""

from __future__ import annotations

from krelay.config import source
from krelay.convert import kftray, kportal, targets
from krelay.convert.entry import Converted, write
from krelay.convert.services import kubefwd, starter
from krelay.errors import ConfigError, Problem

__all__ = ["Converted", "convert", "kubefwd", "starter"]


def convert(data: bytes, path: str) -> Converted:
    """A krelay.yaml with what the file says; what it is, is told by its content.

    Raises:
        ConfigError: it is none of the files that are known, or is broken.
    """
    text = source.decode(data, path)
    if text.lstrip().startswith(("[", "{")):
        return write(f"kftray's {path}", kftray.read(text, path))
    if source.is_targets_txt(text, path):
        return write(path, targets.read(text, path))
    entries = kportal.read(text, path)
    if entries is None:
        hint = "a targets.txt, a kftray export or a .kportal.yaml"
        raise ConfigError(path, [Problem(0, 0, "nothing that can be imported", hint)])
    return write(f"kportal's {path}", entries)
