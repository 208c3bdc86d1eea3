"""An API server's collections in memory: lists, watches, selectors and rights, over `Kube`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from aiohttp import web

Object = dict[str, Any]


class Watch:
    """A watch that is open."""

    def __init__(self, path: str, query: dict[str, str]) -> None:
        self.path = path
        self.query = query
        self.lines: asyncio.Queue[bytes] = asyncio.Queue()


class Collections:
    """`put` and `remove` change objects, and every open watch hears of it; `allows` decides on
    each request, by verb, path and query."""

    def __init__(self, kube: Any) -> None:
        self.objects: dict[str, dict[str, Object]] = {}
        self.open: list[Watch] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.most_open = 0
        self.allows: Callable[[str, str, dict[str, str]], bool] = lambda verb, path, query: True
        self.fails: int | None = None
        self._version = 100
        kube.handler = self._handle

    def put(self, path: str, *items: Object) -> None:
        """Create or change."""
        for item in items:
            metadata = item["metadata"]
            stored = self.objects.setdefault(path, {})
            kind = "MODIFIED" if metadata["name"] in stored else "ADDED"
            stored[metadata["name"]] = self._stamped(item)
            self._tell(path, kind, stored[metadata["name"]])

    def remove(self, path: str, name: str) -> None:
        """Delete."""
        self._tell(path, "DELETED", self._stamped(self.objects[path].pop(name)))

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

    def _tell(self, path: str, kind: str, item: Object) -> None:
        line = json.dumps({"type": kind, "object": item}).encode() + b"\n"
        for watch in self.open:
            if watch.path == path and _selected(item, watch.query):
                watch.lines.put_nowait(line)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path, query = request.path, dict(request.query)
        verb = "watch" if "watch" in query else "list"
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
        if verb == "list":
            items = [item for item in self.objects.get(path, {}).values() if _selected(item, query)]
            metadata = {"resourceVersion": str(self._version)}
            return web.json_response({"metadata": metadata, "items": items})
        watch = Watch(path, query)
        response = web.StreamResponse()
        await response.prepare(request)
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
