"""What a run came to, as a table and as JSON, and what of it must not be."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.account import EXACT, HUNG, RESET, SILENT, TRUNCATED, WRONG, Account

Row = tuple[str, ...]


@dataclass
class Ends:
    """Counts of both programs, taken while nothing is relayed."""

    descriptors: int
    memory: int
    tasks: int
    streams: int
    agent_descriptors: int
    agent_memory: int


@dataclass
class Report:
    """All of a run."""

    seed: int
    seconds: float
    account: Account
    outcomes: list[str]
    before: Ends
    after: Ends
    agents: tuple[int, int]
    """How many agents there were, and how many there should have been."""
    complaints: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    # -- what must not be ------------------------------------------------------------------------

    def violations(self) -> list[str]:
        """Each invariant that does not hold; empty where all do."""
        account = self.account
        found = list(self.complaints)
        for one in account.ended:
            if one.end in SILENT:
                found.append(f"transfer {one.key} to {one.pod}: {one.end}: {one.detail}")
            if one.end == RESET and one.cause == "unexplained":
                found.append(f"transfer {one.key} to {one.pod}: reset for no reason: {one.detail}")
        found += [f"a transfer never ended: {one.key}" for one in account.live]
        found += [
            f"questions: {account.asked[kind]} {kind}" for kind in SILENT if account.asked[kind]
        ]
        for kind in ("not asked for", "answered twice"):
            if account.datagrams[kind]:
                found.append(f"datagrams: {account.datagrams[kind]} {kind}")
        exact = {one.key for one in account.ended if one.end == EXACT}
        for line in self.outcomes:
            key, _, outcome = line.partition(" ")
            if outcome.startswith("short") or outcome not in ("ok", "reset"):
                found.append(f"transfer {key}, seen from the target: {outcome}")
            if int(key) in exact and outcome != "ok":
                found.append(f"transfer {key} is exact here and {outcome} there")
        before, after = self.before, self.after
        if after.streams:
            found.append(f"{after.streams} streams are left")
        for name, was, is_ in (
            ("krelay's descriptors", before.descriptors, after.descriptors),
            ("krelay's tasks", before.tasks, after.tasks),
            ("the agent's descriptors", before.agent_descriptors, after.agent_descriptors),
        ):
            if is_ > was:
                found.append(f"{name}: {was} before, {is_} after")
        if after.memory > 2 * before.memory + 64:
            found.append(f"krelay's memory: {before.memory} MiB before, {after.memory} after")
        if after.agent_memory > 200:
            found.append(f"the agent's memory: {after.agent_memory} MiB of its 256")
        started, due = self.agents
        if started != due:
            found.append(f"{started} agents were started, {due} were called for")
        found += [
            f"krelay said: {line}"
            for line in self.log
            if any(bad in line for bad in ("Traceback", "protocol error", "internal error", "\x1b"))
        ]
        return found

    # -- for people ------------------------------------------------------------------------------

    def table(self) -> str:
        """As text, in Markdown."""
        account, before, after = self.account, self.before, self.after
        ends = Counter(one.end for one in account.ended)
        causes = Counter(one.cause for one in account.ended if one.end == RESET)
        touched = sum(one.faults > 0 for one in account.ended)
        survived = sum(one.faults > 0 and one.end == EXACT for one in account.ended)
        megabytes = sum(one.received for one in account.ended) / 1e6
        longest = max((one.stall for one in account.ended), default=0.0)
        asked, datagrams = account.asked, account.datagrams
        parts = [
            f"seed {self.seed}, {self.seconds:.0f} s, {account.faults.total()} faults",
            _table(
                ("transfers, both ways", ""),
                ("carried", f"{len(account.ended)}"),
                ("of them met by a fault", f"{touched}"),
                ("of these survived", f"{survived}"),
                ("byte-exact to the end", f"{ends[EXACT]}"),
                ("reset", f"{ends[RESET]}"),
                *((f"... {cause}", f"{count}") for cause, count in causes.most_common()),
                ("wrong bytes", f"{ends[WRONG]}"),
                ("ended early, in silence", f"{ends[TRUNCATED]}"),
                ("hung", f"{ends[HUNG]}"),
                ("received here", f"{megabytes:.0f} MB"),
                ("longest stall", f"{longest:.1f} s"),
            ),
            _table(
                ("questions and datagrams", ""),
                ("connections of those who ask", f"{asked['connections']}"),
                ("questions answered", f"{asked['answered']}"),
                ("connections reset", f"{asked[RESET]}"),
                ("wrong, truncated, hung", f"{sum(asked[kind] for kind in SILENT)}"),
                ("slowest answer", f"{account.slowest_answer:.1f} s"),
                ("datagrams sent", f"{datagrams['sent']}"),
                ("answered", f"{datagrams['answered']}"),
                (
                    "answered twice, or not asked for",
                    f"{datagrams['answered twice'] + datagrams['not asked for']}",
                ),
            ),  # fmt: skip
            _table(
                ("fault", "times", "first moves after", "all move after", "at most"),
                *(
                    (kind, f"{count}", *_times(account.times(kind)))
                    for kind, count in sorted(account.faults.items())
                ),
            ),
            _table(
                ("at rest", "before", "after"),
                ("krelay: descriptors", f"{before.descriptors}", f"{after.descriptors}"),
                ("krelay: tasks", f"{before.tasks}", f"{after.tasks}"),
                ("krelay: streams and flows", f"{before.streams}", f"{after.streams}"),
                ("krelay: memory, MiB", f"{before.memory}", f"{after.memory}"),
                ("agent: descriptors", f"{before.agent_descriptors}", f"{after.agent_descriptors}"),
                ("agent: memory, MiB", f"{before.agent_memory}", f"{after.agent_memory}"),
            ),
        ]
        return "\n\n".join(parts) + "\n"

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        account = self.account
        ended = account.ended
        return {
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "faults": dict(account.faults),
            "transfers": {
                "carried": len(ended),
                "met": sum(one.faults > 0 for one in ended),
                "survived": sum(one.faults > 0 and one.end == EXACT for one in ended),
                "ends": dict(Counter(one.end for one in ended)),
                "resets": dict(Counter(one.cause for one in ended if one.end == RESET)),
                "bytes": sum(one.received for one in ended),
                "longestStall": round(max((one.stall for one in ended), default=0.0), 3),
            },
            "questions": dict(account.asked),
            "slowestAnswer": round(account.slowest_answer, 3),
            "datagrams": dict(account.datagrams),
            "recovery": {kind: account.times(kind) for kind in sorted(account.faults)},
            "before": vars(self.before),
            "after": vars(self.after),
            "violations": self.violations(),
        }


def _times(times: dict[str, float]) -> Row:
    def told(key: str) -> str:
        value = times.get(key, math.nan)
        return "-" if math.isnan(value) else f"{value:.2f} s"

    return told("firstMedian"), told("everyMedian"), told("everyMax")


def _table(*rows: Row) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
