"""What is shown around the table of forwards: the run, its file and its agents, a line each."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.text import Text

from krelay.cli.table import age
from krelay.text import one_line

Report = Mapping[str, Any]


def head(report: Report, now: datetime) -> Text:
    """`krelay.yaml · 3 of 4 ready · up 5m · agent default/krelay-server-x4k2p: 2 tunnels, 3 ms`."""
    forwards = report["forwards"]
    staying = [forward for forward in forwards if forward["state"] != "draining"]
    ready = sum(forward["state"] == "ready" for forward in staying)
    if report["ending"] or (forwards and not staying):
        verdict = Text("ending", "magenta")
    elif staying:
        style = "green" if report["ready"] else "yellow"
        verdict = Text(f"{ready} of {len(staying)} ready", style)
    else:
        verdict = Text("starting", "yellow")
    path = report["file"]["path"]
    parts = [Text(one_line(Path(path).name) if path else "krelay", "bold"), verdict]
    if report["draining"]:
        parts.append(Text(f"{report['draining']} draining", "magenta"))
    parts.append(Text(f"up {age(report['started'], now)}", "dim"))
    parts += [_agent(agent) for agent in report["agents"]]
    return _line(Text.assemble((" · ", "dim")).join(parts))


def drift(report: Report, now: datetime) -> Text | None:
    """That the file says something else than what runs, and why; None while it does not."""
    file = report["file"]
    if file["inStep"]:
        return None
    since = f" for {age(file['since'], now)}" if file["since"] else ""
    if file["error"] is None:
        return _line(Text(f"! not yet what the file says{since}", "yellow"))
    message = one_line(file["error"]["message"])
    return _line(Text(f"! not what the file says{since}: {message}", "red"))


def _agent(agent: Report) -> Text:
    tunnels = agent["tunnels"]
    up = [tunnel for tunnel in tunnels if tunnel["up"]]
    where = one_line(", ".join(agent["where"]))
    text = f"agent {where}: " if where else "agent: "
    if not up:
        return Text(f"{text}no tunnel", "yellow")
    count = f"{len(up)}" if len(up) == len(tunnels) else f"{len(up)} of {len(tunnels)}"
    text += f"{count} tunnel{'' if count == '1' else 's'}"
    delays = [tunnel["rtt"] for tunnel in up if tunnel["rtt"] is not None]
    if delays:
        ms = min(delays) * 1000
        text += f", {ms:.0f} ms" if ms >= 1 else ", <1 ms"
    return Text(text)


def _line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text
