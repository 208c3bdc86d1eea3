"""Patches: a user's changes to the agent's manifest, in the three forms that Kubernetes has.

Pure: documents are what JSON makes (dict, list, str, int, float, bool, None; a patch may hold
any Mapping and tuples), and no argument is ever changed. The third form is in `jsonpatch.py`.

- `merge`: RFC 7396. Objects merge, null deletes, lists are replaced.
- `strategic`: as above, but some lists merge by a key. Kubernetes: sig-api-machinery's
  strategic-merge-patch.md, apimachinery pkg/util/strategicpatch, and the `patchMergeKey` tags
  of api core/v1 types.go.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

MERGE_KEYS: Mapping[str, str] = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "volumes": "name",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
    "schedulingGates": "name",
    "ownerReferences": "uid",
}
"""The lists of a Job and its pod that merge, and by what. All others are replaced whole, as
`args`, `command`, `envFrom` and `tolerations` are: the API has no key for them.
"""

_DIRECTIVE = "$patch"
_RETAIN = "$retainKeys"


class PatchError(ValueError):
    """The patch does not fit the document, or is none."""


def plain(value: Any) -> Any:
    """A copy, as deep as it goes, made of dict and list alone."""
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(inner) for inner in value]
    return value


def merge(document: Any, patch: Any) -> Any:
    """RFC 7396, section 2."""
    if not isinstance(patch, Mapping):
        return plain(patch)
    merged = dict(document) if isinstance(document, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return plain(merged)


def strategic(document: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """A strategic merge, with the directives `$patch: replace|delete` and `$retainKeys`.

    Raises:
        PatchError: an unknown directive, or an element of a list without its merge key.
    """
    return _objects(document, patch, "")


def _objects(document: Mapping[str, Any], patch: Mapping[str, Any], at: str) -> dict[str, Any]:
    directive = patch.get(_DIRECTIVE)
    if directive == "delete":
        return {}
    if directive == "replace":
        document = {}
    elif directive is not None:
        raise PatchError(f"{at or 'the patch'}: $patch is {directive!r}, not delete or replace")
    kept = patch.get(_RETAIN)
    merged = {k: plain(v) for k, v in document.items() if kept is None or k in kept}
    for name, value in patch.items():
        where = f"{at}.{name}" if at else name
        if name.startswith("$"):
            if name not in (_DIRECTIVE, _RETAIN):
                raise PatchError(f"{where}: this directive is not supported")
        elif value is None:
            merged.pop(name, None)
        else:
            merged[name] = _value(name, merged.get(name), value, where)
    return merged


def _value(name: str, old: Any, new: Any, at: str) -> Any:
    if isinstance(new, Mapping):
        return _objects(old if isinstance(old, Mapping) else {}, new, at)
    if isinstance(new, list | tuple) and name in MERGE_KEYS:
        return _lists(old if isinstance(old, list) else [], new, MERGE_KEYS[name], at)
    return plain(new)


def _lists(old: Sequence[Any], new: Sequence[Any], key: str, at: str) -> list[Any]:
    """Merge two lists of objects: those with equal `key` merge, new ones go to the end."""
    changes: list[Mapping[str, Any]] = []
    dropped: list[Mapping[str, Any]] = []
    replace = False
    for element in new:
        if not isinstance(element, Mapping):
            raise PatchError(f"{at}: holds objects, not {element!r}")
        directive = element.get(_DIRECTIVE)
        if directive not in (None, "delete", "replace"):
            raise PatchError(f"{at}: $patch is {directive!r}, not delete or replace")
        if directive == "replace":
            replace = True
        elif key not in element:
            raise PatchError(f"{at}: an element has no {key!r}, by which this list merges")
        else:
            (changes if directive is None else dropped).append(element)
    gone = [element[key] for element in dropped]
    merged = [] if replace else [e for e in old if _key(e, key) not in gone]
    for change in changes:
        place = next((i for i, e in enumerate(merged) if _key(e, key) == change[key]), None)
        where = f"{at}[{change[key]}]"
        if place is None:
            merged.append(_objects({}, change, where))
        else:
            merged[place] = _objects(merged[place], change, where)
    return merged


def _key(element: Any, key: str) -> Any:
    return element.get(key) if isinstance(element, Mapping) else None


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
