"""Trim: what shared watches keep of an object, so that large namespaces cost little memory. Pure.

What krelay does not read is dropped on arrival: a pod of 10 kB keeps a few hundred bytes, and an
update that changes nothing of interest changes nothing at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Mask = Mapping[str, Any]
"""The keys to keep; None keeps a value as it is. A list is trimmed item by item."""

_METADATA: Mask = {
    "name": None,
    "namespace": None,
    "uid": None,
    "labels": None,
    "creationTimestamp": None,
    "deletionTimestamp": None,
}
_PORTS: Mask = {"ports": None, "restartPolicy": None}
_WORKLOAD: Mask = {"metadata": _METADATA, "spec": {"selector": None}}

_MASKS: Mapping[str, Mask] = {
    "services": {"metadata": _METADATA, "spec": None},
    "endpointslices": {
        "metadata": _METADATA,
        "addressType": None,
        "ports": None,
        "endpoints": {"addresses": None, "conditions": None},
    },
    "pods": {
        "metadata": _METADATA,
        "spec": {"containers": _PORTS, "initContainers": _PORTS},
        "status": {
            "phase": None,
            "podIP": None,
            "conditions": {"type": None, "status": None},
            "containerStatuses": {"state": {"waiting": {"reason": None}}},
        },
    },
    **dict.fromkeys(
        ("deployments", "statefulsets", "daemonsets", "replicasets", "jobs"), _WORKLOAD
    ),
}


def trimmed(resource: str, item: dict[str, Any]) -> dict[str, Any]:
    """The parts of an object of this resource (`pods`) that resolving reads; all of any other."""
    mask = _MASKS.get(resource)
    return item if mask is None else _trim(item, mask)


def _trim(value: Any, mask: Mask | None) -> Any:
    """Leave alone what is neither an object nor a list: its reader says what is wrong with it."""
    if mask is None:
        return value
    if isinstance(value, dict):
        return {key: _trim(value[key], inner) for key, inner in mask.items() if key in value}
    if isinstance(value, list):
        return [_trim(item, mask) for item in value]
    return value
