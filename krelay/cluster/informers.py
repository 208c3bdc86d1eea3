"""Informers: the watches of one context, shared by every target that wants the same objects.

client-go's shared informers, for a client that may see only single objects. Each selector of a
collection is watched once, however many subscribe to it. Once more than `FEW` selectors of one
collection are wanted, a single watch of the whole collection takes their place, if the user's
rights allow it and the collection is not much larger than what is wanted of it. So the number of
connections depends on the number of collections, not on that of targets or objects.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import aclosing
from typing import Any

from krelay.cluster.api import Api
from krelay.cluster.objects import trimmed
from krelay.cluster.reflector import Item, Keep, Objects, TooManyError, follow
from krelay.cluster.selectors import Anchor, Selector, anchors
from krelay.errors import AccessDeniedError, ClusterError, CredentialsError

logger = logging.getLogger("krelay.cluster")

Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]

FEW = 3
"""Selectors of a collection that are watched one by one, also beside a watch of the whole."""
MOST, MOST_EACH = 500, 20
"""A collection is watched as a whole only while a list of it has at most `MOST` objects, and
`MOST_EACH` for each selector that is wanted: what else it has costs traffic and time."""
NOT_WHOLE = 600.0
"""Seconds for which a collection that cannot be watched as a whole is not tried again."""
ANSWER = 5.0
"""Seconds that the first list of a whole collection may take: what it is for waits for it."""
NOT_NOW = 60.0
"""Seconds after which the whole is tried again where that list failed, or took longer."""
FAILED = 5.0
"""Seconds for which an error is the answer to all who subscribe: many ask again together."""


class Informers:
    """The shared watches of one API server; `close` ends them."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._collections: dict[str, _Collection] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def watch(self, path: str, selector: Selector) -> AsyncIterator[Mapping[str, Item]]:
        """Yield the objects that `selector` selects, by uid, now and after each change.

        As `krelay.cluster.reflector.follow`, whose errors are these; but the objects are shared and
        trimmed, and a slow consumer gets the newest set only. The last consumer to leave ends the
        watch.
        """
        if self._closed:
            raise ClusterError("krelay is ending")
        collection = self._collections.get(path)
        if collection is None:
            collection = self._collections[path] = _Collection(self._api, path, self._spawn)
        subscription = collection.subscribe(selector)
        try:
            while True:
                yield await subscription.next()
        finally:
            collection.unsubscribe(subscription)

    async def close(self) -> None:
        """End every watch."""
        self._closed = True
        for collection in self._collections.values():
            collection.close()
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Subscription:
    """One consumer's place: the newest set that it has not seen, or the error that ends it."""

    def __init__(self, selector: Selector) -> None:
        self.selector = selector
        self._news = asyncio.Event()
        self._latest: Objects = {}
        self._error: ClusterError | None = None

    def publish(self, objects: Objects) -> None:
        self._latest = objects
        self._news.set()

    def fail(self, error: ClusterError) -> None:
        self._error = error
        self._news.set()

    async def next(self) -> Objects:
        await self._news.wait()
        self._news.clear()
        if self._error is not None:
            raise self._error
        return self._latest


class _Entry:
    """One selector of a collection: who wants it, what is known, and the watch of it alone."""

    def __init__(self) -> None:
        self.subscriptions: set[_Subscription] = set()
        self.objects: Objects | None = None
        self.alone: asyncio.Task[None] | None = None

    def publish(self, objects: Objects) -> None:
        if objects != self.objects:
            self.objects = objects
            for subscription in self.subscriptions:
                subscription.publish(objects)

    def stop(self) -> None:
        alone, self.alone = self.alone, None
        if alone is not None and alone is not asyncio.current_task():
            alone.cancel()


class _Whole:
    """A watch of a whole collection: which selectors it covers, and what it knows of each."""

    def __init__(self, selectors: Iterable[Selector]) -> None:
        self.task: asyncio.Task[None] | None = None
        self._sets: dict[Selector, Objects] = {selector: {} for selector in selectors}
        self._anchored: dict[Anchor | None, list[Selector]] = {}
        for selector in self._sets:
            self._anchored.setdefault(selector.anchor, []).append(selector)
        self._found: Mapping[str, Item] = {}

    @property
    def selectors(self) -> Collection[Selector]:
        """What it covers."""
        return self._sets.keys()

    def objects(self, selector: Selector) -> Objects:
        """What it knows of one selector."""
        return dict(self._sets[selector])

    def forget(self, selector: Selector) -> None:
        """Cover this one no more."""
        if self._sets.pop(selector, None) is not None:
            self._anchored[selector.anchor].remove(selector)

    def wants(self, item: Item) -> bool:
        """Whether a selector matches."""
        return next(self._matching(item), None) is not None

    def take(self, found: Mapping[str, Item]) -> set[Selector]:
        """Take the whole set over: the selectors whose objects are others now."""
        before, self._found = self._found, found
        changed = set()
        for key, item in before.items():
            if found.get(key) is not item:
                for selector in self._matching(item):
                    del self._sets[selector][key]
                    changed.add(selector)
        for key, item in found.items():
            if before.get(key) is not item:
                for selector in self._matching(item):
                    self._sets[selector][key] = item
                    changed.add(selector)
        return changed

    def _matching(self, item: Item) -> Iterator[Selector]:
        for anchor in {None, *anchors(item)}:
            for selector in self._anchored.get(anchor, ()):
                if selector.matches(item):
                    yield selector


class _Collection:
    """What is wanted of one collection, and the watches that bring it."""

    def __init__(self, api: Api, path: str, spawn: Spawn) -> None:
        self._api = api
        self._path = path
        self._resource = path.rpartition("/")[2]
        self._spawn = spawn
        self._loop = asyncio.get_running_loop()
        self._entries: dict[Selector, _Entry] = {}
        self._failed: dict[Selector, tuple[float, ClusterError]] = {}
        # The watch of the whole, and the one that is to take its place.
        self._whole: _Whole | None = None
        self._next: _Whole | None = None
        self._not_whole_until = -math.inf
        self._planning: asyncio.Handle | None = None
        self._again: asyncio.TimerHandle | None = None
        self._closed = False

    def subscribe(self, selector: Selector) -> _Subscription:
        """Take part in the watch of `selector`; start it if it is the first."""
        subscription = _Subscription(selector)
        now = self._loop.time()
        self._failed = {key: value for key, value in self._failed.items() if now < value[0]}
        if selector in self._failed:
            subscription.fail(self._failed[selector][1])
            return subscription
        entry = self._entries.setdefault(selector, _Entry())
        entry.subscriptions.add(subscription)
        if entry.objects is not None:
            subscription.publish(entry.objects)
        self._plan_soon()
        return subscription

    def unsubscribe(self, subscription: _Subscription) -> None:
        """Leave; the last one ends the watch."""
        selector = subscription.selector
        entry = self._entries.get(selector)
        if entry is None or subscription not in entry.subscriptions:
            return
        entry.subscriptions.discard(subscription)
        if not entry.subscriptions:
            self._remove(selector)

    def close(self) -> None:
        """Start nothing more."""
        self._closed = True
        for handle in (self._planning, self._again):
            if handle is not None:
                handle.cancel()

    # -- planning ------------------------------------------------------------------------------

    def _plan_soon(self) -> None:
        """Plan after this turn of the loop: what is wanted together is planned together."""
        if self._planning is None and not self._closed:
            self._planning = self._loop.call_soon(self._plan)

    def _plan(self) -> None:
        """Start the watches that are missing."""
        self._planning = None
        if self._next is not None:
            return  # its first answer plans again
        covered = self._whole.selectors if self._whole is not None else ()
        apart = [selector for selector in self._entries if selector not in covered]
        if len(apart) > FEW and self._loop.time() >= self._not_whole_until:
            self._next = _Whole(self._entries)
            self._next.task = self._spawn(self._run_whole(self._next), self._path)
            return
        for selector in apart:
            entry = self._entries[selector]
            if entry.alone is None:
                entry.alone = self._spawn(self._run_alone(selector, entry), self._path)

    def _take_over(self, whole: _Whole) -> None:
        """`whole` has listed: what it covers needs no other watch."""
        before, self._whole, self._next = self._whole, whole, None
        if before is not None and before.task is not None:
            before.task.cancel()
        for selector in whole.selectors:
            self._entries[selector].stop()
        self._plan_soon()

    def _drop(self, whole: _Whole) -> None:
        """`whole` ends; what it covered and is still wanted is planned anew."""
        if whole is self._next:
            self._next = None
        if whole is self._whole:
            self._whole = None
        if whole.task is not None and whole.task is not asyncio.current_task():
            whole.task.cancel()
        self._plan_soon()

    def _fail(self, selectors: Iterable[Selector], error: ClusterError) -> None:
        """End these with the error, also for those who subscribe soon."""
        for selector in selectors:
            if (entry := self._remove(selector)) is not None:
                self._failed[selector] = (self._loop.time() + FAILED, error)
                for subscription in entry.subscriptions:
                    subscription.fail(error)

    def _remove(self, selector: Selector) -> _Entry | None:
        """End what is watched for this selector."""
        entry = self._entries.pop(selector, None)
        if entry is not None:
            entry.stop()
            for whole in (self._whole, self._next):
                if whole is not None:
                    whole.forget(selector)
                    if not whole.selectors:
                        self._drop(whole)
        return entry

    # -- watching ------------------------------------------------------------------------------

    async def _run_alone(self, selector: Selector, entry: _Entry) -> None:
        """Watch what one selector selects."""
        try:
            async for found in self._follow(selector.query, lambda item: item):
                entry.publish(dict(found))
        except ClusterError as exc:
            self._fail([selector], exc)
        except Exception as exc:
            logger.exception("%s: watching failed", self._path)
            self._fail([selector], ClusterError(f"internal error: {exc!r}"))

    async def _run_whole(self, whole: _Whole) -> None:
        """Watch the collection; from the first list on this takes the place of other watches."""
        try:
            await self._feed(whole)
            return
        except (AccessDeniedError, TooManyError) as exc:
            logger.debug("%s is not watched as a whole: %s", self._path, exc)
            self._not_whole_until = self._loop.time() + NOT_WHOLE
        except TimeoutError:
            self._not_now("no answer in time")
        except ClusterError as exc:
            if whole is self._next and not isinstance(exc, CredentialsError):
                # Of single objects the server may know more.
                self._not_now(exc)
            else:
                self._fail(self._only_by(whole), exc)
        except Exception as exc:
            logger.exception("%s: watching failed", self._path)
            self._fail(self._only_by(whole), ClusterError(f"internal error: {exc!r}"))
        self._drop(whole)

    def _not_now(self, reason: object) -> None:
        """The whole does not list: single watches until it is tried again."""
        logger.debug("%s is not watched as a whole for now: %s", self._path, reason)
        self._not_whole_until = self._loop.time() + NOT_NOW
        if self._again is not None:
            self._again.cancel()
        if not self._closed:
            self._again = self._loop.call_at(self._not_whole_until, self._plan_soon)

    async def _feed(self, whole: _Whole) -> None:
        most = MOST + MOST_EACH * len(whole.selectors)
        keep: Keep = lambda item: item if whole.wants(item) else None  # noqa: E731
        await self._api.access()  # a plugin may wait for a person, without this deadline
        sets = self._follow({}, keep, most=most, patient=False)
        async with aclosing(sets), asyncio.timeout(ANSWER) as first:  # type: ignore[type-var]
            async for found in sets:
                first.reschedule(None)
                changed: Iterable[Selector] = whole.take(found)
                if whole is self._next:
                    self._take_over(whole)
                    changed = whole.selectors
                for selector in changed:
                    self._entries[selector].publish(whole.objects(selector))

    async def _follow(
        self, query: Mapping[str, str], keep: Keep, *, most: int | None = None, patient: bool = True
    ) -> AsyncIterator[Mapping[str, Item]]:
        def trim(item: Item) -> Item | None:
            return None if keep(item) is None else trimmed(self._resource, item)

        sets = follow(
            self._api,
            self._path,
            label_selector=query.get("labelSelector", ""),
            field_selector=query.get("fieldSelector", ""),
            keep=trim,
            most=most,
            patient=patient,
        )
        async with aclosing(sets):  # type: ignore[type-var]
            async for found in sets:
                yield found

    def _only_by(self, whole: _Whole) -> list[Selector]:
        """What nothing but `whole` watches."""
        return [key for key in whole.selectors if self._entries[key].alone is None]
