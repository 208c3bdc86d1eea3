"""Informers: the watches of one context, shared by all targets that want the same objects.

client-go's shared informers, for a client that may be allowed to see only single objects. Each
selector of a collection is watched once, whatever the number of subscribers. When more than `FEW`
selectors of one collection are wanted, one watch of the whole collection replaces theirs, if the
user's rights allow it and the collection is not much larger than the wanted part. So the number
of connections depends on the number of collections, not on that of targets or objects.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import (
    AsyncGenerator,
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
from krelay.cluster.reflector import Object, Store, TooManyError, list_and_watch
from krelay.cluster.selectors import Anchor, Selector, anchors
from krelay.errors import AccessDeniedError, ClusterError, CredentialsError

logger = logging.getLogger("krelay.cluster")

Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]

FEW = 3  # selectors of a collection with watches of their own, also beside a watch of the whole
MAX_OBJECTS, MAX_OBJECTS_EACH = 500, 20
"""A collection is watched as a whole only while a list of it has at most `MAX_OBJECTS` objects,
plus `MAX_OBJECTS_EACH` for each wanted selector: the other objects cost traffic and time."""
REFUSED_PAUSE = 600.0  # seconds until a refused or too large collection is tried as a whole again
FAILED_PAUSE = 60.0
"""Seconds until a collection is tried as a whole again after its list failed or was late."""
LIST_DEADLINE = 5.0  # seconds for the first list of a whole collection: its subscribers wait for it
ERROR_TTL = 5.0  # seconds for which an error also answers later subscribers: many retry together


class Informers:
    """The shared watches of one API server; `close` ends them."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._collections: dict[str, _Collection] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def watch(self, path: str, selector: Selector) -> AsyncGenerator[Mapping[str, Object]]:
        """Yield the objects of `selector` by uid, now and after each change.

        As `krelay.cluster.reflector.list_and_watch`, and with its errors. The objects are shared.
        A slow consumer gets only the newest set. The last consumer to leave ends the watch.
        """
        if self._closed:
            raise ClusterError("krelay is stopping")
        collection = self._collections.get(path)
        if collection is None:
            collection = self._collections[path] = _Collection(self._api, path, self._spawn)
        subscription = collection.subscribe(selector)
        try:
            while True:
                yield await subscription.next()
        finally:
            collection.unsubscribe(subscription)

    def relist(self) -> None:
        """List and watch everything anew. Consumers keep what they have, and get what differs."""
        for collection in self._collections.values():
            collection.relist()

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
    """One consumer: the newest set that it has not seen, or the error that ends it."""

    def __init__(self, selector: Selector) -> None:
        self.selector = selector
        self._updated = asyncio.Event()
        self._latest: Store | ClusterError = {}

    def publish(self, latest: Store | ClusterError) -> None:
        self._latest = latest
        self._updated.set()

    async def next(self) -> Store:
        await self._updated.wait()
        self._updated.clear()
        if isinstance(self._latest, ClusterError):
            raise self._latest
        return self._latest


class _Selection:
    """One selector of a collection: its subscribers, its objects, and its own watch if any."""

    def __init__(self) -> None:
        self.subscriptions: set[_Subscription] = set()
        self.objects: Store | None = None
        self.task: asyncio.Task[None] | None = None

    def publish(self, objects: Store) -> None:
        if objects != self.objects:
            self.objects = objects
            for subscription in self.subscriptions:
                subscription.publish(objects)

    def stop(self) -> None:
        task, self.task = self.task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()


class _WholeWatch:
    """A watch of a whole collection: the selectors that it covers, and the objects of each."""

    def __init__(self, selectors: Iterable[Selector]) -> None:
        self.task: asyncio.Task[None] | None = None
        self._sets: dict[Selector, Store] = {selector: {} for selector in selectors}
        self._by_anchor: dict[Anchor | None, list[Selector]] = {}
        for selector in self._sets:
            self._by_anchor.setdefault(selector.anchor, []).append(selector)
        self._store: Mapping[str, Object] = {}

    @property
    def selectors(self) -> Collection[Selector]:
        """The covered selectors."""
        return self._sets.keys()

    def objects(self, selector: Selector) -> Store:
        """Return a copy of one selector's objects."""
        return dict(self._sets[selector])

    def forget(self, selector: Selector) -> None:
        """Stop covering `selector`."""
        if self._sets.pop(selector, None) is not None:
            self._by_anchor[selector.anchor].remove(selector)

    def wants(self, item: Object) -> bool:
        """Return whether any covered selector matches."""
        return next(self._matching(item), None) is not None

    def update(self, store: Mapping[str, Object]) -> set[Selector]:
        """Take over the whole set; return the selectors whose objects changed."""
        before, self._store = self._store, store
        changed = set()
        for key, item in before.items():
            if store.get(key) is not item:
                for selector in self._matching(item):
                    del self._sets[selector][key]
                    changed.add(selector)
        for key, item in store.items():
            if before.get(key) is not item:
                for selector in self._matching(item):
                    self._sets[selector][key] = item
                    changed.add(selector)
        return changed

    def _matching(self, item: Object) -> Iterator[Selector]:
        for anchor in {None, *anchors(item)}:
            for selector in self._by_anchor.get(anchor, ()):
                if selector.matches(item):
                    yield selector


class _Collection:
    """The wanted selectors of one collection, and the watches that serve them."""

    def __init__(self, api: Api, path: str, spawn: Spawn) -> None:
        self._api = api
        self._path = path
        self._spawn = spawn
        self._loop = asyncio.get_running_loop()
        self._selections: dict[Selector, _Selection] = {}
        self._errors: dict[Selector, tuple[float, int, ClusterError]] = {}
        # The watch of the whole collection, and the one that is about to replace it.
        self._whole: _WholeWatch | None = None
        self._next: _WholeWatch | None = None
        self._no_whole_until = -math.inf
        self._planning: asyncio.Handle | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._closed = False

    def subscribe(self, selector: Selector) -> _Subscription:
        """Add a subscriber of `selector`; the first one starts the watch."""
        subscription = _Subscription(selector)
        now, changes = self._loop.time(), self._api.changes
        self._errors = {
            key: value
            for key, value in self._errors.items()
            if now < value[0] and changes == value[1]
        }
        if selector in self._errors:
            subscription.publish(self._errors[selector][2])
            return subscription
        selection = self._selections.setdefault(selector, _Selection())
        selection.subscriptions.add(subscription)
        if selection.objects is not None:
            subscription.publish(selection.objects)
        self._plan_soon()
        return subscription

    def unsubscribe(self, subscription: _Subscription) -> None:
        """Remove a subscriber; the last one ends the watch."""
        selector = subscription.selector
        selection = self._selections.get(selector)
        if selection is None or subscription not in selection.subscriptions:
            return
        selection.subscriptions.discard(subscription)
        if not selection.subscriptions:
            self._remove(selector)

    def relist(self) -> None:
        """Replace every watch by a new one."""
        self._no_whole_until = -math.inf
        for whole in (self._whole, self._next):
            if whole is not None:
                self._drop(whole)
        for selection in self._selections.values():
            selection.stop()
        self._plan_soon()

    def close(self) -> None:
        """Start no more watches."""
        self._closed = True
        for handle in (self._planning, self._retry):
            if handle is not None:
                handle.cancel()

    def _plan_soon(self) -> None:
        """Plan after this turn of the loop, so that simultaneous subscribers count together."""
        if self._planning is None and not self._closed:
            self._planning = self._loop.call_soon(self._plan)

    def _plan(self) -> None:
        """Start the missing watches."""
        self._planning = None
        if self._next is not None:
            return  # its first list plans again
        covered = self._whole.selectors if self._whole is not None else ()
        uncovered = [selector for selector in self._selections if selector not in covered]
        if len(uncovered) > FEW and self._loop.time() >= self._no_whole_until:
            self._next = _WholeWatch(self._selections)
            self._next.task = self._spawn(self._run_whole(self._next), self._path)
            return
        for selector in uncovered:
            selection = self._selections[selector]
            if selection.task is None:
                selection.task = self._spawn(self._run_one(selector, selection), self._path)

    def _promote(self, whole: _WholeWatch) -> None:
        """Let `whole`, which has listed, replace the other watches of its selectors."""
        before, self._whole, self._next = self._whole, whole, None
        if before is not None and before.task is not None:
            before.task.cancel()
        for selector in whole.selectors:
            self._selections[selector].stop()
        self._plan_soon()

    def _drop(self, whole: _WholeWatch) -> None:
        """End `whole`, and plan for the selectors that it covered."""
        if whole is self._next:
            self._next = None
        if whole is self._whole:
            self._whole = None
        if whole.task is not None and whole.task is not asyncio.current_task():
            whole.task.cancel()
        self._plan_soon()

    def _fail(self, selectors: Iterable[Selector], error: Exception) -> None:
        """End the selections with `error`, which also answers subscribers of the next moment."""
        if not isinstance(error, ClusterError):
            logger.error("watching %s failed", self._path, exc_info=error)
            error = ClusterError(f"internal error: {error!r}")
        for selector in selectors:
            if (selection := self._remove(selector)) is not None:
                self._errors[selector] = (
                    self._loop.time() + ERROR_TTL,
                    self._api.changes,
                    error,
                )
                for subscription in selection.subscriptions:
                    subscription.publish(error)

    def _remove(self, selector: Selector) -> _Selection | None:
        """End the watches of `selector`; return its selection."""
        selection = self._selections.pop(selector, None)
        if selection is not None:
            selection.stop()
            for whole in (self._whole, self._next):
                if whole is not None:
                    whole.forget(selector)
                    if not whole.selectors:
                        self._drop(whole)
        return selection

    async def _run_one(self, selector: Selector, selection: _Selection) -> None:
        """Watch the objects of one selector."""
        watch = list_and_watch(
            self._api,
            self._path,
            label_selector=selector.label_selector,
            field_selector=selector.field_selector,
        )
        try:
            async with aclosing(watch) as sets:
                async for found in sets:
                    selection.publish(dict(found))
        except Exception as exc:
            self._fail([selector], exc)

    async def _run_whole(self, whole: _WholeWatch) -> None:
        """Watch the collection; its first list replaces the other watches."""
        try:
            await self._feed(whole)
            return
        except (AccessDeniedError, TooManyError) as exc:
            logger.debug("%s is not watched as a whole: %s", self._path, exc)
            self._no_whole_until = self._loop.time() + REFUSED_PAUSE
        except TimeoutError:
            self._retry_later("no answer in time")
        except Exception as exc:
            passing = isinstance(exc, ClusterError) and not isinstance(exc, CredentialsError)
            if whole is self._next and passing:
                # Watches of single objects may still work.
                self._retry_later(exc)
            else:
                lost = [key for key in whole.selectors if self._selections[key].task is None]
                self._fail(lost, exc)
        self._drop(whole)

    def _retry_later(self, reason: object) -> None:
        """Use watches of single selectors until the whole is tried again."""
        logger.debug("%s is not watched as a whole for now: %s", self._path, reason)
        self._no_whole_until = self._loop.time() + FAILED_PAUSE
        if self._retry is not None:
            self._retry.cancel()
        if not self._closed:
            self._retry = self._loop.call_at(self._no_whole_until, self._plan_soon)

    async def _feed(self, whole: _WholeWatch) -> None:
        # Outside the deadline: a credential plugin may wait for a person.
        await self._api.access()
        sets = list_and_watch(
            self._api,
            self._path,
            keep=whole.wants,
            limit=MAX_OBJECTS + MAX_OBJECTS_EACH * len(whole.selectors),
            patient=False,
        )
        async with aclosing(sets), asyncio.timeout(LIST_DEADLINE) as first_list:
            async for found in sets:
                first_list.reschedule(None)
                changed: Iterable[Selector] = whole.update(found)
                if whole is self._next:
                    self._promote(whole)
                    changed = whole.selectors
                for selector in changed:
                    self._selections[selector].publish(whole.objects(selector))
