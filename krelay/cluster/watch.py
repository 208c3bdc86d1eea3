"""Watch: the fourth step into the cluster; follows a collection for as long as anyone listens.

kubernetes.io, "API concepts: efficient detection of changes". List, then watch from the list's
resourceVersion; bookmarks keep that version young, and come about once a minute, so that
silence means a dead peer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from krelay.cluster.api import Api, Lines
from krelay.cluster.refusal import Refusal
from krelay.errors import ClusterError, CredentialsError

logger = logging.getLogger("krelay.cluster")

Objects = dict[str, dict[str, Any]]

PAGE = 200
MAX_PAGES = 250
LENGTH = (240, 300)
"""Seconds that a watch is asked to last: random, so that many do not end at once."""
SILENCE = 90.0
LONGEST_PAUSE = 10.0
DENIED_PAUSE = 30.0
"""Seconds between attempts where rights or credentials are missing: a person must act."""


async def follow(
    api: Api, path: str, *, label_selector: str = "", field_selector: str = ""
) -> AsyncIterator[Mapping[str, dict[str, Any]]]:
    """The whole set now, and again after each change; the last known good while out of touch.

    The key is the object's uid. What arrived together gives one set. Never ends: what passes is
    retried for ever, also a right or a credential that is lost on the way.

    Raises:
        AccessDeniedError: neither list nor watch was ever allowed.
        CredentialsError: we never got in.
        ClusterError: there never was such a collection.
    """
    selectors = {"labelSelector": label_selector, "fieldSelector": field_selector}
    query = {key: value for key, value in selectors.items() if value}
    known: Objects | None = None
    version = ""
    admitted = False
    pace = _Pace(path)
    while True:
        pace.begin()
        try:
            if known is None or not version:
                listed, version = await _list(api, path, query)
                if listed != known:
                    known = listed
                    yield dict(known)
            async with _watch(api, path, version, query) as batches:
                admitted = True
                pace.good()
                async for batch in batches:
                    version, changed = _apply(known, batch, version)
                    if changed:
                        yield dict(known)
                    if not version:
                        break
            pause = pace.ended()
        except ClusterError as exc:
            no = exc.__cause__ if isinstance(exc.__cause__, Refusal) else None
            if no is not None and no.status == 410:
                version = ""
                pause = pace.ended()
            elif _passes(exc, no):
                after = (no.after or 0.0) if no is not None else 0.0
                pause = max(pace.ended(), min(after, DENIED_PAUSE))
                pace.bad(exc)
            elif admitted:
                # Perhaps list still is allowed: then this is a slow poll.
                version = ""
                pause = random.uniform(DENIED_PAUSE / 2, DENIED_PAUSE)
                pace.bad(exc)
            else:
                raise
        await asyncio.sleep(pause)


def _passes(exc: ClusterError, no: Refusal | None) -> bool:
    """Whether waiting may help, without anyone doing something."""
    if no is None:
        return not isinstance(exc, CredentialsError)
    return no.status in (408, 429) or no.status >= 500


def _watch(
    api: Api, path: str, version: str, query: dict[str, str]
) -> AbstractAsyncContextManager[Lines]:
    length = random.randint(*LENGTH)
    return api.stream(
        path,
        silence=SILENCE,
        total=length + 30.0,
        watch="true",
        resourceVersion=version,
        allowWatchBookmarks="true",
        timeoutSeconds=str(length),
        **query,
    )


async def _list(api: Api, path: str, query: dict[str, str]) -> tuple[Objects, str]:
    """All objects, page by page, and the version to watch from."""
    found: Objects = {}
    more: dict[str, str] = {}
    for _ in range(MAX_PAGES):
        page = await api.get(path, limit=str(PAGE), **query, **more)
        try:
            for item in page.get("items") or ():
                _put(found, item)
            metadata = page["metadata"]
            if not metadata.get("continue"):
                return found, str(metadata["resourceVersion"])
        except (KeyError, TypeError, AttributeError) as exc:
            raise ClusterError(f"the answer is no list of objects: {path}") from exc
        more = {"continue": str(metadata["continue"])}
    raise ClusterError(
        f"more than {MAX_PAGES * PAGE} objects at {path}", hint="narrow it by a label selector"
    )


def _apply(known: Objects, batch: list[bytes], version: str) -> tuple[str, bool]:
    """Lays a batch of events over `known`: the new version, and whether anything changed.

    An empty version: the server ended the watch with an error (410 "too old" as a rule), or sent
    what is no event. Whatever it was, a list mends it.
    """
    changed = False
    for line in batch:
        if not line:
            continue
        try:
            event = json.loads(line)
            kind, item = event["type"], event["object"]
            if kind == "ERROR":
                return "", changed
            version = str(item["metadata"]["resourceVersion"])
            if kind == "DELETED":
                changed |= known.pop(_key(item), None) is not None
            elif kind in ("ADDED", "MODIFIED"):
                changed |= _put(known, item)
        except (ValueError, KeyError, TypeError, AttributeError):
            logger.debug("no event: %r", line[:200])
            return "", changed
    return version, changed


def _put(known: Objects, item: dict[str, Any]) -> bool:
    item["metadata"].pop("managedFields", None)  # often half of an object, and of no use here
    key = _key(item)
    if known.get(key) == item:
        return False
    known[key] = item
    return True


def _key(item: dict[str, Any]) -> str:
    metadata = item["metadata"]
    return str(metadata.get("uid") or f"{metadata.get('namespace', '')}/{metadata['name']}")


class _Pace:
    """How soon to try again, and one line in the log for each time out of touch."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._began = 0.0
        self._failed = 0
        self._lost = False

    def begin(self) -> None:
        self._began = self._loop.time()

    def good(self) -> None:
        if self._lost:
            logger.info("watching %s again", self._path)
        self._lost = False

    def bad(self, why: ClusterError) -> None:
        log = logger.debug if self._lost else logger.warning
        log("out of touch with %s, what was known stays: %s", self._path, why)
        self._lost = True

    def ended(self) -> float:
        """Seconds to wait: none after a watch of some length, else full jitter, ever longer."""
        if self._loop.time() - self._began > LONGEST_PAUSE:
            self._failed = 0
            return 0.0
        self._failed += 1
        return random.uniform(0, min(LONGEST_PAUSE, 0.1 * 2**self._failed))
