"""Objects: the parts of Kubernetes' objects that krelay reads, by the typed reader. Pure.

What comes out of `read_object`, `read_list` and `read_event` has only the fields below, each of
its type: a server's other fields (`managedFields` alone is often half of an object) are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from krelay import typed
from krelay.errors import MalformedError
from krelay.typed import (
    Address,
    AnyOf,
    AnyValue,
    Boolean,
    Integer,
    ListOf,
    MapOf,
    Message,
    Schema,
    Shape,
    String,
    Token,
)

MAX_LIST = 50_000
"""Objects in one page: what a server that ignores `limit` may send."""
MAX_EVENT_VALUES = 200_000
"""Values in one object or event of a watch; etcd takes objects of 1.5 MiB."""

_NAME = Token()
_TIME = Token(64)
_PORT = Integer(0, 65_535)

METADATA = Shape(
    {
        "name": _NAME,
        "namespace": _NAME,
        "uid": _NAME,
        "labels": MapOf(_NAME),
        "resourceVersion": Token(1024),
        "creationTimestamp": _TIME,
        "deletionTimestamp": _TIME,
    },
    needs=("name",),
)
NAMED = Shape({"metadata": METADATA}, needs=("metadata",))
"""An object of which only its metadata matters."""

_CONDITIONS = ListOf(
    Shape(
        {"type": Message(316), "status": Message(64), "reason": Message(1024), "message": Message()}
    )
)
_STATE = Shape(
    {
        "waiting": Shape({"reason": Message(1024), "message": Message()}),
        "running": Shape({}),
        "terminated": Shape(
            {
                "exitCode": Integer(-(1 << 31), (1 << 31) - 1),
                "reason": Message(1024),
                "message": Message(16 << 10),
            }
        ),
    }
)
_STATUSES = ListOf(
    Shape({"name": _NAME, "image": Message(1024), "state": _STATE, "lastState": _STATE}), 1_000
)
_CONTAINERS = ListOf(
    Shape(
        {
            "name": _NAME,
            "restartPolicy": Message(64),
            "ports": ListOf(
                Shape(
                    {"name": _NAME, "containerPort": _PORT, "protocol": Message(64)},
                    needs=("containerPort",),
                ),
                10_000,
            ),
        }
    ),
    1_000,
)
_POD_SPEC: Mapping[str, Schema] = {
    "nodeName": _NAME,
    "containers": _CONTAINERS,
    "initContainers": _CONTAINERS,
}
POD = Shape(
    {
        "metadata": METADATA,
        "spec": Shape(_POD_SPEC),
        "status": Shape(
            {
                "phase": Message(64),
                "reason": Message(1024),
                "message": Message(),
                "podIP": Address(),
                "conditions": _CONDITIONS,
                "containerStatuses": _STATUSES,
                "initContainerStatuses": _STATUSES,
            }
        ),
    },
    needs=("metadata",),
)
SERVICE = Shape(
    {
        "metadata": METADATA,
        "spec": Shape(
            {
                "type": Message(64),
                "clusterIP": Token(64),
                "externalName": _NAME,
                "ipFamilies": ListOf(Message(64), 16),
                "selector": MapOf(_NAME),
                "ports": ListOf(
                    Shape(
                        {
                            "name": _NAME,
                            "port": _PORT,
                            "protocol": Message(64),
                            "targetPort": AnyOf((_PORT, _NAME), "a port's number or name"),
                        },
                        needs=("port",),
                    ),
                    10_000,
                ),
            }
        ),
    },
    needs=("metadata", "spec"),
)
SLICE = Shape(
    {
        "metadata": METADATA,
        "addressType": Message(64),
        "ports": ListOf(Shape({"name": _NAME, "port": _PORT, "protocol": Message(64)}), 10_000),
        "endpoints": ListOf(
            Shape(
                {
                    "addresses": ListOf(_NAME, 1_000),
                    "conditions": Shape({"ready": Boolean(), "serving": Boolean()}),
                }
            )
        ),
    },
    needs=("metadata",),
)
_SELECTOR = Shape(
    {
        "matchLabels": MapOf(_NAME),
        "matchExpressions": ListOf(
            Shape(
                {"key": Token(512), "operator": Message(64), "values": ListOf(_NAME)},
                needs=("key", "operator"),
            ),
            1_000,
        ),
    }
)
WORKLOAD = Shape(
    {
        "metadata": METADATA,
        "spec": Shape(
            {
                "selector": _SELECTOR,
                "template": Shape(
                    {"metadata": Shape({"labels": MapOf(_NAME)}), "spec": Shape(_POD_SPEC)}
                ),
            }
        ),
        "status": Shape({"conditions": _CONDITIONS}),
    },
    needs=("metadata", "spec"),
)
"""A Deployment, StatefulSet, DaemonSet, ReplicaSet or Job."""

MADE = Shape(
    {
        "metadata": Shape(
            METADATA.fields,
            needs=("name", "namespace", "uid"),
        )
    },
    needs=("metadata",),
)
"""An object that was just created."""

EVENT = Shape(
    {
        "metadata": METADATA,
        "reason": Message(1024),
        "type": Message(64),
        "message": Message(),
        "involvedObject": Shape({"uid": _NAME}),
        "series": Shape({"lastObservedTime": _TIME}),
        "lastTimestamp": _TIME,
        "eventTime": _TIME,
    },
    needs=("metadata",),
)
STATUS = Shape({"kind": Message(64), "message": Message(64 << 10), "reason": Message(1024)})

_KINDS: Mapping[str, Schema] = {
    "pods": POD,
    "services": SERVICE,
    "endpointslices": SLICE,
    "events": EVENT,
    "deployments": WORKLOAD,
    "statefulsets": WORKLOAD,
    "daemonsets": WORKLOAD,
    "replicasets": WORKLOAD,
    "jobs": WORKLOAD,
}

_LIST = Shape(
    {
        "metadata": Shape(
            {
                "resourceVersion": Token(1024),
                "continue": String(64 << 10),
                "remainingItemCount": Integer(),
            }
        ),
        "items": ListOf(AnyValue(), MAX_LIST),
    },
    needs=("metadata",),
)
_EVENT = Shape({"type": Message(64), "object": AnyValue()}, needs=("type", "object"))
_VERSIONED = Shape(
    {"metadata": Shape({"resourceVersion": Token(1024)}, needs=("resourceVersion",))},
    needs=("metadata",),
)


def kind_of(path: str) -> Schema:
    """The kind of the objects in the collection at `path`, which ends in its resource."""
    return _KINDS.get(path.rpartition("/")[2], NAMED)


def read_object(kind: Schema, value: Any, path: str) -> dict[str, Any]:
    """An object that came from `path`.

    Raises:
        MalformedError: a field of it is not of its type; names both.
    """
    found: dict[str, Any] = typed.read(kind, value, _what(value, path))
    return found


def read_list(value: Any, path: str) -> tuple[list[dict[str, Any]], str, str, int]:
    """A page of the collection at `path`: its objects, the version to watch from, the token of
    the next page (empty: there is none), and how many objects are left, as far as that is known.

    Raises:
        MalformedError: it is no list of such objects.
    """
    page = typed.read(_LIST, value, f"the list {path}")
    kind = kind_of(path)
    metadata = page["metadata"]
    items = [read_object(kind, item, path) for item in page.get("items", ())]
    version, token = metadata.get("resourceVersion", ""), metadata.get("continue", "")
    return items, version, token, metadata.get("remainingItemCount", 0)


def read_event(line: bytes, path: str) -> tuple[str, str, dict[str, Any]]:
    """One event of a watch: its type, the version to go on from, and the object.

    The object of an ERROR is a Status, without a version; that of a BOOKMARK, or of a type that is
    not known, is empty.

    Raises:
        MalformedError: it is no event, or its object is not as agreed.
    """
    event = typed.load(_EVENT, line, f"an event of {path}", values=MAX_EVENT_VALUES)
    sort, item = event["type"], event["object"]
    if sort == "ERROR":
        return sort, "", read_object(STATUS, item, path)
    version = read_object(_VERSIONED, item, path)["metadata"]["resourceVersion"]
    if sort not in ("ADDED", "MODIFIED", "DELETED"):
        return sort, version, {}
    return sort, version, read_object(kind_of(path), item, path)


def _what(value: Any, path: str) -> str:
    """The object in words: its name where it has one, and where it came from."""
    try:
        name = NAMED.read(value)["metadata"]["name"]
    except typed.Mismatch:
        return f"an object of {path}"
    return f'"{name}" of {path}'


__all__ = [
    "EVENT",
    "MADE",
    "NAMED",
    "POD",
    "SERVICE",
    "SLICE",
    "STATUS",
    "WORKLOAD",
    "MalformedError",
    "kind_of",
    "read_event",
    "read_list",
    "read_object",
]


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
