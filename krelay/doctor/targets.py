"""Targets: whether each object exists, and where its ports lead now."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from krelay.config.diff import group_of
from krelay.doctor.finding import Finding, failed, ok, warning
from krelay.errors import AccessDeniedError, ClusterError, KrelayError
from krelay.model import Config, Kind, Resolution, Target
from krelay.tasks import TaskGroup

if TYPE_CHECKING:
    from krelay.cluster.api import Api
    from krelay.cluster.informers import Informers

CHECK = "targets"
DEADLINE = 8.0


async def targets(api: Api, config: Config, context: str | None) -> list[Finding]:
    """Look up the targets of a context as `krelay up` does, all at once."""
    from krelay.cluster.informers import Informers

    wanted = [
        target
        for target in config.targets
        if group_of(config, target) == context and target.kind is not Kind.PROXY
    ]
    informers = Informers(api)
    try:
        async with TaskGroup() as tasks:
            looking = [
                tasks.create_task(_target(informers, config, target, api.namespace))
                for target in wanted
            ]
    finally:
        await informers.close()
    return [task.result() for task in looking]


async def _target(informers: Informers, config: Config, target: Target, namespace: str) -> Finding:
    from krelay.cluster.resolve import resolve_now

    if not target.kind.in_cluster:
        return ok(CHECK, f"{target.name}: the agent dials {target}; not tried", target=target.name)
    place = target.namespace or config.namespace or namespace
    try:
        async with asyncio.timeout(DEADLINE):
            found = await resolve_now(informers, target, place)
    except TimeoutError:
        text = f"{target.name}: no answer about {target} within {DEADLINE:g} s"
        return failed(CHECK, text, exit_code=ClusterError.exit_code, target=target.name)
    except KrelayError as exc:
        hint = "see `rights`" if isinstance(exc, AccessDeniedError) else exc.hint
        return failed(
            CHECK,
            f"{target.name}: {exc.message}",
            hint,
            exit_code=exc.exit_code,
            target=target.name,
        )
    return judged(target, found)


def judged(target: Target, found: tuple[Resolution, ...]) -> Finding:
    """Judge by the worst of the target's ports."""
    details: dict[str, Any] = {
        "target": target.name,
        "endpoints": [str(one.endpoint) if one.endpoint else None for one in found],
    }
    if missing := next((one.reason for one in found if one.missing), ""):
        hint = "check the name, the port, the namespace and the context"
        text = f"{target.name}: {missing}"
        return failed(CHECK, text, hint, exit_code=ClusterError.exit_code, **details)
    if waiting := next((one.reason for one in found if one.endpoint is None), ""):
        hint = "connections wait until it is ready"
        return warning(CHECK, f"{target.name}: {waiting}", hint, **details)
    if any(one.unready for one in found):
        text = f"{target.name}: no pod of {target} is ready; one that runs is used"
        return warning(CHECK, text, **details)
    ready = max(len(one.pods) or len(one.endpoints) for one in found)
    where = ", ".join(dict.fromkeys(f"{one.endpoint} ({one.via})" for one in found))
    number = f", {ready} ready" if ready else ""
    return ok(CHECK, f"{target.name}: {target} -> {where}{number}", **details)
