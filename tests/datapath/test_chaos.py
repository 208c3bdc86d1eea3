"""Streams over a pool and an agent while everything between them fails, under a virtual clock: each
is byte-exact or reset at both ends, none hangs, and nothing is left of any.

KRELAY_SCHEDULES says how many schedules are tried; `make soak` tries thousands.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import deque
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.settings import Settings
from krelay.datapath.pool import Pool
from krelay.model import SessionConfig
from krelay.mux.stream import MuxStream
from krelay.wire.errors import ErrorCode, ProtocolError
from krelay.wire.frames import Buffer
from krelay.wire.header import TCP, UDP, Header
from tests import rig
from tests.clock import JumpingLoop
from tests.datapath.faulty import FaultyAgent, FaultyLink
from tests.rig import KEY

SCHEDULES = int(os.environ.get("KRELAY_SCHEDULES", "100"))
CALM = 30.0
"""Seconds in which a connection is carried on once the way is good again, at the most: a dial that
hangs has 10 s, a handshake 10, the back-off 10."""
FAULTY = 20.0
"""Seconds of faults without a pause."""


class Half:
    """One end of a stream: writes its bytes at its own pace, and keeps what it gets."""

    def __init__(self, story: Story, name: str) -> None:
        chance = story.chance
        self.story = story
        self.name = name
        self.stream: MuxStream | None = None
        self.other: Half
        size = chance.choice([0, 1, 3_000, 100_000, 400_000])
        self.due = chance.randbytes(size)
        self.lazy = chance.choice([0.0, 0.0, 0.5, 5.0])
        self.received = bytearray()
        self.finished = False
        self.ended = False
        self.reset = ""
        self.moved = asyncio.Event()

    @property
    def over(self) -> bool:
        """Whether nothing more comes of it."""
        return bool(self.reset) or (self.finished and self.ended)

    def _tell(self) -> None:
        self.moved.set()

    def begin(self, stream: MuxStream) -> None:
        """It is open at this end: write."""
        self.stream, stream.handler = stream, self
        self.story.tasks.create_task(self._write())

    async def _write(self) -> None:
        chance, stream = self.story.chance, self.stream
        assert stream is not None
        at = 0
        while at < len(self.due) and not self.reset:
            if chance.random() < 0.3:
                await asyncio.sleep(chance.choice([0.01, 0.3, 3.0]))
            size = chance.choice([1, 1_000, 40_000, 200_000])
            self.moved.clear()
            if not stream.write(self.due[at : at + size]):
                await self.moved.wait()
            at += size
        if not self.reset:
            stream.end()
            self.finished = True
            self._tell()

    def give_up(self) -> None:
        """The application resets it."""
        if self.stream is not None and not self.over:
            self.story.excused.add(self.name)
            self.stream.reset()
            self._closed("given up")

    def _closed(self, why: str) -> None:
        self.reset = self.reset or why
        self._tell()

    # -- the stream's handler --------------------------------------------------------------------

    def on_data(self, data: Buffer) -> None:
        assert not self.ended
        assert not self.reset
        self.received += data
        assert self.other.due.startswith(self.received)
        stream, size = self.stream, len(data)
        if stream is None:
            return
        if self.lazy:
            asyncio.get_running_loop().call_later(self.lazy, stream.consume, size)
        else:
            stream.consume(size)

    def on_end(self) -> None:
        assert not self.ended
        self.ended = True
        self._tell()

    def on_reset(self, code: ErrorCode) -> None:
        self._closed(code.name)

    def on_refused(self, code: ErrorCode, message: str) -> None:
        self._closed(f"refused {code.name}")

    def on_writable(self) -> None:
        self.moved.set()

    def on_accepted(self) -> None:
        """The writing has begun before."""

    def on_datagram(self, data: Buffer) -> None:
        raise AssertionError("a datagram on a TCP stream")


class Flow(Half):
    """A flow: datagrams may be lost, and are else as they were, in order, once."""

    async def _write(self) -> None:
        stream = self.stream
        assert stream is not None
        self.sent = deque(b"%d" % number for number in range(30))
        for data in list(self.sent):
            if self.reset:
                return
            stream.datagram(data)
            await asyncio.sleep(self.story.chance.choice([0.0, 0.1, 2.0]))
        stream.end()
        self.finished = True
        self._tell()

    def on_datagram(self, data: Buffer) -> None:
        assert isinstance(self.other, Flow)
        while self.other.sent.popleft() != bytes(data):
            pass

    def on_data(self, data: Buffer) -> None:
        raise AssertionError("stream bytes on a flow")


class Story:
    """One schedule."""

    def __init__(self, seed: int, tasks: asyncio.TaskGroup) -> None:
        chance = self.chance = random.Random(seed)
        self.tasks = tasks
        self.halves: dict[str, Half] = {}
        self.pairs: list[tuple[Half, Half]] = []
        self.excused: set[str] = set()
        """Streams that a test step reset, so their reset is no fault."""
        self.doomed = False
        """Whether any stream may be: the agent was another, or the grace passed."""
        self.replay = chance.choice([128 << 10, 1 << 20, 4 << 20])
        self.config = SessionConfig(
            resume_timeout=chance.choice([90.0, 120.0]),
            resume_buffer=self.replay,
            max_age=chance.choice([31.0, 60.0, 1500.0]),
        )
        self.agent = self._agent()
        self.link = FaultyLink(self.agent, chance)
        size = chance.choice([1, 1, 2, 3])
        self.pool = Pool("p", [self.link], KEY, size=size, config=self.config)

    def _agent(self) -> FaultyAgent:
        settings = Settings(key=KEY, grace=self.config.resume_timeout, replay=self.replay)
        return FaultyAgent(settings, self.tasks, self.arrived)

    # -- streams -----------------------------------------------------------------------------------

    async def open(self, number: int) -> None:
        """A stream, once there is a tunnel."""
        await asyncio.sleep(self.chance.uniform(0, 40))
        kind = Flow if self.chance.random() < 0.2 else Half
        near, far = kind(self, f"n{number}"), kind(self, f"f{number}")
        near.other, far.other = far, near
        self.halves[f"s{number}"] = far
        header = Header(UDP if kind is Flow else TCP, f"s{number}", 80)
        while True:
            carrier = self.pool.pick()
            if carrier is None:
                await self.pool.wait_change()
                continue
            try:
                stream = carrier.open(header, near)
            except ProtocolError:
                await asyncio.sleep(1.0)
                continue
            self.pairs.append((near, far))
            near.begin(stream)  # type: ignore[arg-type]
            break
        if self.chance.random() < 0.15:
            await asyncio.sleep(self.chance.uniform(0, 5))
            self.chance.choice([near, far]).give_up()

    def arrived(self, stream: MuxStream) -> None:
        """The agent is asked for a target."""
        half = self.halves[stream.header.host]
        assert half.stream is None
        stream.handler = half
        half.stream = stream
        delay = self.chance.choice([0.0, 0.01, 2.0])
        asyncio.get_running_loop().call_later(delay, self._answer, half, stream)

    def _answer(self, half: Half, stream: MuxStream) -> None:
        if half.reset:
            return
        if self.chance.random() < 0.1:
            self.excused.add(half.name)
            stream.handler = None
            stream.refuse(ErrorCode.REFUSED, "no")
            half._closed("refused it")
        else:
            stream.accept()
            half.begin(stream)

    # -- faults ------------------------------------------------------------------------------------

    async def cut(self) -> None:
        self.link.cut()

    async def storm(self) -> None:
        for _ in range(self.chance.randint(2, 8)):
            self.link.cut()
            await asyncio.sleep(self.chance.choice([0.0, 0.001, 0.05, 0.5]))

    async def hole(self) -> None:
        """Nothing passes on what lives, nor on what is dialled."""
        self.link.silent = True
        self.link.choke(True)
        await asyncio.sleep(self.chance.choice([1.0, 5.0, 12.0]))
        self.link.silent = False
        self.link.choke(False)

    async def hole_of_what_lives(self) -> None:
        """New tunnels pass."""
        self.link.choke(True)
        await asyncio.sleep(self.chance.choice([1.0, 5.0, 20.0]))
        self.link.choke(False)

    async def refuse(self) -> None:
        self.link.blocked = True
        self.link.cut()
        await asyncio.sleep(self.chance.choice([0.5, 4.0, 9.0]))
        self.link.blocked = False

    async def outage(self) -> None:
        """Longer than the grace."""
        self.doomed = True
        self.link.blocked = True
        self.link.cut()
        await asyncio.sleep(self.config.resume_timeout + 5.0)
        self.link.blocked = False

    async def another_agent(self) -> None:
        """It is lost with all that it kept."""
        self.doomed = True
        former, self.agent = self.agent, self._agent()
        self.link.agent = self.agent
        self.link.cut()
        former.close(ErrorCode.GOING_AWAY, "lost")

    async def shape(self) -> None:
        self.link.shape(
            lag=self.chance.choice([0.0, 0.001, 0.1, 0.5]),
            piece=self.chance.choice([1_000, 16_000, 1 << 20]),
            rate=self.chance.choice([100e3, 1e6, 100e6]),
        )

    async def network_changed(self) -> None:
        """The machine has slept, or has another network."""
        self.pool.network_changed(broken=self.chance.random() < 0.5)

    def all_up(self) -> bool:
        """Whether every tunnel is."""
        return all(tunnel.up for tunnel in self.pool.tunnels)

    async def harm(self) -> None:
        """Some of it, one after the other, each undone before the next."""
        chance = self.chance
        faults: list[Callable[[], Awaitable[None]]] = []
        faults += [self.cut] * 4 + [self.storm, self.hole] * 2
        faults += [self.hole_of_what_lives] * 2 + [
            self.refuse,
            self.shape,
            self.network_changed,
        ] * 2
        if chance.random() < 0.3:
            faults += [self.outage, self.another_agent] * 2
        clock = asyncio.get_running_loop().time
        good = clock()
        for _ in range(chance.randint(1, 8)):
            await asyncio.sleep(chance.choice([0.0, 0.01, 1.0, 10.0]))
            await chance.choice(faults)()
            if clock() - good > FAULTY:
                # More in a row might be too much for the grace, and then nothing is proved.
                assert await self.until(self.all_up, self.config.resume_timeout)
                good = clock()
        self.link.shape(lag=0.001, piece=1 << 20, rate=100e6)

    # -- the end -----------------------------------------------------------------------------------

    async def until(self, true: Callable[[], bool], seconds: float) -> bool:
        """Whether it becomes true in so many seconds of the clock that jumps."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + seconds
        while not true() and clock() < deadline:  # noqa: ASYNC110 - the clock jumps
            await asyncio.sleep(0.25)
        return true()

    def alive(self) -> list[str]:
        """Halves of which something may still come."""
        return [
            half.name
            for pair in self.pairs
            for half in pair
            if not half.over and not (half.stream is None and half.other.reset)
        ]

    def judge(self) -> None:
        """Byte-exact, or reset at both ends, and for a reason."""
        for near, far in self.pairs:
            told = f"{near.name}: {near.reset or 'ended'}, {far.name}: {far.reset or 'ended'}"
            if near.reset or far.reset:
                assert self.doomed or {near.name, far.name} & self.excused, told
                # What had ended both ways before may be reset here alone, and lose nothing.
                continue
            assert isinstance(near, Flow) or near.received == far.due, told
            assert isinstance(near, Flow) or far.received == near.due, told


async def tell(seed: int) -> None:
    """One schedule from beginning to end."""
    before = asyncio.all_tasks()
    async with asyncio.TaskGroup() as tasks:
        story = Story(seed, tasks)
        async with asyncio.TaskGroup() as inner:
            running = inner.create_task(story.pool.run())
            async with asyncio.TaskGroup() as load:
                for number in range(story.chance.randint(1, 8)):
                    load.create_task(story.open(number))
                await story.harm()
            patience = CALM + 60.0 + (story.config.resume_timeout if story.doomed else 0.0)
            assert await story.until(lambda: not story.alive(), patience), story.alive()
            story.judge()

            def at_rest() -> bool:
                if any(tunnel.carrier is None for tunnel in story.pool.tunnels):
                    return False
                ends = [rig.connection(tunnel) for tunnel in story.pool.tunnels]
                return not any(
                    end.session.streams or end.session.unacknowledged
                    for end in [*ends, *story.agent.drivers]
                )

            assert await story.until(story.all_up, CALM)
            assert await story.until(at_rest, CALM)
            patience = story.config.resume_timeout + CALM
            assert await story.until(lambda: len(story.agent) == len(story.pool.tunnels), patience)
            assert await story.until(lambda: len(story.link.live()) == 2 * len(story.agent), CALM)
            running.cancel()
        # A good-bye that was said into a hole is not heard: then the grace ends it.
        assert await story.until(
            lambda: not story.agent.connections and not len(story.agent), patience
        )
    assert asyncio.all_tasks() == before


def play(seed: int) -> None:
    """The same on a clock that jumps."""
    random.seed(seed)  # the jitter of a back-off, and of a rotation
    with asyncio.Runner(loop_factory=lambda: JumpingLoop(3_000.0)) as runner:
        runner.run(tell(seed))


@pytest.mark.timeout(60 + SCHEDULES)
@given(st.integers(0, 2**32))
@settings(max_examples=SCHEDULES, deadline=None)
def test_every_stream_is_carried_on_or_reset_whatever_the_network_does(seed: int) -> None:
    play(seed)


async def stall(chance: random.Random) -> float:
    """Seconds from a black hole, in the middle of transfers both ways, to the first byte after."""
    clock = asyncio.get_running_loop().time
    async with asyncio.TaskGroup() as tasks:
        story = Story(chance.randrange(1 << 32), tasks)
        story.link.shape(rate=2e6, piece=4_000)
        running = tasks.create_task(story.pool.run())
        assert await story.until(story.all_up, 1.0)
        near, far = Half(story, "n0"), Half(story, "f0")
        near.other, far.other, story.halves["s0"] = far, near, far
        for half in (near, far):
            half.due, half.lazy = chance.randbytes(12 << 20), 0.0
        carrier = story.pool.pick()
        assert carrier is not None
        near.begin(carrier.open(Header(TCP, "s0", 80), near))  # type: ignore[arg-type]
        story.chance = random.Random(1)
        await asyncio.sleep(chance.uniform(0.5, 4.0))
        story.link.choke(True)
        began, had = clock(), len(near.received)
        assert not near.over
        assert await story.until(lambda: len(near.received) > had, 60.0)
        passed = clock() - began
        running.cancel()
        story.agent.close(ErrorCode.GOING_AWAY, "the end")
        for half in (near, far):
            half._closed("the end")
    return passed


@given(st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_a_black_hole_in_the_middle_of_data_is_left_within_ten_seconds(seed: int) -> None:
    random.seed(seed)
    with asyncio.Runner(loop_factory=lambda: JumpingLoop(3_000.0)) as runner:
        assert runner.run(stall(random.Random(seed))) < 10.0
