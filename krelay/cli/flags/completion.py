"""Shell completion: targets and ports, from the file and from the cluster, within a second."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr
from io import StringIO
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from krelay.errors import KrelayError
from krelay.model import TYPES, Kind
from krelay.text import one_line

if TYPE_CHECKING:
    from krelay.cluster.api import Api

_DEADLINE = 0.8
"""Seconds for the cluster to answer. Fewer words are better than a shell that hangs."""
_LIMIT = 500


def target_names(context: click.Context, param: click.Parameter, word: str) -> list[CompletionItem]:
    """Return the file's targets, for the NAMEs of a command."""
    from krelay.config.sources import Selection

    try:
        with redirect_stderr(StringIO()):  # a warning would appear within the user's command line
            config = Selection(context.params.get("file"), environ=os.environ).load()
    except KrelayError:
        return []
    given = context.params.get("names") or ()
    found = (target for target in config.targets if target.name not in given)
    return [CompletionItem(t.name, help=one_line(t)) for t in found if t.name.startswith(word)]


def relay_words(context: click.Context, param: click.Parameter, word: str) -> list[CompletionItem]:
    """Return TYPE/NAME, then its ports, for `kubectl relay`."""
    given = context.params.get("words") or ()
    options = context.params
    try:
        found = _ports(given[0], options) if given else _targets(word, options)
    except (AttributeError, KeyError, TypeError):
        return []  # an object of an unknown shape
    return [CompletionItem(text) for text in found if text.startswith(word) and text not in given]


def _targets(word: str, options: Mapping[str, Any]) -> list[str]:
    from krelay.config.grammar import ParseError, parse_kind

    prefix, slash, _ = word.partition("/")
    if not slash:
        return [f"{kind}/" for kind in TYPES]
    try:
        items = _objects(options, parse_kind(prefix))
    except ParseError:
        return []
    return _fit(sorted(f"{prefix}/{item['metadata']['name']}" for item in items))


def _ports(target: str, options: Mapping[str, Any]) -> list[str]:
    from krelay.config.grammar import ParseError, parse_resource

    try:
        kind, name = parse_resource(target)
    except ParseError:
        return []
    found: dict[str, None] = {}
    for item in _objects(options, kind, fieldSelector=f"metadata.name={name}"):
        for port in _declared(kind, item["spec"]):
            suffix = "@udp" if port.get("protocol") == "UDP" else ""
            found[f"{port.get('port') or port.get('containerPort')}{suffix}"] = None
            if port.get("name"):
                found[f":{port['name']}{suffix}"] = None
    return _fit(found)


def _fit(words: Iterable[str]) -> list[str]:
    """Return the words that are safe in a shell: names in a cluster may be anything."""
    return [word for word in words if word == one_line(word) and not any(map(str.isspace, word))]


def _declared(kind: Kind, spec: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    if kind is Kind.SERVICE:
        return spec.get("ports") or ()
    pod = spec if kind is Kind.POD else spec["template"]["spec"]
    return [port for container in pod["containers"] for port in container.get("ports") or ()]


def _objects(options: Mapping[str, Any], kind: Kind, **query: str) -> list[Any]:
    from krelay.config.grammar import NAMES

    if kind not in NAMES:
        return []
    (resource, *_), group = NAMES[kind]
    return _list(options, f"{group}/v1" if group else "v1", resource, **query)


def _list(options: Mapping[str, Any], version: str, resource: str, **query: str) -> list[Any]:
    """Return the objects of a collection, or none if the cluster is slow or refuses."""
    from krelay.cluster.api import Api, collection
    from krelay.cluster.objects import read_list

    async def fetch() -> list[Any]:
        async with asyncio.timeout(_DEADLINE):
            api: Api = await Api.connect(
                context=options.get("context"), kubeconfig=options.get("kubeconfig")
            )
            async with api:
                path = collection(version, resource, options.get("namespace") or api.namespace)
                items, *_ = read_list(await api.get(path, limit=str(_LIMIT), **query), path)
        return items

    try:
        return asyncio.run(fetch())
    except (KrelayError, OSError, TimeoutError, KeyError, TypeError):
        return []
