"""The Python API: `krelay.relay` keeps forwards for as long as a `with` or `async with` lasts."""

from __future__ import annotations

import asyncio
import atexit
import dataclasses
import logging
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from krelay.errors import KrelayError, UsageError
from krelay.model import Config, Endpoint
from krelay.mux.descriptors import raise_file_limit
from krelay.state.snapshot import connect_address
from krelay.state.states import ForwardState
from krelay.tasks import TaskGroup, shield_cleanup
from krelay.threads import LoopThread, in_thread

if TYPE_CHECKING:
    from krelay.config.sources import Lines, Selection

logger = logging.getLogger("krelay.api")

# The user of a library decides what becomes of its warnings.
logging.getLogger("krelay").addHandler(logging.NullHandler())

TIMEOUT = 60.0
"""Seconds in which the forwards have to become ready."""
_DRAIN = 1.0
"""Seconds that connections get to finish once the block has ended."""


@dataclass(frozen=True, slots=True)
class Forward:
    """One port of a target: connect to `host` and `port` to reach `to`."""

    target: str
    host: str
    port: int
    protocol: str
    to: str

    @property
    def address(self) -> str:
        """The address as `127.0.0.1:8080`."""
        return str(Endpoint(self.host, self.port))

    def url(self, scheme: str = "http") -> str:
        """Return the address as `http://127.0.0.1:8080`."""
        return f"{scheme}://{self.address}"


class Forwards(Mapping[str, Forward]):
    """The first port of each target by the target's name; `all` returns all ports of one."""

    def __init__(self, forwards: Iterable[Forward]) -> None:
        self._all: dict[str, tuple[Forward, ...]] = {}
        for forward in forwards:
            self._all[forward.target] = (*self._all.get(forward.target, ()), forward)

    def __getitem__(self, name: str) -> Forward:
        return self._all[name][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __repr__(self) -> str:
        each = ", ".join(f"{name!r}: {self[name].address}" for name in self)
        return f"<Forwards {each}>"

    def all(self, name: str) -> tuple[Forward, ...]:
        """Return every port of a target, in the order of its line."""
        return self._all[name]


class Started(Forwards):
    """Forwards that last until `close`, or until the interpreter ends.

    Those of `relay.astart` end with `aclose`, on the loop on which they began.
    """

    def __init__(self, owner: relay, forwards: Forwards) -> None:
        super().__init__(forward for name in forwards for forward in forwards.all(name))
        self._owner: relay | None = owner
        self._process = os.getpid()
        if owner.in_thread:
            atexit.register(self._close_at_exit)

    def close(self) -> None:
        """End the forwards, and remove the agent; again, do nothing. Blocks.

        Raises:
            UsageError: `astart` started them.
            KrelayError: relaying has failed meanwhile.
        """
        if self._owner is None:
            return
        if not self._owner.in_thread:
            hint = "`await forwards.aclose()`"
            raise explained(UsageError("`astart` started these forwards", hint=hint))
        owner, self._owner = self._owner, None
        atexit.unregister(self._close_at_exit)
        owner.__exit__(None, None, None)

    async def aclose(self) -> None:
        """End the forwards, and remove the agent; again, do nothing. Any task may call it.

        Raises:
            KrelayError: relaying has failed meanwhile.
        """
        if self._owner is None:
            return
        if self._owner.in_thread:
            await in_thread(self.close)
            return
        owner, self._owner = self._owner, None
        await owner.__aexit__(None, None, None)

    def _close_at_exit(self) -> None:
        if os.getpid() != self._process:
            return  # a fork has the forwards of its parent, but not their thread
        try:
            self.close()
        except KrelayError as exc:
            logger.warning("%s", exc)


class relay:
    """Forwards that are ready when the block begins and gone when it ends.

    ::

        with krelay.relay(web="svc/nginx :80") as forwards:
            urllib.request.urlopen(forwards["web"].url())

    `async with` does the same in async code. `with` relays in another thread. Without a block,
    `start` and `astart` return the forwards, and `close` and `aclose` end them::

        forwards = krelay.relay(web="svc/nginx :80").start()
        ...
        forwards.close()

    Args:
        texts: lines of targets.txt, each the name of its target; with `file`, the names of those
            targets of the file that are relayed.
        file: a krelay.yaml or targets.txt, instead of lines.
        context: the kubeconfig context, instead of the current one or the file's.
        namespace: the namespace of targets whose line has none, instead of the file's.
        embedded: run the agent on this machine; targets are then `host/` and `ip/` only.
        timeout: seconds in which every forward has to be ready.
        targets: more lines, by the name of their target.

    Raises, when the block is entered or the forwards are started:
        UsageError, ConfigError: the arguments, the lines or the file are wrong.
        ClusterError: the cluster refused, or cannot be reached.
        ListenError: a local port cannot be bound.
        NotReadyError: a forward is not ready in time; names each one, and why.
    """

    def __init__(
        self,
        *texts: str,
        file: str | os.PathLike[str] | None = None,
        context: str | None = None,
        namespace: str | None = None,
        embedded: bool = False,
        timeout: float = TIMEOUT,
        **targets: str,
    ) -> None:
        self._timeout = timeout
        self._run: AbstractAsyncContextManager[_Reports] | None = None
        self._thread: LoopThread[_Reports] | None = None
        self._texts, self._targets = texts, targets
        self._file = None if file is None else os.fspath(file)
        self._context, self._namespace, self._embedded = context, namespace, embedded
        if file is not None and targets:
            hint = "write the targets into the file"
            raise explained(UsageError("both a file and targets", hint=hint))

    def start(self) -> Started:
        """Relay in another thread until `close`. Blocks until every forward is ready.

        It works where a loop runs, as in a notebook. Raises as a block does.
        """
        __tracebackhide__ = True
        return Started(self, self.__enter__())

    async def astart(self) -> Started:
        """Relay on the running loop until `aclose`; return when every forward is ready."""
        __tracebackhide__ = True
        return Started(self, await self.__aenter__())

    @property
    def in_thread(self) -> bool:
        """Whether it relays in another thread now."""
        return self._thread is not None

    async def __aenter__(self) -> Forwards:
        __tracebackhide__ = True  # pytest shows the line of the caller
        self._require_free()
        try:
            run = self._run = await in_thread(self._make_run)
            return _forwards(await run.__aenter__())
        except BaseException as exc:
            self._run = None
            raise explained(exc) from exc.__cause__

    async def __aexit__(self, *exc: Any) -> None:
        run, self._run = self._run, None
        assert run is not None
        await run.__aexit__(*exc)

    def __enter__(self) -> Forwards:
        __tracebackhide__ = True
        self._require_free()
        try:
            thread = self._thread = LoopThread(self._make_run())
            return _forwards(thread.start(self._timeout))
        except BaseException as exc:
            self._thread = None
            raise explained(exc) from exc.__cause__

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        thread, self._thread = self._thread, None
        assert thread is not None
        thread.end(cut=kind is not None)

    def _make_run(self) -> AbstractAsyncContextManager[_Reports]:
        """Return the run of one block. Reads files and imports most of krelay: never on a loop."""
        config = self._source().load()
        raise_file_limit()
        from krelay.supervisor import supervisor  # noqa: F401

        if not config.agent.embedded:
            from krelay.cluster import api, resolve  # noqa: F401
        tunnel = dataclasses.replace(config.tunnel, drain=min(_DRAIN, config.tunnel.drain))
        return _relaying(dataclasses.replace(config, tunnel=tunnel), self._timeout)

    def _source(self) -> Lines | Selection:
        from krelay.config.sources import Lines, Selection, named

        context, namespace, embedded = self._context, self._namespace, self._embedded
        if self._file is None:
            lines = named(self._texts, self._targets)
            return Lines(lines, context, namespace, embedded, path="krelay.relay")
        names, environ = self._texts, os.environ
        return Selection(
            *(self._file, names, embedded, environ), context=context, namespace=namespace
        )

    def _require_free(self) -> None:
        if self._run is not None or self._thread is not None:
            hint = "make another `krelay.relay(...)`, or end this one first"
            raise explained(UsageError("its block has not ended yet", hint=hint))


def explained(error: BaseException) -> BaseException:
    """Return `error`; a KrelayError gets its details and its hint as notes, which tracebacks show.

    Its own traceback is dropped: the places inside krelay say nothing to a user.
    """
    if not isinstance(error, KrelayError):
        return error
    for line in error.report():
        if line != error.message:
            error.add_note(line)
    return error.with_traceback(None)


def _forwards(reports: Iterable[ForwardState]) -> Forwards:
    bound = ((report, connect_address(report.listen[0])) for report in reports)
    return Forwards(
        Forward(report.target, at.host, at.port, report.protocol or "", report.to)
        for report, at in bound
    )


_Reports = tuple[ForwardState, ...]


@asynccontextmanager
async def _relaying(config: Config, timeout: float) -> AsyncIterator[_Reports]:
    """Relay in a separate task while the block runs, so that any task may end the block.

    The value is the forwards, all of them ready. When the block ends, connections get a moment to
    finish; when it fails or is cancelled, they are cut. In any case agents are removed, or named in
    the log. Raises KrelayError if the forwards do not become ready, or relaying fails.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    ready: asyncio.Future[_Reports] = loop.create_future()
    task = loop.create_task(_relay(config, timeout, ready, stop), name="krelay")
    try:
        await asyncio.wait((ready, task), return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            task.result()  # raises
        yield ready.result()
    except BaseException:
        task.cancel()
        await _ended(task)
        if not task.cancelled() and (failure := task.exception()):
            logger.debug("ended by an error: %s", failure)
        raise
    stop.set()
    await _ended(task)
    task.result()


async def _ended(task: asyncio.Task[None]) -> None:
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        task.cancel()
        await shield_cleanup(asyncio.wait({task}))
        raise


async def _relay(
    config: Config, timeout: float, ready: asyncio.Future[_Reports], stop: asyncio.Event
) -> None:
    from krelay.supervisor.supervisor import Supervisor

    # strict: a forward that cannot bind or resolve is an error at once, not after the timeout.
    supervisor = Supervisor(config, strict=True)
    async with TaskGroup() as tasks:
        tasks.create_task(supervisor.run(stop), name="relay")
        ready.set_result(await supervisor.wait_ready(timeout, hint="`timeout=` gives it longer"))
