"""The ports of a target that its command line leaves out: those that its object declares."""

from __future__ import annotations

import asyncio
from typing import Any

from krelay.config.grammar import NAMES
from krelay.errors import KrelayError, NotFoundError, UsageError
from krelay.model import Config, Target

_DEADLINE = 10.0


def look_up(target: Target, config: Config, command: str, kubeconfig: str | None) -> list[str]:
    """Return the ports of a target as words, with local ports that `config` does not use. Blocks.

    `command` is the command line that lacks them.

    Raises:
        UsageError: the cluster cannot say, or the object has no ports.
        NotFoundError: it does not exist.
    """
    from krelay.cli.signals import run_to_exit
    from krelay.cluster.objects import declared_ports
    from krelay.importers import local_ports

    hint = f"name them: `{command} 8080:80`"
    try:
        item = run_to_exit(_get(target, config, kubeconfig))
        ports = declared_ports(target.kind, item)
    except NotFoundError as exc:
        raise NotFoundError(exc.message, hint=f"check the namespace, or {hint}") from exc
    except (KrelayError, TimeoutError, KeyError, TypeError, AttributeError) as exc:
        why = exc if isinstance(exc, KrelayError) else f"no answer within {_DEADLINE:g} s"
        raise UsageError(f"cannot look up the ports of `{target}`: {why}", hint=hint) from exc
    taken = {
        (port.local, str(port.protocol or "tcp"))
        for other in config.targets
        for port in other.ports
        if port.local
    }
    found = local_ports(ports, taken)
    if not found:
        raise UsageError(f"`{target}` declares no ports", hint=hint)
    return found


async def _get(target: Target, config: Config, kubeconfig: str | None) -> Any:
    from krelay.cluster.api import Api, object_path

    (resource, *_), group = NAMES[target.kind]
    version = f"{group}/v1" if group else "v1"
    context = target.context or config.context
    async with asyncio.timeout(_DEADLINE):
        api = await Api.connect(context=context, kubeconfig=kubeconfig)
        async with api:
            namespace = target.namespace or config.namespace or api.namespace
            return await api.get(object_path(version, resource, namespace, target.resource))
