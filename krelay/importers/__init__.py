"""Other tools' files, and what a namespace has, as a krelay.yaml: `krelay import` and `init`."""

from __future__ import annotations

from krelay.config import files
from krelay.errors import ConfigError, Problem
from krelay.importers import kftray, kportal, targets
from krelay.importers.entry import Converted, write
from krelay.importers.services import kubefwd, starter

__all__ = ["Converted", "convert", "kubefwd", "starter"]


def convert(data: bytes, path: str) -> Converted:
    """A krelay.yaml with what the file says; what it is, is told by its content.

    Raises:
        ConfigError: it is none of the files that are known, or is broken.
    """
    text = files.decode(data, path)
    if text.lstrip().startswith(("[", "{")):
        return write(f"kftray's {path}", kftray.read(text, path))
    if files.is_targets_txt(text, path):
        return write(path, targets.read(text, path))
    entries = kportal.read(text, path)
    if entries is None:
        hint = "a targets.txt, a kftray export or a .kportal.yaml"
        raise ConfigError(path, [Problem(0, 0, "nothing that can be imported", hint)])
    return write(f"kportal's {path}", entries)
