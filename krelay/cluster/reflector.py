"""Reflector: list a collection, then watch it, for as long as the caller iterates.

kubernetes.io, "API concepts: efficient detection of changes"; client-go tools/cache/reflector.go.
A watch starts from the list's resourceVersion. Bookmarks keep that version fresh and arrive about
once a minute, so a silent watch means a dead peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any
from urllib.parse import quote

from krelay.cluster.api import Api, Watch
from krelay.cluster.api_errors import StatusError
from krelay.cluster.objects import read_event, read_list, read_object, schema_of
from krelay.errors import (
    AccessDeniedError,
    ClusterError,
    CredentialsError,
    MalformedError,
    NotFoundError,
)
from krelay.retry import Backoff

logger = logging.getLogger("krelay.cluster")

Object = dict[str, Any]
Store = dict[str, Object]
"""Objects by uid."""
Filter = Callable[[Object], bool]

PAGE = 200
MAX_PAGES = 250
WATCH_TIMEOUT = (240, 300)
"""Bounds of the requested length of a watch in seconds; random, so that watches end apart."""
SILENCE = 90.0  # seconds without a line after which a watch is repeated
MAX_PAUSE = 10.0
"""Seconds between attempts at most. A watch that lasted longer is repeated without a pause."""
POLL_EVERY = (3.0, 5.0)
"""Bounds of the seconds between two requests where the right to watch is missing."""
DENIED_PAUSE = 30.0
"""Seconds between attempts while rights or credentials are missing: a person must act."""


class TooManyError(ClusterError):
    """A collection has more objects than the caller allows."""


async def list_and_watch(
    api: Api,
    path: str,
    *,
    label_selector: str = "",
    field_selector: str = "",
    keep: Filter = lambda item: True,
    limit: int | None = None,
    patient: bool = True,
) -> AsyncGenerator[Mapping[str, Object]]:
    """Yield the objects of the collection at `path`, by uid, now and after each change.

    Without the right to watch it is listed every few seconds, and an object that the field selector
    names is read if it may not be listed.

    Changes that arrive together give one set. While the API server is lost, the last known set
    stays. The iteration never ends by itself: passing errors are retried for ever, and so are a
    right or credentials that are lost later.

    Objects for which `keep` is false are dropped. `limit` bounds the objects of a list, dropped
    ones included. Unless `patient`, any error before the first set is raised, and so is a right
    that is lost later.

    Raises:
        AccessDeniedError: neither list nor, for a named object, get was ever allowed.
        CredentialsError: the credentials were never accepted.
        TooManyError: a list has more than `limit` objects.
        ClusterError: the collection does not exist.
    """
    selectors = {"labelSelector": label_selector, "fieldSelector": field_selector}
    query = {key: value for key, value in selectors.items() if value}
    # An only object, whose list is denied, may still be read by its name.
    _, _, name = field_selector.partition("metadata.name=")
    collection = _Collection(api, path, query, name=name, keep=keep, limit=limit, patient=patient)
    loop = asyncio.get_running_loop()
    backoff = Backoff(first=0.2, most=MAX_PAUSE)
    with api.health.watch(path) as health:
        while True:
            began, changes = loop.time(), api.changes
            least = 0.0
            if collection.moved:
                collection.begin_anew()
                backoff.reset()
            try:
                if await collection.read():
                    yield collection.objects()
                if collection.polled:
                    health.recovered()
                    await asyncio.sleep(random.uniform(*POLL_EVERY))
                    continue
                timeout = random.randint(*WATCH_TIMEOUT)
                async with api.stream(
                    path,
                    silence=SILENCE,
                    total=timeout + 30.0,
                    watch="true",
                    resourceVersion=collection.version,
                    allowWatchBookmarks="true",
                    timeoutSeconds=str(timeout),
                    **query,
                ) as batches:
                    if collection.moved:
                        continue  # it was refused, and sent again by another kubeconfig
                    collection.admitted = True
                    health.recovered()
                    async for batch in batches:
                        if collection.moved:
                            break
                        if collection.apply(batch):
                            yield collection.objects()
                        if not collection.version:
                            break
            except ClusterError as exc:
                pause = collection.failed(exc, health)
                if pause is None:
                    continue
                least = pause
            if loop.time() - began > MAX_PAUSE:
                backoff.reset()
            await api.pause(max(backoff.delay(), least), changes)


class _Collection:
    """What is known of a collection, and how it may be read.

    Usually it is listed and watched. Without the right to watch it is listed every few seconds,
    and without the right to list, its only object is read by its name.
    """

    def __init__(
        self,
        api: Api,
        path: str,
        query: dict[str, str],
        *,
        name: str,
        keep: Filter,
        limit: int | None,
        patient: bool,
    ) -> None:
        """Take what `list_and_watch` takes; `name` is that of an only object, else empty."""
        self.version = ""
        """The resourceVersion to watch from; empty if a list must come first."""
        self.admitted = False
        """Whether a watch was ever opened."""
        self._store: Store | None = None
        self._api = api
        self._path = path
        self._query = query
        self._name = name
        self._keep = keep
        self._limit = limit
        self._patient = patient
        self._moves = api.moves
        self._listed_only = False
        # Why the object is read by its name, and whether the log has it.
        self._denied: AccessDeniedError | None = None
        self._denial_logged = False

    @property
    def moved(self) -> bool:
        """Whether requests go to another server than that of `version`."""
        return self._moves != self._api.moves

    @property
    def polled(self) -> bool:
        """Whether it is read every few seconds instead of watched."""
        return self._denied is not None or self._listed_only

    def begin_anew(self) -> None:
        """Forget what another server, which may be another cluster, does not know."""
        self._moves, self.version = self._api.moves, ""
        self._denied, self._denial_logged, self._listed_only = None, False, False

    def objects(self) -> Store:
        """Return a copy of the known objects."""
        return dict(self._store or {})

    async def read(self) -> bool:
        """List it unless it can be watched on; return whether that changed the known objects."""
        if self._denied is not None:
            found = await _get(self._api, self._path, self._name, self._keep)
            if not self._denial_logged:
                logger.info("%s; reading it every few seconds instead", self._denied)
                self._denial_logged = True
        elif self._store is None or not self.version or self._listed_only:
            found, self.version = await _list(
                self._api, self._path, self._query, self._keep, self._limit
            )
        else:
            return False
        if found == self._store:
            return False
        self._store = found
        return True

    def apply(self, batch: list[bytes]) -> bool:
        """Apply a batch of events; return whether that changed the known objects."""
        assert self._store is not None
        self.version, changed = _apply(self._store, batch, self.version, self._path, self._keep)
        return changed

    def failed(self, exc: ClusterError, health: Watch) -> float | None:
        """Choose what follows an error; raise it if nothing does.

        Return the least seconds until the next attempt, or None to read the object at once.
        """
        status = exc.__cause__ if isinstance(exc.__cause__, StatusError) else None
        if isinstance(exc, TooManyError) or (self._store is None and not self._patient):
            raise exc
        if status is not None and status.code == 410:
            self.version = ""
        elif _passes(exc, status):
            health.failed(exc, first=self._store is None)
            if status is not None and status.retry_after is not None:
                return min(status.retry_after, DENIED_PAUSE)
        elif self.admitted and (self._patient or not isinstance(exc, AccessDeniedError)):
            # A list may still be allowed: then this becomes a slow poll.
            self.version = ""
            health.failed(exc)
            return random.uniform(DENIED_PAUSE / 2, DENIED_PAUSE)
        elif not self._patient or not isinstance(exc, AccessDeniedError):
            raise exc
        elif self._store is not None:
            logger.info("%s; listing every few seconds instead", exc)
            self._listed_only = True
            return random.uniform(*POLL_EVERY)
        elif self._name and self._denied is None:
            self._denied = exc
            return None
        else:
            raise self._denied or exc from None
        return 0.0


def _passes(exc: ClusterError, status: StatusError | None) -> bool:
    """Whether the error may pass without a person's help."""
    if status is None:
        return not isinstance(exc, CredentialsError)
    return status.code in (408, 429) or status.code >= 500


async def _get(api: Api, path: str, name: str, keep: Filter) -> Store:
    """Return the object of this name, if there is one."""
    store: Store = {}
    with contextlib.suppress(NotFoundError):
        item = await api.get(f"{path}/{quote(name, safe='')}")
        _put(store, read_object(schema_of(path), item, path), keep)
    return store


async def _list(
    api: Api, path: str, query: dict[str, str], keep: Filter, limit: int | None
) -> tuple[Store, str]:
    """Return all objects, read page by page, and the resourceVersion to watch from."""
    store: Store = {}
    more: dict[str, str] = {}
    seen, moves = 0, api.moves
    for _ in range(MAX_PAGES):
        page = read_list(await api.get(path, limit=str(PAGE), **query, **more), path)
        if moves != api.moves:  # the pages of two servers are no list
            store, more, seen, moves = {}, {}, 0, api.moves
            continue
        seen += len(page.items)
        if limit is not None and seen + page.remaining > limit:
            raise TooManyError(f"more than {limit} objects at {path}")
        if seen > MAX_PAGES * PAGE:
            break
        for item in page.items:
            _put(store, item, keep)
        if not page.token:
            return store, page.version
        more = {"continue": page.token}
    raise ClusterError(
        f"more than {MAX_PAGES * PAGE} objects at {path}", hint="narrow it by a label selector"
    )


def _apply(
    store: Store, batch: list[bytes], version: str, path: str, keep: Filter
) -> tuple[str, bool]:
    """Apply a batch of events to `store`; return the new version, and whether anything changed.

    An empty version asks for a new list, after an error (usually 410, "too old").
    """
    changed = False
    for line in filter(None, batch):
        try:
            kind, version, item = read_event(line, path)
        except MalformedError as exc:
            logger.warning("starting the watch again with a list: %s", exc)
            return "", changed
        if kind == "ERROR":
            return "", changed
        if kind == "DELETED":
            changed |= store.pop(_key(item), None) is not None
        elif kind in ("ADDED", "MODIFIED"):
            changed |= _put(store, item, keep)
            if len(store) > MAX_PAGES * PAGE:
                # The list, which has its own bound, replaces the store.
                logger.warning("more than %d objects at %s", MAX_PAGES * PAGE, path)
                return "", changed
    return version, changed


def _put(store: Store, item: Object, keep: Filter) -> bool:
    """Add or replace `item`; return whether that changes the store."""
    key = _key(item)
    if not keep(item):
        return store.pop(key, None) is not None
    if store.get(key) == item:
        return False
    store[key] = item
    return True


def _key(item: Object) -> str:
    metadata = item["metadata"]
    return str(metadata.get("uid") or f"{metadata.get('namespace', '')}/{metadata['name']}")
