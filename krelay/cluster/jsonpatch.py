"""JSON Patch: RFC 6902, the third form of a patch to the agent's manifest. Pure.

A patch applies whole or not at all: the operations work on a copy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from krelay.cluster.patch import PatchError, plain

MAX_COPIED = 50_000
"""Values that the operations of one patch may copy: each may double the document."""
_INDEX = re.compile(r"0|[1-9][0-9]*")


def json_patch(document: Any, operations: Sequence[Mapping[str, Any]]) -> Any:
    """Apply `operations` in order; the patched copy of `document`.

    Raises:
        PatchError: an operation is malformed, its place does not exist, or its test failed.
    """
    holder = [plain(document)]
    copied = 0
    for number, operation in enumerate(operations):
        try:
            if _text(operation, "op") == "copy":
                copied += _size(_get(holder, _text(operation, "from")))
                if copied > MAX_COPIED:
                    raise PatchError(f"copies more than {MAX_COPIED} values")
            _apply(holder, operation)
        except PatchError as error:
            raise PatchError(f"operation {number + 1}: {error}") from None
    return holder[0]


def _apply(holder: list[Any], operation: Mapping[str, Any]) -> None:
    op, path = _text(operation, "op"), _text(operation, "path")
    match op:
        case "add":
            _add(holder, path, _content(operation))
        case "remove":
            _remove(holder, path)
        case "replace":
            _remove(holder, path)
            _add(holder, path, _content(operation))
        case "move":
            source = _text(operation, "from")
            if path.startswith(source + "/"):
                raise PatchError(f"cannot move {source!r} into itself")
            _add(holder, path, _remove(holder, source))
        case "copy":
            _add(holder, path, plain(_get(holder, _text(operation, "from"))))
        case "test":
            if not same(_get(holder, path), _content(operation)):
                raise PatchError(f"the test of {path!r} failed")
        case _:
            raise PatchError(f"there is no op {op!r}")


def _size(value: Any) -> int:
    """How many values there are in one, itself among them."""
    below: Any = value.values() if isinstance(value, Mapping) else value
    return 1 + (sum(map(_size, below)) if isinstance(value, Mapping | list) else 0)


def _text(operation: Mapping[str, Any], name: str) -> str:
    if not isinstance(operation, Mapping) or not isinstance(operation.get(name), str):
        raise PatchError(f"needs a string {name!r}")
    return str(operation[name])


def _content(operation: Mapping[str, Any]) -> Any:
    if "value" not in operation:
        raise PatchError("needs a 'value'")
    return plain(operation["value"])


def _tokens(path: str) -> list[str]:
    """RFC 6901: the steps of a pointer."""
    if path and not path.startswith("/"):
        raise PatchError(f"the path {path!r} does not start with '/'")
    return [token.replace("~1", "/").replace("~0", "~") for token in path.split("/")[1:]]


def _place(holder: list[Any], path: str) -> tuple[Any, Any]:
    """The container that `path` ends in, and the last step as its key (an index or a name)."""
    here: Any = holder
    key: Any = 0
    for token in _tokens(path):
        here = _step(here, key, path)
        if isinstance(here, list):
            if token != "-" and not _INDEX.fullmatch(token):
                raise PatchError(f"{path!r}: {token!r} is no place in a list")
            key = len(here) if token == "-" else int(token)
        elif isinstance(here, dict):
            key = token
        else:
            raise PatchError(f"{path!r}: there is no {token!r} in a plain value")
    return here, key


def _step(here: Any, key: Any, path: str) -> Any:
    try:
        return here[key]
    except (KeyError, IndexError):
        raise PatchError(f"{path!r} does not exist") from None


def _get(holder: list[Any], path: str) -> Any:
    return _step(*_place(holder, path), path)


def _add(holder: list[Any], path: str, value: Any) -> None:
    here, key = _place(holder, path)
    if here is holder or isinstance(here, dict):
        here[key] = value
    elif key > len(here):
        raise PatchError(f"{path!r} is beyond the end of the list")
    else:
        here.insert(key, value)


def _remove(holder: list[Any], path: str) -> Any:
    here, key = _place(holder, path)
    value = _step(here, key, path)
    if here is holder:
        here[0] = None
    else:
        del here[key]
    return value


def same(one: Any, other: Any) -> bool:
    """RFC 6902, section 4.6: equal as JSON, where 1 is 1.0 but not true."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    return bool(one == other)
