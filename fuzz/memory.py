"""A transport without a network, for protocols that the fuzzer feeds directly."""

from __future__ import annotations

import asyncio
import atexit
import functools
from collections.abc import Coroutine, Iterable
from typing import Any

from krelay.wire.frames import Buffer


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    atexit.register(loop.close)
    return loop


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` on a loop that lasts: a new one for each input would be most of its time."""
    _loop().run_until_complete(work)


class Nowhere(asyncio.Transport):
    """Counts what is written, and knows whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False
        self.written = 0

    def write(self, data: Buffer) -> None:
        self.written += len(data)

    def writelines(self, list_of_data: Iterable[Buffer]) -> None:
        self.written += sum(map(len, list_of_data))

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        """Ignore it: the fuzzer does not stop feeding."""

    def resume_reading(self) -> None:
        """Ignore it."""

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is buffered."""

    def get_write_buffer_size(self) -> int:
        return 0
