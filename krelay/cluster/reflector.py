"""Watch: the fourth step into the cluster; follows a collection for as long as anyone listens.

kubernetes.io, "API concepts: efficient detection of changes"; the shape is client-go's Reflector.
List, then watch from the list's resourceVersion; bookmarks keep that version young, and come about
once a minute, so that silence means a dead peer.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from krelay.cluster.api import Api, Lines
from krelay.cluster.api_errors import Refusal
from krelay.cluster.objects import read_event, read_list
from krelay.errors import AccessDeniedError, ClusterError, CredentialsError, MalformedError

logger = logging.getLogger("krelay.cluster")

Item = dict[str, Any]
Objects = dict[str, Item]
Keep = Callable[[Item], Item | None]
"""What is to be kept of an object; None drops it."""

PAGE = 200
MAX_PAGES = 250
LENGTH = (240, 300)
"""Seconds that a watch is asked to last: random, so that many do not end at once."""
SILENCE = 90.0
LONGEST_PAUSE = 10.0
DENIED_PAUSE = 30.0
"""Seconds between attempts where rights or credentials are missing: a person must act."""


async def follow(
    api: Api,
    path: str,
    *,
    label_selector: str = "",
    field_selector: str = "",
    keep: Keep = lambda item: item,
    most: int | None = None,
    patient: bool = True,
) -> AsyncIterator[Mapping[str, Item]]:
    """The whole set now, and again after each change; the last known good while out of touch.

    The key is the object's uid. What arrived together gives one set. Never ends: what passes is
    retried for ever, also a right or a credential that is lost on the way.

    `keep` sees each object first. `most` bounds how many objects a list may have, kept or not.
    Unless `patient`, a right that is lost on the way is an error too, and so is whatever comes
    before the first set.

    Raises:
        AccessDeniedError: neither list nor watch was ever allowed.
        CredentialsError: we never got in.
        TooManyError: a list has more than `most` objects.
        ClusterError: there never was such a collection.
    """
    selectors = {"labelSelector": label_selector, "fieldSelector": field_selector}
    query = {key: value for key, value in selectors.items() if value}
    known: Objects | None = None
    version = ""
    admitted = False
    pace = _Pace()
    with api.contact.watching(path) as contact:
        while True:
            pace.begin()
            try:
                if known is None or not version:
                    listed, version = await _list(api, path, query, keep, most)
                    if listed != known:
                        known = listed
                        yield dict(known)
                async with _watch(api, path, version, query) as batches:
                    admitted = True
                    contact.good()
                    async for batch in batches:
                        version, changed = _apply(known, batch, version, path, keep)
                        if changed:
                            yield dict(known)
                        if not version:
                            break
                pause = pace.ended()
            except ClusterError as exc:
                no = exc.__cause__ if isinstance(exc.__cause__, Refusal) else None
                if known is None and not patient:
                    raise
                if no is not None and no.status == 410:
                    version = ""
                    pause = pace.ended()
                elif isinstance(exc, TooManyError):
                    raise
                elif _passes(exc, no):
                    after = (no.after or 0.0) if no is not None else 0.0
                    pause = max(pace.ended(), min(after, DENIED_PAUSE))
                    contact.lost(exc)
                elif admitted and (patient or not isinstance(exc, AccessDeniedError)):
                    # Perhaps list still is allowed: then this is a slow poll.
                    version = ""
                    pause = random.uniform(DENIED_PAUSE / 2, DENIED_PAUSE)
                    contact.lost(exc)
                else:
                    raise
            await asyncio.sleep(pause)


class TooManyError(ClusterError):
    """A collection has more objects than are wanted of it."""


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


async def _list(
    api: Api, path: str, query: dict[str, str], keep: Keep, most: int | None
) -> tuple[Objects, str]:
    """All objects, page by page, and the version to watch from."""
    found: Objects = {}
    more: dict[str, str] = {}
    seen = 0
    for _ in range(MAX_PAGES):
        page = await api.get(path, limit=str(PAGE), **query, **more)
        items, version, token, left = read_list(page, path)
        seen += len(items)
        if most is not None and seen + left > most:
            raise TooManyError(f"more than {most} objects at {path}")
        if seen > MAX_PAGES * PAGE:
            break
        for item in items:
            _put(found, item, keep)
        if not token:
            return found, version
        more = {"continue": token}
    raise ClusterError(
        f"more than {MAX_PAGES * PAGE} objects at {path}", hint="narrow it by a label selector"
    )


def _apply(
    known: Objects,
    batch: list[bytes],
    version: str,
    path: str,
    keep: Keep = lambda item: item,
) -> tuple[str, bool]:
    """Lays a batch of events over `known`: the new version, and whether anything changed.

    An empty version: the server ended the watch with an error (410 "too old" as a rule), or sent
    what is no event. Whatever it was, a list mends it.
    """
    changed = False
    for line in batch:
        if not line:
            continue
        try:
            kind, version, item = read_event(line, path)
        except MalformedError as exc:
            logger.warning("a watch is begun anew: %s", exc)
            return "", changed
        if kind == "ERROR":
            return "", changed
        if kind == "DELETED":
            changed |= known.pop(_key(item), None) is not None
        elif kind in ("ADDED", "MODIFIED"):
            changed |= _put(known, item, keep)
            if len(known) > MAX_PAGES * PAGE:
                # A list has its own bound, and takes the place of what is known.
                logger.warning("more than %d objects at %s", MAX_PAGES * PAGE, path)
                return "", changed
    return version, changed


def _put(known: Objects, item: Item, keep: Keep) -> bool:
    key = _key(item)
    kept = keep(item)
    if kept is None:
        return known.pop(key, None) is not None
    if known.get(key) == kept:
        return False
    known[key] = kept
    return True


def _key(item: Item) -> str:
    metadata = item["metadata"]
    return str(metadata.get("uid") or f"{metadata.get('namespace', '')}/{metadata['name']}")


class _Pace:
    """How soon to try again."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._began = 0.0
        self._failed = 0

    def begin(self) -> None:
        self._began = self._loop.time()

    def ended(self) -> float:
        """Seconds to wait: none after a watch of some length, else full jitter, ever longer."""
        if self._loop.time() - self._began > LONGEST_PAUSE:
            self._failed = 0
            return 0.0
        self._failed += 1
        return random.uniform(0, min(LONGEST_PAUSE, 0.1 * 2**self._failed))
