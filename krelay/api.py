"""The Python API: `krelay.relay`, forwards for as long as a `with` or `async with` lasts."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from krelay.errors import KrelayError, UsageError
from krelay.model import Endpoint
from krelay.state.snapshot import ForwardState, reached
from krelay.threaded import Threaded
from krelay.threads import in_thread

if TYPE_CHECKING:
    from krelay.block import Found, Run
    from krelay.config.sources import Lines, Selection

# A library's warnings are its user's to show.
logging.getLogger("krelay").addHandler(logging.NullHandler())

TIMEOUT = 60.0
"""Seconds that forwards get to become ready."""


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
        return str(Endpoint(self.host, self.port))

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
        self._thread: Threaded[Found] | None = None
        self._texts, self._targets = texts, targets
        self._file = None if file is None else os.fspath(file)
        self._context, self._namespace, self._embedded = context, namespace, embedded
        if file is not None and targets:
            hint = "write the targets into the file"
            raise explained(UsageError("both a file and targets", hint=hint))

    async def __aenter__(self) -> Forwards:
        __tracebackhide__ = True  # pytest shows the line that asked
        self._free()
        try:
            run = self._run = await in_thread(self._made)
            return _forwards(await run.start())
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
            thread = self._thread = Threaded(self._made())
            return _forwards(thread.start(self._timeout))
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

    def _made(self) -> Run:
        """What its block relays. Reads files, and imports most of krelay: not for a loop."""
        from krelay.block import Run

        return Run.of(self._source(), self._timeout)

    def _source(self) -> Lines | Selection:
        from krelay.config.sources import Lines, Overlay, Selection, named

        context, namespace, embedded = self._context, self._namespace, self._embedded
        if self._file is None:
            lines = named(self._texts, self._targets)
            return Lines(lines, context, namespace, embedded, path="krelay.relay")
        overlay = Overlay(context=context, namespace=namespace)
        names, environ = self._texts, os.environ
        return Selection(self._file, names, embedded, environ=environ, overlay=overlay)

    def _free(self) -> None:
        if self._run is not None or self._thread is not None:
            hint = "make another `krelay.relay(...)` for another block"
            raise explained(UsageError("its block has not ended yet", hint=hint))


def explained(error: BaseException) -> BaseException:
    """The error; one of krelay's own with its details and its hint as notes, which a traceback
    shows, and without the places inside where it was noticed, which say nothing to a user."""
    if not isinstance(error, KrelayError):
        return error
    for line in error.report():
        if line != error.message:
            error.add_note(line)
    return error.with_traceback(None)


def _forwards(reports: Iterable[ForwardState]) -> Forwards:
    bound = ((report, reached(report.listen[0])) for report in reports)
    return Forwards(
        Forward(report.target, at.host, at.port, report.protocol or "", report.to)
        for report, at in bound
    )
