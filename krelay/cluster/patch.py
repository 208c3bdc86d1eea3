"""Patches: a user's changes to the agent's manifest, in the three forms that Kubernetes has.

Pure: documents are JSON values (dict, list, str, int, float, bool, None). A patch may also hold
other Mappings and tuples. No function changes its arguments.

- `merge`: RFC 7396. Objects merge, null deletes, lists are replaced.
- `strategic`: as above, but some lists merge by a key. Kubernetes: sig-api-machinery's
  strategic-merge-patch.md, apimachinery pkg/util/strategicpatch, and the `patchMergeKey` tags
  of api core/v1 types.go.
- `json_patch`: RFC 6902.
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
"""The lists of a Job and its pod that merge, and their merge keys. All others are replaced whole
(`args`, `command`, `envFrom`, `tolerations`): the API defines no key for them."""

MAX_COPIED = 50_000
"""Values that the `copy` operations of one JSON patch may copy: each may double the document."""

_DIRECTIVE = "$patch"
_RETAIN = "$retainKeys"


class PatchError(ValueError):
    """The patch is malformed or does not fit the document."""


def plain(value: Any) -> Any:
    """Return a deep copy made of dict and list alone."""
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(inner) for inner in value]
    return value


def merge(document: Any, patch: Any) -> Any:
    """Return `document` merged with `patch` (RFC 7396, section 2)."""
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
    """Return the strategic merge of `document` and `patch`.

    Supports the directives `$patch: replace|delete` and `$retainKeys`.

    Raises:
        PatchError: an unknown directive, or a list element without its merge key.
    """
    return _merge_objects(document, patch, "")


def json_patch(document: Any, operations: Sequence[Mapping[str, Any]]) -> Any:
    """Return a copy of `document` with all `operations` applied in order (RFC 6902).

    Raises:
        PatchError: an operation is malformed, its place does not exist, or its test failed.
    """
    # Imported here: few users have such a patch, and the import takes 20 ms.
    from jsonpatch import JsonPatch, JsonPatchException, JsonPatchTestFailed
    from jsonpointer import JsonPointer, JsonPointerException

    patched = plain(document)
    copied = 0
    for number, operation in enumerate(plain(operations), 1):
        place = f"operation {number}"
        try:
            patch = JsonPatch([operation])
            place += f" ({operation['op']} {operation['path']!r})"
            if operation["op"] == "copy" and isinstance(operation.get("from"), str):
                copied += _count_values(JsonPointer(operation["from"]).resolve(patched))
                if copied > MAX_COPIED:
                    raise PatchError(f"{place}: copies more than {MAX_COPIED} values")
            patched = patch.apply(patched, in_place=True)
        # The library's own texts for these two repeat the document.
        except JsonPatchTestFailed:
            raise PatchError(f"{place}: the test failed") from None
        except JsonPointerException:
            raise PatchError(f"{place}: the document has no such path") from None
        except JsonPatchException as exc:
            raise PatchError(f"{place}: {exc}") from None
    return patched


def _count_values(value: Any) -> int:
    """Count the values in `value`, itself included."""
    if isinstance(value, dict):
        return 1 + sum(map(_count_values, value.values()))
    return 1 + sum(map(_count_values, value)) if isinstance(value, list) else 1


def _merge_objects(
    document: Mapping[str, Any], patch: Mapping[str, Any], path: str
) -> dict[str, Any]:
    directive = patch.get(_DIRECTIVE)
    if directive == "delete":
        return {}
    if directive == "replace":
        document = {}
    elif directive is not None:
        raise PatchError(f"{path or 'the patch'}: $patch is {directive!r}, not delete or replace")
    retained = patch.get(_RETAIN)
    merged = {k: plain(v) for k, v in document.items() if retained is None or k in retained}
    for name, value in patch.items():
        where = f"{path}.{name}" if path else name
        if name.startswith("$"):
            if name not in (_DIRECTIVE, _RETAIN):
                raise PatchError(f"{where}: this directive is not supported")
        elif value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merge_values(name, merged.get(name), value, where)
    return merged


def _merge_values(name: str, old: Any, new: Any, path: str) -> Any:
    if isinstance(new, Mapping):
        return _merge_objects(old if isinstance(old, Mapping) else {}, new, path)
    if isinstance(new, list | tuple) and name in MERGE_KEYS:
        return _merge_lists(old if isinstance(old, list) else [], new, MERGE_KEYS[name], path)
    return plain(new)


def _merge_lists(old: Sequence[Any], new: Sequence[Any], key: str, path: str) -> list[Any]:
    """Merge two lists of objects: elements with an equal `key` merge, new ones are appended."""
    changes: list[Mapping[str, Any]] = []
    deleted: list[Any] = []
    replace = False
    for element in new:
        if not isinstance(element, Mapping):
            raise PatchError(f"{path}: holds objects, not {element!r}")
        directive = element.get(_DIRECTIVE)
        if directive not in (None, "delete", "replace"):
            raise PatchError(f"{path}: $patch is {directive!r}, not delete or replace")
        if directive == "replace":
            replace = True
        elif key not in element:
            raise PatchError(f"{path}: an element lacks the merge key {key!r} of this list")
        elif directive == "delete":
            deleted.append(element[key])
        else:
            changes.append(element)
    merged = [] if replace else [e for e in old if _key(e, key) not in deleted]
    for change in changes:
        index = next((i for i, e in enumerate(merged) if _key(e, key) == change[key]), None)
        where = f"{path}[{change[key]}]"
        if index is None:
            merged.append(_merge_objects({}, change, where))
        else:
            merged[index] = _merge_objects(merged[index], change, where)
    return merged


def _key(element: Any, key: str) -> Any:
    return element.get(key) if isinstance(element, Mapping) else None
