"""`make profile`: where the time of a transfer goes, process by process and line by line.

For a download and an upload of one stream it prints the CPU seconds per GiB of every process of
the chain, and writes a flame graph of the client and of the agent into `dist/`.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import contenders, place, processes
from benchmarks.contenders import Forwarder

SECONDS = 5
RATE = 200
"""Samples a second."""
MIB = 512
DIST = place.ROOT / "dist"
LOADS = {"down": place.SOURCE, "up": place.SINK}


def load(mode: str, port: int, mib: int) -> list[str]:
    """Return the command of one transfer."""
    return [sys.executable, "-m", "benchmarks.load", mode, str(port), str(mib << 20)]


def cost(forwarder: Forwarder, mode: str) -> str:
    """Transfer MIB; return the CPU seconds per GiB of each process."""
    port = forwarder.ports[LOADS[mode]]
    meter = processes.Meter({**forwarder.groups(), **processes.named(*processes.CHAIN)})
    began = time.perf_counter()
    subprocess.run(
        load(mode, port, MIB), check=True, stdout=subprocess.DEVNULL, timeout=300, cwd=place.ROOT
    )
    took = time.perf_counter() - began
    spent = {name: used * 1024 / MIB for name, used in meter.spent().items()}
    each = "  ".join(f"{name} {used:.2f}" for name, used in spent.items())
    return f"{MIB / took * 1.048576:.0f} MB/s; CPU s/GiB: {sum(spent.values()):.2f} = {each}"


def flame(forwarder: Forwarder, mode: str, spy: str) -> list[Path]:
    """Sample the client and the agent while bytes pass; return the flame graphs."""
    port = forwarder.ports[LOADS[mode]]
    bulk = subprocess.Popen(load(mode, port, 1 << 20), stdout=subprocess.DEVNULL, cwd=place.ROOT)
    try:
        time.sleep(0.5)
        drawn = {}
        for name, group in forwarder.groups().items():
            if not group:
                continue  # the agent's node is another machine
            busiest = max(group, key=lambda process: sum(process.cpu_times()[:2]))
            file = DIST / f"profile-{name}-{mode}.svg"
            command = [spy, "record", "--rate", str(RATE), "--duration", str(SECONDS)]
            command += ["--output", str(file), "--pid", str(busiest.pid)]
            drawn[file] = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        return [file for file, process in drawn.items() if process.wait(SECONDS * 6) == 0]
    finally:
        bulk.kill()
        bulk.wait()


def main() -> None:
    """Measure krelay as it is in this tree."""
    place.find_cluster()
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if spy is None:
        print("No flame graphs without py-spy (requirements-profile.lock).", flush=True)
    DIST.mkdir(exist_ok=True)
    krelay = contenders.krelay("krelay", Path(sys.executable).with_name("krelay"))
    with contextlib.ExitStack() as stack:
        where = stack.enter_context(place.namespace())
        forwarder = stack.enter_context(contenders.running(krelay, where))
        for mode in LOADS:
            cost(forwarder, mode)  # the first transfer is slower: windows grow
            print(f"{mode}: {cost(forwarder, mode)}", flush=True)
            for file in flame(forwarder, mode, spy) if spy else ():
                print(f"  {file.relative_to(place.ROOT)}", flush=True)


if __name__ == "__main__":
    main()
