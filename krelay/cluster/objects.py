"""Objects: the parts of Kubernetes' objects that krelay reads. Pure.

`read_object`, `read_list` and `read_event` return only the fields declared here, each of its
type. The other fields of an object are dropped (`managedFields` alone is often half of it), so a
pod of 10 kB keeps about 1 kB, and an update of other fields changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from krelay import typed
from krelay.model import Kind
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
"""Objects in one page; a server may ignore `limit`."""
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
        "creationTimestamp": _TIME,
        "deletionTimestamp": _TIME,
    },
    needs=("name",),
)
NAMED = Shape({"metadata": METADATA}, needs=("metadata",))
"""Any object, reduced to its metadata."""

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

CREATED = Shape(
    {"metadata": Shape(METADATA.fields, needs=("name", "namespace", "uid"))},
    needs=("metadata",),
)
"""The API server's answer to a creation."""

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

RESOURCES: Mapping[Kind, tuple[str, str]] = {
    Kind.SERVICE: ("v1", "services"),
    Kind.POD: ("v1", "pods"),
    Kind.DEPLOYMENT: ("apps/v1", "deployments"),
    Kind.STATEFULSET: ("apps/v1", "statefulsets"),
    Kind.DAEMONSET: ("apps/v1", "daemonsets"),
    Kind.REPLICASET: ("apps/v1", "replicasets"),
    Kind.JOB: ("batch/v1", "jobs"),
}
"""API version and resource of each kind of target in a cluster."""

_SCHEMAS: Mapping[str, Schema] = {
    **{resource: WORKLOAD for _, resource in RESOURCES.values()},
    "pods": POD,
    "services": SERVICE,
    "endpointslices": SLICE,
    "events": EVENT,
}

_VERSION = Token(1024)
_LIST = Shape(
    {
        "metadata": Shape(
            {
                "resourceVersion": _VERSION,
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
    {"metadata": Shape({"resourceVersion": _VERSION}, needs=("resourceVersion",))},
    needs=("metadata",),
)


class Page(NamedTuple):
    """One page of a list. `token` asks for the next page (empty: this is the last), `version` is
    the resourceVersion to watch from, `remaining` counts the objects after this page, if known."""

    items: list[dict[str, Any]]
    version: str
    token: str
    remaining: int


def schema_of(path: str) -> Schema:
    """Return the schema of the objects in the collection at `path`, which ends in a resource."""
    return _SCHEMAS.get(path.rpartition("/")[2], NAMED)


def read_object(schema: Schema, value: Any, path: str) -> dict[str, Any]:
    """Return the declared fields of an object that came from `path`.

    Raises:
        MalformedError: a field has another type; the message names the object and the field.
    """
    found: dict[str, Any] = typed.read(schema, value, _describe(value, path))
    return found


def read_list(value: Any, path: str) -> Page:
    """Return a page of the collection at `path`.

    Raises:
        MalformedError: `value` is not a list of such objects.
    """
    page = typed.read(_LIST, value, f"the list {path}")
    schema, metadata = schema_of(path), page["metadata"]
    return Page(
        [read_object(schema, item, path) for item in page.get("items", ())],
        metadata.get("resourceVersion", ""),
        metadata.get("continue", ""),
        metadata.get("remainingItemCount", 0),
    )


def read_event(line: bytes, path: str) -> tuple[str, str, dict[str, Any]]:
    """Return one event of a watch: its type, the resourceVersion to go on from, and the object.

    An ERROR has a Status as its object and no version. The object of a BOOKMARK, or of an event
    of an unknown type, is empty.

    Raises:
        MalformedError: `line` is not an event, or its object is malformed.
    """
    event = typed.load(_EVENT, line, f"an event of {path}", values=MAX_EVENT_VALUES)
    sort, item = event["type"], event["object"]
    if sort == "ERROR":
        return sort, "", read_object(STATUS, item, path)
    version = read_object(_VERSIONED, item, path)["metadata"]["resourceVersion"]
    if sort not in ("ADDED", "MODIFIED", "DELETED"):
        return sort, version, {}
    return sort, version, read_object(schema_of(path), item, path)


def nested(value: Any, *path: str) -> Any:
    """Return the field at `path` inside nested objects; None if any of them is missing."""
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _describe(value: Any, path: str) -> str:
    try:
        name = NAMED.read(value)["metadata"]["name"]
    except typed.Mismatch:
        return f"an object of {path}"
    return f'"{name}" of {path}'
