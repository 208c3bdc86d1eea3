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
    fields,
)

MAX_LIST = 50_000  # objects in one page; a server may ignore `limit`
MAX_EVENT_VALUES = 200_000
"""Values in one object or event of a watch; etcd takes objects of 1.5 MiB."""

_NAME = Token()
_TIME = Token(64)
_PORT = Integer(0, 65_535)
_WORD, _REASON, _TEXT = Message(64), Message(1024), Message()
_LABELS = MapOf(_NAME)

METADATA = Shape(
    fields(_NAME, "name", "namespace", "uid")
    | fields(_TIME, "creationTimestamp", "deletionTimestamp")
    | {"labels": _LABELS},
    needs=("name",),
)
NAMED = Shape({"metadata": METADATA}, needs=("metadata",))
"""Any object, reduced to its metadata."""

_CONDITION = Shape({"type": Message(316), "status": _WORD, "reason": _REASON, "message": _TEXT})
_WAITING = Shape({"reason": _REASON, "message": _TEXT})
_EXIT_CODE = Integer(-(1 << 31), (1 << 31) - 1)
_TERMINATED = Shape({"exitCode": _EXIT_CODE, "reason": _REASON, "message": Message(16 << 10)})
_STATE = Shape({"waiting": _WAITING, "running": Shape({}), "terminated": _TERMINATED})
_STATUS = Shape({"name": _NAME, "image": _REASON, "state": _STATE, "lastState": _STATE})
_STATUSES = ListOf(_STATUS, 1_000)
_CONTAINER_PORT = Shape(
    {"name": _NAME, "containerPort": _PORT, "protocol": _WORD}, needs=("containerPort",)
)
_CONTAINER = Shape(
    {"name": _NAME, "restartPolicy": _WORD, "ports": ListOf(_CONTAINER_PORT, 10_000)}
)
_POD_SPEC = Shape(
    fields(ListOf(_CONTAINER, 1_000), "containers", "initContainers") | {"nodeName": _NAME}
)
_POD_STATUS = Shape(
    fields(_STATUSES, "containerStatuses", "initContainerStatuses")
    | {"phase": _WORD, "reason": _REASON, "message": _TEXT, "podIP": Address()}
    | {"podIPs": ListOf(Shape({"ip": Address()}), 100)}
    | {"conditions": ListOf(_CONDITION)}
)
_POD_METADATA = Shape(
    {**METADATA.fields, "ownerReferences": ListOf(Shape({"kind": _WORD}), 1_000)}, needs=("name",)
)
POD = Shape(
    {"metadata": _POD_METADATA, "spec": _POD_SPEC, "status": _POD_STATUS}, needs=("metadata",)
)
_SERVICE_PORT = Shape(
    {
        "name": _NAME,
        "port": _PORT,
        "protocol": _WORD,
        "targetPort": AnyOf((_PORT, _NAME), "a port's number or name"),
    },
    needs=("port",),
)
_SERVICE_SPEC = Shape(
    {
        "type": _WORD,
        "clusterIP": Token(64),
        "externalName": _NAME,
        "internalTrafficPolicy": _WORD,
        "sessionAffinity": _WORD,
        "ipFamilies": ListOf(_WORD, 16),
        "selector": _LABELS,
        "ports": ListOf(_SERVICE_PORT, 10_000),
    }
)
SERVICE = Shape({"metadata": METADATA, "spec": _SERVICE_SPEC}, needs=("metadata", "spec"))
_SERVING = Shape({"ready": Boolean(), "serving": Boolean()})
_ENDPOINT = Shape(
    {
        "addresses": ListOf(_NAME, 1_000),
        "conditions": _SERVING,
        "targetRef": Shape(fields(_NAME, "kind", "namespace", "name", "uid")),
    }
)
SLICE = Shape(
    {
        "metadata": METADATA,
        "addressType": _WORD,
        "ports": ListOf(Shape({"name": _NAME, "port": _PORT, "protocol": _WORD}), 10_000),
        "endpoints": ListOf(_ENDPOINT),
    },
    needs=("metadata",),
)
_EXPRESSION = Shape(
    {"key": Token(512), "operator": _WORD, "values": ListOf(_NAME)}, needs=("key", "operator")
)
_SELECTOR = Shape({"matchLabels": _LABELS, "matchExpressions": ListOf(_EXPRESSION, 1_000)})
_TEMPLATE = Shape({"metadata": Shape({"labels": _LABELS}), "spec": _POD_SPEC})
WORKLOAD = Shape(
    {
        "metadata": METADATA,
        "spec": Shape({"selector": _SELECTOR, "template": _TEMPLATE}),
        "status": Shape({"conditions": ListOf(_CONDITION)}),
    },
    needs=("metadata", "spec"),
)
"""A Deployment, StatefulSet, DaemonSet, ReplicaSet or Job."""

CREATED = Shape(
    {"metadata": Shape(METADATA.fields, needs=("name", "namespace", "uid"))}, needs=("metadata",)
)
"""The API server's answer to a creation."""

EVENT = Shape(
    fields(_TIME, "lastTimestamp", "eventTime")
    | {"metadata": METADATA, "reason": _REASON, "type": _WORD, "message": _TEXT}
    | {"involvedObject": Shape({"uid": _NAME}), "series": Shape({"lastObservedTime": _TIME})},
    needs=("metadata",),
)
STATUS = Shape({"kind": _WORD, "message": Message(64 << 10), "reason": _REASON})

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
_LIST_METADATA = Shape(
    {
        "resourceVersion": _VERSION,
        "continue": String(64 << 10),
        "remainingItemCount": Integer(),
    }
)
_LIST = Shape(
    {"metadata": _LIST_METADATA, "items": ListOf(AnyValue(), MAX_LIST)}, needs=("metadata",)
)
_EVENT = Shape({"type": _WORD, "object": AnyValue()}, needs=("type", "object"))
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


def declared_ports(kind: Kind, item: Any) -> list[Any]:
    """Return the ports that a Service, or the containers of a pod or a workload, declare.

    Each has its number as `port`. Raises LookupError, TypeError or AttributeError for another
    shape.
    """
    spec = item["spec"]
    if kind is Kind.SERVICE:
        return list(spec.get("ports") or ())
    pod = spec if kind is Kind.POD else spec["template"]["spec"]
    ports = [port for container in pod["containers"] for port in container.get("ports") or ()]
    return [{**port, "port": port["containerPort"]} for port in ports]


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
