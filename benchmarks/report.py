"""What a run has measured, as tables and charts in docs/performance.md.

`python -m benchmarks.report FILE` writes them again from the samples of a run.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import page, svg
from benchmarks.place import ROOT
from benchmarks.results import BASE, DIRECT, Results, figure

FOLDER = ROOT / "docs" / "performance"
PREFIXES = {"cpu": "CPU ", "memory": "client's memory", "udp": "UDP ", "wan": "WAN: "}
"""Sections of the page, and how the names of their figures begin; the rest are in `figures`."""
GROWTH = ("forwards", "streams", "sizes", "RTT", "UDP")
MORE_IS_BETTER = ("MB/s", "1/s")
CHARTS = {
    "forwards": ("forwards: client's memory, MB", "forwards"),
    "streams": ("streams: client's memory, MB", "open connections"),
    "sizes": ("sizes: time of a transfer, ms", "bytes"),
    "rtt": ("RTT: new connection + 1 byte, ms", "round trip, ms"),
}


def section(name: str) -> str:
    """Return the section of a figure."""
    return next((key for key, start in PREFIXES.items() if name.startswith(start)), "figures")


def ordered(results: Results) -> list[str]:
    """Return the contenders, the control last."""
    names = [name for name in results.contenders() if name != DIRECT]
    return [*names, DIRECT]


def cell(results: Results, name: str, contender: str) -> str:
    """Return one cell: the median, least and most, and the ratio to kubectl's default."""
    found = results.spread(name, contender)
    if found is None:
        return results.failures.get(name, {}).get(contender, "")
    text = figure(found.median)
    if found.count > 1:
        text += f" ({figure(found.least)} to {figure(found.most)})"
    ratio = results.ratio(name, contender, BASE)
    if contender not in (BASE, DIRECT) and ratio is not None:
        text += f" **{figure(ratio)}x**"
    return text


def table(results: Results, names: list[str]) -> str:
    """Return the table of these figures; columns and rows without any sample are left out."""
    columns = [
        contender
        for contender in ordered(results)
        if any(results.spread(name, contender) for name in names)
    ]
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in names:
        cells = [cell(results, name, contender) for contender in columns]
        lines.append(f"| {name}, {results.units[name]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def growth(results: Results, prefix: str) -> str:
    """Return the tables of the series whose names begin so."""
    parts = []
    for name, lines in results.series.items():
        if not name.startswith(prefix):
            continue
        numbers = sorted({number for line in lines.values() for number, _ in line})
        head = f"| {name} | " + " | ".join(f"{number:,}" for number in numbers) + " |"
        rows = [head, "|---" * (len(numbers) + 1) + "|"]
        for contender, line in lines.items():
            values = dict(line)
            cells = [figure(values[n]) if n in values else "" for n in numbers]
            rows.append(f"| {contender} | " + " | ".join(cells) + " |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def failures(results: Results) -> str:
    """Return a line for everything that failed."""
    return "\n".join(
        f"- {name}: {contender}: {reason}"
        for name, reasons in results.failures.items()
        for contender, reason in reasons.items()
    )


def sections(results: Results) -> dict[str, str]:
    """Return the text of every section of the page that the run has figures for."""
    found: dict[str, str] = {}
    for key in ("figures", *PREFIXES):
        names = [name for name in results.units if section(name) == key]
        if names:
            found[key] = table(results, names)
    for prefix in GROWTH:
        if text := growth(results, prefix):
            found[f"growth of {prefix}"] = text
    found["failures"] = failures(results) or "Every load of this run succeeded."
    about = ", ".join(f"{name} {value}" for name, value in results.about.items())
    return {"about": about, **found}


def tables(results: Results) -> str:
    """Return all sections, for a terminal."""
    return "\n\n".join(f"== {name}\n{text}" for name, text in sections(results).items())


def better(results: Results, name: str, contender: str) -> float | None:
    """Return how many times better than kubectl's default a contender is."""
    ratio = results.ratio(name, contender, BASE)
    if not ratio:
        return None
    return ratio if results.units[name] in MORE_IS_BETTER else 1 / ratio


def charts(results: Results) -> dict[str, str]:
    """Return the charts by file name."""
    found = {}
    colours = svg.colours(ordered(results))
    names = {name: colour for name, colour in colours.items() if name not in (BASE, DIRECT)}
    rows = {}
    for name in results.units:
        if section(name) in ("figures", "wan") or name.endswith("whole chain"):
            row = {who: value for who in names if (value := better(results, name, who))}
            if row:
                rows[name] = row
    if rows:
        found["ratios.svg"] = svg.bars("Times better than kubectl port-forward", rows, names)
    for file, (series, across) in CHARTS.items():
        if lines := results.series.get(series):
            title = series.partition(": ")[2]
            found[f"{file}.svg"] = svg.lines(
                title[0].upper() + title[1:],
                across,
                lines,
                colours,
                log_x=file != "rtt",
                log_y=file not in ("forwards", "streams"),
            )
    return found


def write(results: Results) -> None:
    """Write the page's sections, the charts and every sample."""
    FOLDER.mkdir(exist_ok=True)
    results.save(FOLDER / "samples.json")
    for name, text in charts(results).items():
        (FOLDER / name).write_text(text)
    for name, text in sections(results).items():
        page.write(name, text)


if __name__ == "__main__":
    write(Results.load(Path(sys.argv[1])))
