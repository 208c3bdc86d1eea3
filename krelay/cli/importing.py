"""`krelay import` and `krelay init`: a krelay.yaml made of what there is."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from krelay.cli.output import note, say
from krelay.cli.signals import run_last
from krelay.config import files
from krelay.errors import NotFoundError, UsageError
from krelay.importers import Converted, convert, kubefwd, starter

KUBEFWD = "kubefwd"


def run(path: str, namespaces: Sequence[str], context: str | None) -> int:
    """Print what the file at `path` says (`-`: standard input) as a krelay.yaml; the exit code.

    Raises:
        UsageError: it cannot be read.
        ConfigError: it is nothing that is known.
        NotFoundError: it is kubefwd, and there are no Services.
        ClusterError: it is kubefwd, and the Services cannot be listed.
    """
    if path == KUBEFWD and not Path(path).exists():
        found = run_last(_listed(namespaces, context, ["services"]))
        if not any(items[0] for items in found.values()):
            names = ", ".join(found)
            raise NotFoundError(f"no Services in {names}", hint="`-n` names other namespaces")
        converted: Converted = kubefwd({name: items[0] for name, items in found.items()})
    else:
        data = files.given(path)
        data = files.read(path) if data is None else data
        converted = convert(data, "<stdin>" if path == files.STDIN else path)
    say(converted.text.rstrip())
    for warning in converted.warnings:
        note(f"warning: {warning}")
    return 0


def init(
    path: str | None, namespace: str | None, context: str | None, *, force: bool = False
) -> int:
    """Write a file to begin with; the exit code.

    Raises:
        UsageError: there is one already, or it cannot be written.
        NotFoundError: the namespace has nothing.
        ClusterError: the namespace cannot be looked at.
    """
    target = Path(path or files.NAMES[0])
    if target.exists() and not force:
        raise UsageError(f"{target} exists", hint="`--force` writes over it")
    items: list[list[Any]] = [[], [], []]
    if namespace is not None:
        kinds = ["services", "deployments", "statefulsets"]
        items = run_last(_listed([namespace], context, kinds))[namespace]
        if not any(items):
            raise NotFoundError(
                f'namespace "{namespace}" has no Services, Deployments or StatefulSets',
                hint="is that its name, and this the right context?",
            )
    text = starter(namespace, items[0], [*items[1], *items[2]])
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise UsageError(f"cannot write {target}: {(exc.strerror or str(exc)).lower()}") from exc
    file = f" -f {shlex.quote(path)}" if path else ""
    say(f"{target}: written; next: `krelay check{file}`, then `krelay up{file}`")
    return 0


async def _listed(
    namespaces: Sequence[str], context: str | None, kinds: Sequence[str]
) -> dict[str, list[list[Any]]]:
    """The objects of each namespace (without any: the context's own), kind by kind."""
    from krelay.cluster.api import Api, collection
    from krelay.cluster.objects import read_list

    async with await Api.connect(context=context) as api:
        found = {}
        for namespace in namespaces or [api.namespace]:
            lists = []
            for kind in kinds:
                version = "v1" if kind == "services" else "apps/v1"
                path = collection(version, kind, namespace)
                items, *_ = read_list(await api.get(path), path)
                word = {"deployments": "Deployment", "statefulsets": "StatefulSet"}.get(kind, "")
                lists.append([{**item, "kind": word} for item in items])
            found[namespace] = lists
        return found
