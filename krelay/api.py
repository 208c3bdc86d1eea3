"""The Python API: `krelay.relay`, forwards for as long as a `with` or `async with` lasts."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType

from krelay.config.lines import Lines, named
from krelay.config.overlay import Overlay
from krelay.config.selection import Selection
from krelay.errors import KrelayError, UsageError, first_error
from krelay.finish import finish
from krelay.model import Config
from krelay.status.report import ForwardReport, joined, reached
from krelay.supervisor.ready import wait_ready
from krelay.supervisor.supervisor import Supervisor
from krelay.threaded import Threaded

logger = logging.getLogger("krelay.api")
# A library's warnings are its user's to show.
logging.getLogger("krelay").addHandler(logging.NullHandler())

TIMEOUT = 60.0
"""Seconds that forwards get to become ready."""
_DRAIN = 1.0
"""Seconds that connections get to finish once the block has ended."""
_HINT = "`timeout=` gives it longer"


_Found = asyncio.Future[tuple[ForwardReport, ...]]


@dataclass(frozen=True, slots=True)
class Forward:
    """One port of a target: where to connect to (`host` and `port`), and to what that leads."""

    target: str
    host: str
    port: int
    protocol: str
    to: str

    @property
    def address(self) -> str:
        """`127.0.0.1:8080`."""
        return joined(self.host, self.port)

    def url(self, scheme: str = "http") -> str:
        """`http://127.0.0.1:8080`."""
        return f"{scheme}://{self.address}"


class Forwards(Mapping[str, Forward]):
    """The first port of each target, by the target's name; `all` has the others too."""

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
        """Every port of a target, in the order in which they were written."""
        return self._all[name]


class relay:
    """Forwards that are ready when the block begins and gone when it ends.

    ::

        with krelay.relay(web="svc/nginx :80") as forwards:
            urllib.request.urlopen(forwards["web"].url())

    In the same way `async with`, in async code. `with` relays from a thread of its own.

    Args:
        texts: targets as lines of targets.txt, each named by itself; with `file`, names of the
            file's targets, to have only these.
        file: a krelay.yaml or targets.txt, instead of lines.
        context: the kubeconfig context, instead of the current one.
        namespace: the namespace of targets that name none of their own.
        embedded: run the agent on this machine; then targets are `host/` and `ip/` only.
        timeout: seconds in which every forward has to be ready.
        targets: more lines, by the name that the target shall have.

    Raises, when the block is entered:
        UsageError, ConfigError: what was asked for is wrong.
        ClusterError: the cluster refused, or cannot be reached.
        ListenError: a local port cannot be bound.
        NotReadyError: not all is ready in time; says what, and why.
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
        self._run: Run | None = None
        self._thread: Threaded[Forwards] | None = None
        self._source: Selection | Lines
        if file is None:
            lines = named(texts, targets)
            self._source = Lines(lines, context, namespace, embedded, path="krelay.relay")
        elif targets:
            hint = "write the targets into the file"
            raise explained(UsageError("both a file and targets", hint=hint))
        else:
            overlay = Overlay(context=context, namespace=namespace)
            path, environ = os.fspath(file), os.environ
            self._source = Selection(path, texts, embedded, environ=environ, overlay=overlay)

    async def __aenter__(self) -> Forwards:
        __tracebackhide__ = True  # pytest shows the line that asked
        self._free()
        try:
            run = self._run = Run(await asyncio.to_thread(self._config), self._timeout)
            return await run.start()
        except BaseException as exc:
            self._run = None
            raise explained(exc) from exc.__cause__

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        run, self._run = self._run, None
        assert run is not None
        await run.end(cut=kind is not None)

    def __enter__(self) -> Forwards:
        __tracebackhide__ = True
        self._free()
        try:
            thread = self._thread = Threaded(Run(self._config(), self._timeout))
            return thread.start(self._timeout)
        except BaseException as exc:
            self._thread = None
            raise explained(exc) from exc.__cause__

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        thread, self._thread = self._thread, None
        assert thread is not None
        thread.end(cut=kind is not None)

    def _config(self) -> Config:
        config = self._source.load()
        tunnel = dataclasses.replace(config.tunnel, drain=min(_DRAIN, config.tunnel.drain))
        return dataclasses.replace(config, tunnel=tunnel)

    def _free(self) -> None:
        if self._run is not None or self._thread is not None:
            hint = "make another `krelay.relay(...)` for another block"
            raise explained(UsageError("its block has not ended yet", hint=hint))


class Run:
    """What one block relays, in a task of its own: it may be ended from another than began it."""

    def __init__(self, config: Config, timeout: float) -> None:
        self._config = config
        self._timeout = timeout
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> Forwards:
        """The forwards, all ready.

        Raises:
            KrelayError: it cannot be had; nothing is left behind, as when this is cancelled.
        """
        loop = asyncio.get_running_loop()
        ready: _Found = loop.create_future()
        task = self._task = loop.create_task(self._relay(ready), name="krelay")
        try:
            await asyncio.wait((ready, task), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self.end(cut=True)
            raise
        if not ready.done():
            task.result()  # raises
        return Forwards(_forward(report) for report in ready.result())

    async def end(self, *, cut: bool) -> None:
        """Let connections finish, for a moment, or `cut` them; then nothing is left.

        Raises:
            KrelayError: it had ended before, by an error.
        """
        assert self._task is not None
        self._stop.set()
        if cut:
            self._task.cancel()
        try:
            await asyncio.wait({self._task})
        except asyncio.CancelledError:
            self._task.cancel()
            await finish(self._over())
            raise
        if not cut:
            self._task.result()
        elif not self._task.cancelled() and (failure := self._task.exception()):
            logger.debug("ended by an error: %s", failure)

    async def _over(self) -> None:
        assert self._task is not None
        await asyncio.wait({self._task})

    async def _relay(self, ready: _Found) -> None:
        # What cannot be bound or followed is told at once, not when the time is over.
        supervisor = Supervisor(self._config, lambda forward: None, strict=True)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(supervisor.run(self._stop), name="relay")
                found = await wait_ready(supervisor, self._config, self._timeout, hint=_HINT)
                ready.set_result(found)
        except* KrelayError as group:
            raise first_error(group) from None


def explained(error: BaseException) -> BaseException:
    """The error; one of krelay's own with its details and its hint as notes, which a traceback
    shows, and without the places inside where it was noticed, which say nothing to a user."""
    if not isinstance(error, KrelayError):
        return error
    for line in error.report():
        if line != error.message:
            error.add_note(line)
    return error.with_traceback(None)


def _forward(report: ForwardReport) -> Forward:
    host, port = reached(report.listen[0])
    return Forward(report.target, host, port, report.protocol or "", report.to)
