"""How cost grows: with the number of forwards, of streams, and with the size of a transfer.

Each function fills a series: pairs of a number and what was measured, by contender.
"""

from __future__ import annotations

import time

from benchmarks import measures, place, processes
from benchmarks.contenders import Contender, Forwarder, running
from benchmarks.lifetime import SETTLED, held
from benchmarks.place import ECHO, SOURCE
from benchmarks.results import FailedError, Results, figure

FORWARDS = (1, 10, 100, 1000)
STREAMS = (1, 10, 100, 1000, 4000, 10_000)
MOST_STREAMS = 1000
"""Streams of a forwarder without an agent: the container runtime has a thread for each, and Go ends
a program with 10,000 threads."""
LEAST_STREAMS = 100
"""Fewer do not show what each of them takes."""
SIZES = (1 << 10, 32 << 10, 1 << 20, 32 << 20, 1 << 30)
WATCHED = 5.0
SHORT = 0.6


def forwards(contender: Contender, where: place.Namespace, results: Results) -> None:
    """Measure the start, the memory and the idle work of 1 to 1,000 forwards."""
    for count in FORWARDS:
        with running(contender, where, count) as forwarder:
            started = time.monotonic() - forwarder.started
            time.sleep(SETTLED)
            before = processes.seconds(processes.tree(forwarder.pid))
            time.sleep(WATCHED)
            tree = processes.tree(forwarder.pid)
            share = (processes.seconds(tree) - before) / WATCHED * 100
            memory = processes.memory(tree)["now"]
        results.grow("forwards: time until all listen, s", contender.name, count, started)
        results.grow("forwards: client's memory, MB", contender.name, count, memory)
        results.grow("forwards: idle, % of a core", contender.name, count, share)
        print(f"{count} forwards: {contender.name} {figure(started)} s, {figure(memory)} MB")


def streams(contender: Contender, where: place.Namespace, results: Results) -> None:
    """Measure memory and the rate of opening for 1 to 10,000 streams that stay open."""
    for count in STREAMS:
        with running(contender, where) as forwarder:
            if count > MOST_STREAMS and not forwarder.agents:
                return
            before = processes.memory(processes.tree(forwarder.pid))["now"]
            with held(forwarder.ports[ECHO], count) as opened:
                memory = processes.memory(processes.tree(forwarder.pid))["now"]
                agents = processes.memory(forwarder.agents)["now"]
        got = int(opened["open"])
        print(f"{count} streams: {contender.name} {got} open, {figure(memory)} MB", flush=True)
        results.grow("streams: open, of those wanted", contender.name, count, got)
        results.grow("streams: client's memory, MB", contender.name, count, memory)
        results.grow("streams: opened a second", contender.name, count, opened["rate"])
        if got >= LEAST_STREAMS:
            each = (memory - before) / got * 1000
            results.grow("streams: client's memory for each, kB", contender.name, count, each)
        if agents:
            results.grow("streams: agent's memory, MB", contender.name, count, agents)
        if got < count:
            results.fail("streams", contender.name, f"{got} of {count}: {opened['reason']}")
            return


def sizes(forwarder: Forwarder, results: Results) -> None:
    """Measure a transfer of 1 KiB to 1 GiB over a new connection."""
    for size in SIZES:
        found = measures.load("fetch", forwarder.ports[SOURCE], size, SHORT)
        results.grow("sizes: time of a transfer, ms", forwarder.name, size, found["p50"])
        print(f"{size} bytes: {forwarder.name} {figure(found['p50'])} ms", flush=True)


def datagrams(forwarder: measures.Relayed, results: Results) -> None:
    """Measure the loss of datagrams of 1,200 bytes, both ways, and questions with an answer."""
    for mbit in (50, 100, 200, 400):
        for mode in ("down", "up"):
            found = measures.load(f"udp_{mode}", forwarder.udp[place.UDP], mbit, 1200, 2)
            results.grow(f"UDP: lost {mode}, %", forwarder.name, mbit, found["loss"] * 100)
            print(f"UDP {mbit} Mbit/s {mode}: {forwarder.name} {found['loss']:.2%}", flush=True)
            if mbit in (50, 200):
                name = f"UDP {mbit} Mbit/s {mode}: lost"
                results.add(name, "%", forwarder.name, found["loss"] * 100)
    found = measures.load("questions", forwarder.udp[ECHO], 32, 2)
    results.add("UDP questions, 32 clients", "1/s", forwarder.name, found["rate"])
    if found["lost"]:
        raise FailedError(f"{found['lost']} questions without an answer")
