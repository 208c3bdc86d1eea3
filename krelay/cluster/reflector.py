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

from krelay.cluster.api import Api
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
    store: Store | None = None
    version = ""
    moves = api.moves
    admitted = False
    # An only object, whose list is denied, may still be read by its name.
    _, _, name = field_selector.partition("metadata.name=")
    denied: AccessDeniedError | None = None
    read = polled = False
    loop = asyncio.get_running_loop()
    backoff = Backoff(first=0.2, most=MAX_PAUSE)
    with api.health.watch(path) as health:
        while True:
            began, changes = loop.time(), api.changes
            minimum_pause = 0.0
            if moves != api.moves:
                # Another server may be another cluster, where the version means nothing.
                moves, version = api.moves, ""
                denied, read, polled = None, False, False
                backoff.reset()
            try:
                if denied is not None:
                    listed = await _get(api, path, name, keep)
                    if not read:
                        logger.info("%s; reading it every few seconds instead", denied)
                        read = True
                elif store is None or not version or polled:
                    listed, version = await _list(api, path, query, keep, limit)
                else:
                    listed = store
                if listed != store:
                    store = listed
                    yield dict(store)
                if denied is not None or polled:
                    health.recovered()
                    await asyncio.sleep(random.uniform(*POLL_EVERY))
                    continue
                timeout = random.randint(*WATCH_TIMEOUT)
                async with api.stream(
                    path,
                    silence=SILENCE,
                    total=timeout + 30.0,
                    watch="true",
                    resourceVersion=version,
                    allowWatchBookmarks="true",
                    timeoutSeconds=str(timeout),
                    **query,
                ) as batches:
                    if moves != api.moves:
                        continue  # it was refused, and sent again by another kubeconfig
                    admitted = True
                    health.recovered()
                    async for batch in batches:
                        if moves != api.moves:
                            break
                        version, changed = _apply(store, batch, version, path, keep)
                        if changed:
                            yield dict(store)
                        if not version:
                            break
            except ClusterError as exc:
                status = exc.__cause__ if isinstance(exc.__cause__, StatusError) else None
                if isinstance(exc, TooManyError) or (store is None and not patient):
                    raise
                if status is not None and status.code == 410:
                    version = ""
                elif _passes(exc, status):
                    if status is not None and status.retry_after is not None:
                        minimum_pause = min(status.retry_after, DENIED_PAUSE)
                    health.failed(exc, first=store is None)
                elif admitted and (patient or not isinstance(exc, AccessDeniedError)):
                    # A list may still be allowed: then this becomes a slow poll.
                    version = ""
                    minimum_pause = random.uniform(DENIED_PAUSE / 2, DENIED_PAUSE)
                    health.failed(exc)
                elif not patient or not isinstance(exc, AccessDeniedError):
                    raise
                elif store is not None:
                    logger.info("%s; listing every few seconds instead", exc)
                    polled = True
                    minimum_pause = random.uniform(*POLL_EVERY)
                elif name and denied is None:
                    denied = exc
                    continue
                else:
                    raise denied or exc from None
            if loop.time() - began > MAX_PAUSE:
                backoff.reset()
            await api.pause(max(backoff.delay(), minimum_pause), changes)


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
