"""`make bench-quick`, `make bench`: krelay and other forwarders, interleaved in one run.

Every round runs each load for every contender before the next load, so that a machine that slows
down meanwhile slows all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from benchmarks import contenders, growth, install, lifetime, measures, place, report, slow_link
from benchmarks.contenders import Contender, Direct, Forwarder
from benchmarks.results import BASE, DIRECT, FailedError, Results, figure

SHORT_ROUNDS, LONG_ROUNDS = 3, 5
STARTS = 3

Item = TypeVar("Item")


def chosen(args: argparse.Namespace) -> list[Contender]:
    """Return the contenders of this run, krelay first."""
    program = args.krelay.resolve() if args.krelay else install.krelay()
    found = [contenders.krelay("krelay", program)]
    if install.has_engine():
        found.append(contenders.krelay("krelay, asyncio", program, KRELAY_ENGINE="asyncio"))
    found += [
        contenders.kubectl(BASE),
        contenders.kubectl("kubectl, SPDY", KUBECTL_PORT_FORWARD_WEBSOCKETS="false"),
    ]
    if args.contenders:
        wanted = [name.strip() for name in args.contenders.split(";")]
        found = [contender for contender in found if contender.name in wanted]
    return found + [contenders.peer(text) for text in args.peer]


def machine() -> dict[str, object]:
    """Return what the figures depend on, without names of hosts or paths."""
    told = subprocess.run(
        [place.KUBECTL, "version", "-o", "json"], capture_output=True, text=True, timeout=30
    ).stdout
    versions = [line.split('"')[3] for line in told.splitlines() if '"gitVersion"' in line]
    client, server = (*versions, "unknown", "unknown")[:2]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "kubectl": client,
        "Kubernetes": server,
    }


class Run:
    """The stages of a run, and what they have measured."""

    def __init__(self, where: place.Namespace, found: list[Contender], only: str) -> None:
        self.results = Results()
        self._where = where
        self._contenders = found
        self._only = [word.strip() for word in only.split(",") if word.strip()]

    def _wanted(self, name: str) -> bool:
        return not self._only or any(word in name for word in self._only)

    def _attempt(self, name: str, contender: str, work: Callable[[], None]) -> bool:
        """Run a load; a failure is a line of the result."""
        began = time.monotonic()
        try:
            work()
        except FailedError as exc:
            print(f"{name}: {contender}: {exc}", flush=True)
            self.results.fail(name, contender, str(exc))
            return False
        latest = self.results.samples.get(name, {}).get(contender, [])
        text = f" {figure(latest[-1])} {self.results.units[name]}" if latest else ""
        print(f"{name}: {contender}{text} ({time.monotonic() - began:.1f} s)", flush=True)
        return True

    def _each(self, name: str, number: int, work: Callable[[Contender], None]) -> None:
        """Run a load that starts its own forwarder, for each contender."""
        if self._wanted(name):
            for contender in turned(self._contenders, number):
                self._attempt(name, contender.name, partial(work, contender))

    @contextlib.contextmanager
    def _forwarders(self, **environ: str) -> Iterator[list[Forwarder]]:
        """Start all contenders; those that fail are lines of the result."""
        with contextlib.ExitStack() as stack:
            started = []
            for contender in self._contenders:
                forwarder = Forwarder(contender, self._where, environ=environ)
                stack.callback(forwarder.close)
                if self._start(forwarder):
                    started.append(forwarder)
            yield started

    def _start(self, forwarder: Forwarder) -> bool:
        try:
            forwarder.start()
            forwarder.wait_ready()
        except FailedError as exc:
            print(f"{forwarder.name} {exc}\n{forwarder.told()}", flush=True)
            self.results.fail("start", forwarder.name, str(exc))
            forwarder.stop()
            return False
        return True

    def _load(
        self,
        name: str,
        forwarders: list[Forwarder],
        number: int,
        work: Callable[[measures.Relayed], None],
    ) -> None:
        """Run a load for each forwarder; start one again that did not do it."""
        if not self._wanted(name):
            return
        for forwarder in turned(forwarders, number):
            if not self._attempt(name, forwarder.name, partial(work, forwarder)):
                forwarder.stop()
                if not self._start(forwarder):
                    forwarders.remove(forwarder)

    def compare(self, rounds: int, short: float, bulk: float) -> None:
        """Compare all contenders by all loads, in turn; the control comes once, before them."""
        loads = measures.Loads(self.results, self._where, short, bulk).all()
        direct = Direct()
        try:
            for name, work in loads.items():
                if self._wanted(name):
                    self._attempt(name, DIRECT, partial(work, direct))
        finally:
            direct.close()
        with self._forwarders() as forwarders:
            for number in range(rounds):
                print(f"round {number + 1} of {rounds}", flush=True)
                for name, work in loads.items():
                    self._load(name, forwarders, number, work)

    def starts(self, rounds: int) -> None:
        """Start each contender several times."""
        for number in range(rounds):
            work = partial(lifetime.start, where=self._where, results=self.results)
            self._each("start to first byte", number, work)

    def memory(self) -> None:
        """Measure the memory of each contender's client."""
        work = partial(lifetime.memory, where=self._where, results=self.results)
        self._each("client's memory", 0, work)

    def datagrams(self) -> None:
        """Measure UDP, for those that have it."""
        if not self._wanted("UDP"):
            return
        direct = Direct()
        try:
            self._attempt("UDP", DIRECT, partial(growth.datagrams, direct, self.results))
        finally:
            direct.close()
        with self._forwarders() as forwarders:
            able = [forwarder for forwarder in forwarders if forwarder.udp]
            self._load("UDP", able, 0, partial(growth.datagrams, results=self.results))

    def wan(self, size: int) -> None:
        """Compare all contenders over a slow link."""
        for number, rtt in enumerate(slow_link.ROUND_TRIPS):
            self._round_trip(rtt, number)
        if not any(map(self._wanted, ("WAN: interactive", "WAN: texts"))):
            return
        with (
            slow_link.slow_link(slow_link.MBIT, slow_link.RTT) as link,
            self._forwarders(**link.environ) as forwarders,
        ):
            work = partial(slow_link.interactive, results=self.results)
            self._load("WAN: interactive", forwarders, 0, work)
            work = partial(slow_link.texts, results=self.results, size=size)
            self._load("WAN: texts", forwarders, 1, work)

    def _round_trip(self, rtt: float, number: int) -> None:
        """Compare over a link with this round trip; the forwarders have never seen another."""
        if self._wanted("RTT"):
            with (
                slow_link.slow_link(slow_link.MBIT, rtt) as link,
                self._forwarders(**link.environ) as forwarders,
            ):
                work = partial(slow_link.round_trips, results=self.results, rtt=rtt)
                self._load("RTT", forwarders, number, work)

    def growth(self) -> None:
        """Measure how cost grows."""
        if self._wanted("sizes"):
            with self._forwarders() as forwarders:
                self._load("sizes", forwarders, 0, partial(growth.sizes, results=self.results))
        for name, work in (("streams", growth.streams), ("forwards", growth.forwards)):
            self._each(name, 0, partial(work, where=self._where, results=self.results))


def turned(items: list[Item], number: int) -> list[Item]:
    """Begin with another one in each round, so that no place in the order is an advantage."""
    first = number % max(1, len(items))
    return [*items[first:], *items[:first]]


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="make bench BENCH='...'", description=__doc__)
    parser.add_argument("--whole", action="store_true", help="measure all, and write the page")
    parser.add_argument("--rounds", type=int, help="rounds of the comparison")
    parser.add_argument("--only", default="", help="only loads whose names contain A,B,...")
    parser.add_argument("--contenders", default="", help="only the contenders 'NAME;NAME'")
    parser.add_argument("--krelay", type=Path, help="use this program instead of installing krelay")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="another forwarder: {ports} stands for LOCAL:REMOTE ..., {namespace} and {pod} for "
        "the target",
    )
    parser.add_argument("--json", type=Path, help="write every sample to this file")
    return parser.parse_args()


def end(number: int, frame: object) -> None:
    """End the run; a second signal must not interrupt its cleanup."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def main() -> None:
    """Measure, print, and write the page."""
    args = parse()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    place.find_cluster()
    found = chosen(args)
    about = machine()
    if not args.krelay:
        about |= install.versions()
    began = time.monotonic()
    with place.namespace() as where:
        run = Run(where, found, args.only)
        run.results.about = about
        try:
            if args.whole:
                run.compare(args.rounds or LONG_ROUNDS, short=1.0, bulk=1.5)
                run.starts(STARTS)
                run.memory()
                run.datagrams()
                run.wan(slow_link.TEXT)
                run.growth()
            else:
                run.compare(args.rounds or SHORT_ROUNDS, short=0.6, bulk=0.8)
                run.starts(1)
        finally:
            # What was measured until then is worth keeping.
            if args.json:
                run.results.save(args.json)
    print(report.tables(run.results))
    print(f"\n{time.monotonic() - began:.0f} s")
    if args.whole and not args.only and not args.contenders:
        report.write(run.results)


if __name__ == "__main__":
    try:
        main()
    except FailedError as error:
        raise SystemExit(str(error)) from None
