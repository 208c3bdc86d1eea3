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
from collections.abc import Callable
from pathlib import Path

from benchmarks import contenders, install, measures, place
from benchmarks.contenders import Contender, Direct, FailedError, Forwarder
from benchmarks.results import Results, figure, table

BASE = "kubectl"
"""The contender that the ratios refer to: kubectl's default."""


def chosen(args: argparse.Namespace) -> list[Contender]:
    """Return the contenders of this run."""
    program = args.krelay.resolve() if args.krelay else install.krelay()
    found = [contenders.krelay("krelay", program)]
    if install.has_engine() or args.krelay:
        found.append(contenders.krelay("krelay, asyncio", program, KRELAY_ENGINE="asyncio"))
    found += [
        contenders.kubectl(BASE),
        contenders.kubectl("kubectl, SPDY", KUBECTL_PORT_FORWARD_WEBSOCKETS="false"),
    ]
    found += [contenders.peer(text) for text in args.peer]
    if args.contenders:
        wanted = args.contenders.split(";")
        found = [contender for contender in found if contender.name in wanted]
    return found


def machine() -> dict[str, object]:
    """Return what the figures depend on, without names of hosts or paths."""
    told = subprocess.run(
        [place.KUBECTL, "version", "-o", "json"], capture_output=True, text=True, timeout=30
    ).stdout
    versions = [line.split('"')[3] for line in told.splitlines() if '"gitVersion"' in line]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "kubectl, Kubernetes": versions,
    }


class Run:
    """The forwarders that run, and the results."""

    def __init__(self, where: place.Namespace, stack: contextlib.ExitStack) -> None:
        self.results = Results()
        self.where = where
        self.forwarders: list[Forwarder] = []
        self._stack = stack

    def start(self, found: list[Contender]) -> None:
        """Start the contenders one after the other; a failure is a line in the result."""
        for contender in found:
            forwarder = Forwarder(contender, self.where)
            self._stack.callback(forwarder.close)
            try:
                forwarder.start()
                forwarder.wait_ready()
            except FailedError as exc:
                print(f"{contender.name} {exc}\n{forwarder.told()}", flush=True)
                self.results.fail("start", contender.name, str(exc))
                forwarder.stop()
                continue
            self.forwarders.append(forwarder)

    def attempt(
        self, name: str, to: measures.Relayed, work: Callable[[measures.Relayed], None]
    ) -> None:
        """Run one load for one contender; restart a forwarder that does not survive it."""
        began = time.monotonic()
        try:
            work(to)
        except FailedError as exc:
            reason = str(exc) if to.alive() else "died"
            print(f"{name}: {to.name}: {reason}", flush=True)
            self.results.fail(name, to.name, reason)
            if isinstance(to, Forwarder):
                self._restart(to)
            return
        latest = self.results.samples.get(name, {}).get(to.name, [])
        if latest:
            unit, took = self.results.units[name], time.monotonic() - began
            print(f"{name}: {to.name} {figure(latest[-1])} {unit} ({took:.1f} s)", flush=True)

    def _restart(self, forwarder: Forwarder) -> None:
        forwarder.stop()
        try:
            forwarder.start()
            forwarder.wait_ready()
        except FailedError as exc:
            print(f"{forwarder.name} {exc}\n{forwarder.told()}", flush=True)
            self.results.fail("start", forwarder.name, str(exc))
            forwarder.stop()
            self.forwarders.remove(forwarder)


def compare(run: Run, rounds: int, only: str) -> None:
    """Run all loads for all contenders, in turn."""
    all_loads = measures.Loads(run.results, run.where, short=0.6, bulk=0.8).all()
    loads = {
        name: work
        for name, work in all_loads.items()
        if not only or any(word in name for word in only.split(","))
    }
    direct = Direct()
    try:
        for name, work in loads.items():
            run.attempt(name, direct, work)
    finally:
        direct.close()
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", flush=True)
        for name, work in loads.items():
            # Another one begins in each round, so that no place in the order is an advantage.
            turn = number % max(1, len(run.forwarders))
            for forwarder in [*run.forwarders[turn:], *run.forwarders[:turn]]:
                run.attempt(name, forwarder, work)


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="only loads whose names contain one of A,B,...")
    parser.add_argument("--contenders", default="", help="only the contenders 'NAME;NAME'")
    parser.add_argument("--krelay", type=Path, help="use this program instead of installing krelay")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="another forwarder; {ports} becomes LOCAL:REMOTE ...",
    )
    parser.add_argument("--json", type=Path, help="write every sample to this file")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    place.find_cluster()
    found = chosen(args)
    with contextlib.ExitStack() as stack:
        where = stack.enter_context(place.namespace())
        run = Run(where, stack)
        run.results.about = machine()
        if not args.krelay:
            run.results.about["packages"] = install.versions()
        run.start(found)
        compare(run, args.rounds, args.only)
    names = [name for name in run.results.contenders() if name != Direct.name]
    names.append(Direct.name)
    print(table(run.results, list(run.results.units), names, BASE))
    if args.json:
        run.results.save(args.json)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
