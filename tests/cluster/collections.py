"""An API server's collections in memory: lists, watches, selectors and rights, over `Kube`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from aiohttp import web

Object = dict[str, Any]
Change = tuple[int, str, Object | None, Object | None]
"""Version, collection, object before and after."""


class Watch:
    """An open watch."""

    def __init__(self, path: str, query: dict[str, str]) -> None:
        self.path = path
        self.query = query
        self.lines: asyncio.Queue[bytes] = asyncio.Queue()


class Collections:
    """`put` and `remove` change objects and notify every open watch; `allows` decides on
    each request, by verb, path and query."""

    def __init__(self, kube: Any) -> None:
        self.objects: dict[str, dict[str, Object]] = {}
        self.open: list[Watch] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.most_open = 0
        self.allows: Callable[[str, str, dict[str, str]], bool] = lambda verb, path, query: True
        self.fails: int | None = None
        self._version = 100
        self._changes: list[Change] = []
        kube.handler = self._handle

    def put(self, path: str, *items: Object) -> None:
        """Create or change."""
        for item in items:
            stored, name = self.objects.setdefault(path, {}), item["metadata"]["name"]
            before, stored[name] = stored.get(name), self._stamped(item)
            self._changed(path, before, stored[name])

    def remove(self, path: str, name: str) -> None:
        """Delete."""
        before = self.objects[path].pop(name)
        self._version += 1
        self._changed(path, before, None)

    def expire(self) -> None:
        """End every open watch with a 410."""
        line = json.dumps({"type": "ERROR", "object": {"kind": "Status", "code": 410}}).encode()
        self.cut(line + b"\n")

    def cut(self, last: bytes = b"") -> None:
        """End every open watch."""
        for watch in self.open:
            if last:
                watch.lines.put_nowait(last)
            watch.lines.put_nowait(b"")

    def watches(self, resource: str) -> list[str]:
        """The selectors of the open watches of a resource; empty for the whole collection."""
        return sorted(
            watch.query.get("fieldSelector", watch.query.get("labelSelector", ""))
            for watch in self.open
            if watch.path.rpartition("/")[2] == resource
        )

    def lists(self, resource: str) -> list[str]:
        """The selectors of the lists so far."""
        return [
            query.get("fieldSelector", query.get("labelSelector", ""))
            for verb, path, query in self.requests
            if verb == "list" and path.rpartition("/")[2] == resource
        ]

    def _stamped(self, item: Object) -> Object:
        self._version += 1
        metadata = {"uid": f"u-{item['metadata']['name']}", **item["metadata"]}
        return {**item, "metadata": {**metadata, "resourceVersion": str(self._version)}}

    def _changed(self, path: str, before: Object | None, after: Object | None) -> None:
        change = (self._version, path, before, after)
        self._changes.append(change)
        for watch in self.open:
            self._tell(watch, change)

    def _tell(self, watch: Watch, change: Change) -> None:
        """Put the event into the watch's stream if what it selects has changed."""
        version, path, before, after = change
        if watch.path != path:
            return
        was = before is not None and _selected(before, watch.query)
        now = after is not None and _selected(after, watch.query)
        if was or now:
            kind = ("MODIFIED" if was else "ADDED") if now else "DELETED"
            item = after if now else before
            assert item is not None
            item = {**item, "metadata": {**item["metadata"], "resourceVersion": str(version)}}
            watch.lines.put_nowait(json.dumps({"type": kind, "object": item}).encode() + b"\n")

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path, query = request.path, dict(request.query)
        verb = "watch" if "watch" in query else "list"
        parent, _, name = path.rpartition("/")
        if parent.endswith(("pods", "services", "endpointslices", "deployments")):
            verb, path, query = "get", parent, {"fieldSelector": f"metadata.name={name}"}
        self.requests.append((verb, path, query))
        if self.fails is not None:
            return web.json_response({"message": "no"}, status=self.fails)
        if not self.allows(verb, path, query):
            resource = path.rpartition("/")[2]
            message = (
                f'{resource} is forbidden: User "j" cannot {verb} resource "{resource}"'
                f' in API group "" in the namespace "shop"'
            )
            return web.json_response({"message": message}, status=403)
        if verb == "get":
            found = [i for i in self.objects.get(path, {}).values() if _selected(i, query)]
            return web.json_response(found[0] if found else {}, status=200 if found else 404)
        if verb == "list":
            items = [item for item in self.objects.get(path, {}).values() if _selected(item, query)]
            metadata = {"resourceVersion": str(self._version)}
            return web.json_response({"metadata": metadata, "items": items})
        watch = Watch(path, query)
        response = web.StreamResponse()
        await response.prepare(request)
        for change in self._changes:
            if change[0] > int(query["resourceVersion"]):
                self._tell(watch, change)
        self.open.append(watch)
        self.most_open = max(self.most_open, len(self.open))
        try:
            while line := await watch.lines.get():
                await response.write(line)
        finally:
            self.open.remove(watch)
        return response


def _selected(item: Object, query: dict[str, str]) -> bool:
    if name := query.get("fieldSelector"):
        return bool(item["metadata"]["name"] == name.removeprefix("metadata.name="))
    labels = item["metadata"].get("labels") or {}
    terms = filter(None, query.get("labelSelector", "").split(","))
    return all(labels.get(key) == value for key, _, value in (t.partition("=") for t in terms))
