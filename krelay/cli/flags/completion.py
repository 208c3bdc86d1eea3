"""Shell completion: files, targets, ports, names of kubeconfig; soon, and silent on errors.

`answer` speaks cobra's protocol, which kubectl expects of a plugin: a word on each line, then a
directive for the shell. The scripts of `krelay completion` expect the same.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from io import StringIO
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem, ShellComplete

from krelay.cli.flags.values import overrides
from krelay.errors import KrelayError
from krelay.model import TYPES, Kind, Target
from krelay.text import one_line

if TYPE_CHECKING:
    from krelay.cluster.api import Api

_NO_SPACE, _NO_FILES, _FOLDERS = 2, 4, 16
"""cobra's directives; 0 leaves the word to the shell, which completes it as a file name."""
_PROCESS_DEADLINE = 3.0
"""Seconds after which a completion ends, whatever it waits for."""
_REFRESH_PATIENCE = 10.0
"""Seconds that it waits longer for tokens that are being refreshed."""
_LOOK_EVERY = 0.1
_DEADLINE = 2.0
"""Seconds for the cluster to answer. Fewer words are better than a shell that hangs."""
_LIMIT = 500


# -- the answer to a shell -------------------------------------------------------------------------


def run(command: click.Command, name: str, words: Sequence[str]) -> None:
    """Print the answer for a process that does nothing else."""
    limit_time()
    # A credential plugin must neither ask on the terminal nor write into the user's line.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 2)
    sys.stdout.write(answer(command, name, words))


def limit_time(end: Callable[[int], None] = os._exit) -> None:
    """End the process in time, even if a credential plugin or a resolver hangs.

    A refresh of tokens may first end and be written: the issuer may have spent the old one.
    """
    last = time.monotonic() + _PROCESS_DEADLINE + _REFRESH_PATIENCE

    def stop(*_: object) -> None:
        oidc = sys.modules.get("krelay.cluster.auth.oidc")
        if oidc is not None and oidc.is_refreshing() and time.monotonic() < last:
            return
        os.write(1, b":%d\n" % _NO_FILES)
        end(0)

    if not hasattr(signal, "SIGALRM"):  # Windows, whose shells have no script either
        return
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, _PROCESS_DEADLINE, _LOOK_EVERY)


def answer(command: click.Command, name: str, words: Sequence[str]) -> str:
    """Return the lines and the directive for the last of `words`; 0 if completing it fails."""
    *given, word = words or [""]
    try:
        found = ShellComplete(command, {}, name, "").get_completions(given, word)
    except Exception:
        return ":0\n"
    kinds = {item.type for item in found}
    if "file" in kinds:
        return ":0\n"
    if "dir" in kinds:
        return f":{_FOLDERS}\n"
    lines = [f"{item.value}\t{one_line(item.help)}" if item.help else item.value for item in found]
    open_ended = any(str(item.value).endswith("/") for item in found)
    directive = _NO_FILES | (_NO_SPACE if open_ended else 0)
    return "".join(f"{line}\n" for line in [*lines, f":{directive}"])


def split_line(line: str) -> list[str]:
    """Return the words of a command line up to the cursor, without the program's; the last one may
    be empty or unfinished."""
    from click.shell_completion import split_arg_string

    words = split_arg_string(line)[1:]
    return [*words, ""] if line[-1:].isspace() else words or [""]


# -- words of each kind ----------------------------------------------------------------------------


def target_names(context: click.Context, param: click.Parameter, word: str) -> list[CompletionItem]:
    """Return the file's targets, for the NAMEs of a command."""
    given = context.params.get(str(param.name)) or ()
    found = (target for target in _file_targets(context) if target.name not in given)
    return [CompletionItem(t.name, help=one_line(t)) for t in found if t.name.startswith(word)]


def ports_of_target(
    context: click.Context, param: click.Parameter, word: str
) -> list[CompletionItem]:
    """Return the remote ports of the file's target that `name` says, for `krelay port`."""
    name = context.params.get("name")
    ports = [
        port for target in _file_targets(context) if target.name == name for port in target.ports
    ]
    return _items((str(port.remote) for port in ports), word)


def _file_targets(context: click.Context) -> tuple[Target, ...]:
    """Return the targets of the file that the command line names."""
    from krelay.config.sources import Selection

    try:
        with redirect_stderr(StringIO()):  # a warning would appear within the user's command line
            return Selection(context.params.get("file"), environ=os.environ).load().targets
    except KrelayError:
        return ()


def names_or_words(
    context: click.Context, param: click.Parameter, word: str
) -> list[CompletionItem]:
    """Return the file's targets, or the words of one as for `kubectl relay`."""
    given = context.params.get(str(param.name)) or ()
    if "/" in "".join(given[:1] or (word,)):
        return relay_words(context, param, word)
    kinds = [] if given else [f"{kind}/" for kind in TYPES]
    return [*target_names(context, param, word), *_items(kinds, word)]


def namespaces(context: click.Context, param: click.Parameter, word: str) -> list[CompletionItem]:
    """Return the namespaces of the cluster."""
    options = {**context.params, "namespace": None}
    return _items(_names_of(_list(options, "v1", "namespaces")), word)


def kubeconfig_names(
    context: click.Context, param: click.Parameter, word: str
) -> list[CompletionItem]:
    """Return the contexts, clusters or users of kubeconfig: `param` has the name of the kind."""
    from krelay.cluster.auth.kubeconfig import entry_names

    try:
        found = entry_names(str(param.name), context.params.get("kubeconfig") or None)
    except KrelayError:
        return []
    return _items(found, word)


def relay_words(context: click.Context, param: click.Parameter, word: str) -> list[CompletionItem]:
    """Return TYPE/NAME, then its ports, for `kubectl relay`."""
    given = context.params.get("words") or ()
    options = context.params
    try:
        found = _ports(given[0], options) if given else _targets(word, options)
    except (AttributeError, KeyError, TypeError):
        return []  # an object of an unknown shape
    return _items((text for text in found if text not in given), word)


def _items(found: Iterable[str], word: str) -> list[CompletionItem]:
    return [CompletionItem(text) for text in _fit(found) if text.startswith(word)]


def _names_of(items: Iterable[Any]) -> list[str]:
    return sorted(str(item["metadata"]["name"]) for item in items)


def _targets(word: str, options: Mapping[str, Any]) -> list[str]:
    from krelay.config.grammar import ParseError, parse_kind

    prefix, slash, _ = word.partition("/")
    if not slash:
        kinds = [f"{kind}/" for kind in TYPES if kind.startswith(word)]
        return kinds or _names_of(_objects(options, Kind.POD))  # a bare name is a pod
    try:
        items = _objects(options, parse_kind(prefix))
    except ParseError:
        return []
    return [f"{prefix}/{name}" for name in _names_of(items)]


def _ports(target: str, options: Mapping[str, Any]) -> list[str]:
    from krelay.cluster.objects import declared_ports
    from krelay.config.grammar import ParseError, parse_resource

    try:
        kind, name = parse_resource(target)
    except ParseError:
        return []
    found: dict[str, None] = {}
    for item in _objects(options, kind, fieldSelector=f"metadata.name={name}"):
        for port in declared_ports(kind, item):
            suffix = "@udp" if port.get("protocol") == "UDP" else ""
            found[f"{port['port']}{suffix}"] = None
            if port.get("name"):
                found[f":{port['name']}{suffix}"] = None
    return list(found)


def _fit(words: Iterable[str]) -> list[str]:
    """Return the words that are safe in a shell: names in a cluster may be anything."""
    return [word for word in words if word == one_line(word) and not any(map(str.isspace, word))]


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
                context=options.get("context") or None,
                kubeconfig=options.get("kubeconfig") or None,
                overrides=overrides(options),
            )
            async with api:
                # Namespaces themselves are in none.
                namespace = options.get("namespace") or api.namespace
                inside = None if resource == "namespaces" else namespace
                path = collection(version, resource, inside)
                items, *_ = read_list(await api.get(path, limit=str(_LIMIT), **query), path)
        return items

    try:
        return asyncio.run(fetch())
    except (KrelayError, OSError, TimeoutError, KeyError, TypeError):
        return []
