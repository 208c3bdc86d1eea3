"""Patches: a user's changes to the agent's manifest, in the three forms that Kubernetes has.

Pure: documents are what JSON makes (dict, list, str, int, float, bool, None; a patch may hold
any Mapping and tuples), and no argument is ever changed. The third form is in `jsonpatch.py`.

- `merge`: RFC 7396. Objects merge, null deletes, lists are replaced.
- `strategic`: as above, but some lists merge by a key. Kubernetes: sig-api-machinery's
  strategic-merge-patch.md, apimachinery pkg/util/strategicpatch, and the `patchMergeKey` tags
  of api core/v1 types.go.
"""

from __future__ import annotations

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
