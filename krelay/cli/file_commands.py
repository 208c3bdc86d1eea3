"""Commands about files: `check`, `plan`, `reload`, `rbac`, `import` and `init`.

Each raises a KrelayError: UsageError if a file cannot be read or written, ConfigError if it is
invalid, NotFoundError or ClusterError for objects that a cluster does not have or does not list.
"""

from __future__ import annotations

import dataclasses
import functools
import shlex
from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krelay.cli.output import echo, note
from krelay.config import files
from krelay.config.sources import Proxy, Selection, Words
from krelay.errors import (
    AccessDeniedError,
    ClusterError,
    ConfigError,
    CredentialsError,
    KrelayError,
    NotFoundError,
    UsageError,
)

if TYPE_CHECKING:
    from krelay.doctor import Finding
    from krelay.importers import Place, Services
    from krelay.model import Config

_LOOK_UP_DEADLINE = 10.0
_PLAN_DEADLINE = 30.0
# A new agent may have to be pulled and started first.
_RELOAD_DEADLINE = 600.0
_RBAC_GROUP = "rbac.authorization.k8s.io"
_FASTER = """\
# Not needed, but it makes tunnels faster, where the agent runs (`--optional` includes it):
#   - {apiGroups: [''], resources: [pods/proxy], verbs: [get]}"""
_KUBEFWD = "kubefwd"


# -- check -----------------------------------------------------------------------------------------


class _ClusterProblems(KrelayError):
    """What a file needs, and a cluster lacks."""

    def __init__(self, path: str, lines: Sequence[str], count: int, exit_code: int) -> None:
        super().__init__(f"{path}: {count} problem{'' if count == 1 else 's'} in the cluster")
        self._lines = list(lines)
        self.exit_code = exit_code

    def details(self) -> list[str]:
        """Return a line for each problem, and its hint."""
        return self._lines


def check(
    selection: Selection, *, json: bool, in_cluster: bool = False, kubeconfig: str | None = None
) -> int:
    """Check a file and, with `in_cluster`, its targets in their clusters; return the exit code.

    As JSON, problems are data and not an error.
    """
    try:
        config = selection.load()
    except ConfigError as exc:
        if not json:
            raise
        problems = [
            {**dataclasses.asdict(problem), "path": problem.path or exc.path}
            for problem in exc.problems
        ]
        echo(dumps({"path": exc.path, "ok": False, "problems": problems}, indent=2))
        return exc.exit_code
    names = [target.name for target in config.targets]
    found = _examined(config, kubeconfig) if in_cluster else []
    code = _code(found)
    if json:
        more = {"cluster": [finding.as_json() for finding in found]} if in_cluster else {}
        head = {"path": config.path, "ok": not code, "problems": [], "targets": names}
        echo(dumps({**head, **more}, indent=2))
        return code
    bad = [one for one in found if one.status in ("failed", "warning")]
    lines = [line for finding in bad for line in _lines(finding)]
    if code:
        raise _ClusterProblems(config.path, lines, len(bad), code)
    for line in lines:
        note(line)
    where = ", also in the cluster" if in_cluster else ""
    echo(f"{config.path}: ok{where}, {len(names)} target{'' if len(names) == 1 else 's'}")
    return 0


def _examined(config: Config, kubeconfig: str | None) -> list[Finding]:
    from krelay.cli.signals import run_to_exit
    from krelay.doctor import examine_targets

    return run_to_exit(examine_targets(config, kubeconfig))


def _code(found: Sequence[Finding]) -> int:
    """Return the highest exit code: that of a failure, or 1 if a target has no endpoint now."""
    unready = any(None in finding.details.get("endpoints", ()) for finding in found)
    return max((finding.exit_code for finding in found), default=0) or int(unready)


def _lines(finding: Finding) -> list[str]:
    """Return a finding as a line, and its hint as another."""
    start = "" if finding.check == "targets" else f"{finding.check}: "
    where = f" (context {finding.context})" if finding.context else ""
    hint = ": ".join(filter(None, (finding.hint, finding.command)))
    return [f"{start}{finding.text}{where}", *([f"  hint: {hint}"] if hint else [])]


# -- plan and reload -------------------------------------------------------------------------------


def plan(
    selection: Selection, candidate: Selection | None, words: Sequence[str] = (), *, json: bool
) -> bool:
    """Print what `candidate`, or the file as it is now, would change; return whether it would.

    `words` are the options that `krelay up` needs for the same file and cluster.
    """
    from krelay.config.changes import changes
    from krelay.config.diff import diff
    from krelay.status.client import NotRunningError, ask

    file = selection.file
    if file is None:
        hint = "it cannot be a pipe: try `krelay plan -`"
        raise UsageError("`-f` names the file that krelay runs", hint=hint)
    given = {"context": selection.context, "namespace": selection.namespace}
    body = {key: value for key, value in given.items() if value}
    if candidate is not None:
        if candidate.text is not None:
            body["text"] = candidate.text.decode(errors="surrogateescape")
        elif candidate.path is not None:
            body["path"] = str(Path(candidate.path).absolute())
    try:
        found = ask(file, "POST", "/v1/plan", body, timeout=_PLAN_DEADLINE)["changes"]
    except NotRunningError:
        config = (candidate or selection).load()
        found = [change.as_json() for change in changes(diff(None, config))]
        command = shlex.join(["krelay", "up", *words])
        note(f"krelay is not running for {file}; `{command}` would start this:")
    _print_changes(found, "nothing would change", json=json)
    return bool(found)


def reload(file: str, *, json: bool) -> None:
    """Make krelay apply its file, and print what changed."""
    from krelay.status.client import ask

    found = ask(file, "POST", "/v1/reload", timeout=_RELOAD_DEADLINE)["changes"]
    _print_changes(found, "nothing changed", json=json)


def _print_changes(found: list[dict[str, Any]], nothing: str, *, json: bool) -> None:
    if json:
        echo(dumps({"changes": found}, indent=2))
        return
    for change in found:
        echo(f"{change['sign']} {change['text']}")
    if not found:
        echo(nothing)


# -- rbac ------------------------------------------------------------------------------------------


def rbac_subjects(
    users: Sequence[str], groups: Sequence[str], accounts: Sequence[str]
) -> list[dict[str, str]]:
    """Return the subjects of a RoleBinding; an account is `NAMESPACE:NAME`, as in kubectl."""
    found = [{"kind": "User", "apiGroup": _RBAC_GROUP, "name": name} for name in users]
    found += [{"kind": "Group", "apiGroup": _RBAC_GROUP, "name": name} for name in groups]
    for account in accounts:
        namespace, _, name = account.rpartition(":")
        found.append({"kind": "ServiceAccount", "namespace": namespace or "default", "name": name})
    return found


def rbac(
    source: Selection | Words | Proxy,
    subjects: Sequence[dict[str, str]],
    *,
    optional: bool,
    context: str | None = None,
    namespace: str | None = None,
    kubeconfig: str | None = None,
    name: str | None = None,
) -> int:
    """Print the Roles that the targets need and, for `subjects`, the bindings; return the code.

    `context` selects the targets of one context; if no target names it, it is that of the targets
    that name none. `namespace` is used instead of the context's own.
    """
    from krelay.cluster.auth.kubeconfig import load
    from krelay.cluster.rbac import is_faster_with_more, roles
    from krelay.config.yaml_reader import documents

    config = source.load()
    if context is not None:
        if context not in {target.context or config.context for target in config.targets}:
            config = _moved(source, context).load()
        found = (t for t in config.targets if (t.context or config.context) == context)
        config = dataclasses.replace(config, targets=tuple(found))

    @functools.cache
    def namespace_of(context: str | None) -> str:
        if namespace is not None:
            return namespace
        try:
            return load(context, kubeconfig).namespace
        except CredentialsError as exc:
            note(f"{exc}; assuming the namespace `default`")
            return "default"

    needed: dict[str | None, list[Any]] = roles(
        config, namespace_of, subjects=subjects, optional=optional, name=name
    )
    for place, wanted in (needed or {context: []}).items():
        if len(needed) > 1:
            echo(f"# context {place or '(the current one)'}")
        echo(documents(wanted).rstrip() if wanted else "# no rights are needed")
    if not optional and is_faster_with_more(config):
        echo(_FASTER)
    return 0


def _moved(source: Selection | Words | Proxy, context: str) -> Selection | Words | Proxy:
    """Return the source with another context for targets that name none."""
    if isinstance(source, Selection):
        return dataclasses.replace(source, context=context)
    overlay = dataclasses.replace(source.overlay, context=context)
    return dataclasses.replace(source, overlay=overlay)


# -- import and init -------------------------------------------------------------------------------


def import_(
    path: str,
    namespaces: Sequence[str],
    context: str | None,
    kubeconfig: str | None = None,
    *,
    offline: bool = False,
) -> int:
    """Print another tool's file as a krelay.yaml; return the exit code.

    `path` is the file, `-` for standard input, or `kubefwd` for the Services of `namespaces` (by
    default the namespace of the kubeconfig context `context`). Unless `offline`, the clusters of
    the file say which port of a Service leads to a port of its pods.
    """
    from krelay.cli.signals import run_to_exit
    from krelay.importers import Converted, kubefwd, places, read

    if path == _KUBEFWD and not Path(path).exists():
        found = run_to_exit(_list(namespaces, context, kubeconfig, ["services"]))
        if not any(items[0] for items in found.values()):
            names = ", ".join(found)
            raise NotFoundError(f"no Services in {names}", hint="`-n` names other namespaces")
        services = {name: items[0] for name, items in found.items()}
        converted: Converted = kubefwd(services, context=context)
    else:
        data = files.read_once(path)
        data = files.read(path) if data is None else data
        foreign = read(data, "<stdin>" if path == files.STDIN else path)
        wanted = [] if offline else places(foreign.entries)
        answers = run_to_exit(_look_up(wanted, context, kubeconfig)) if wanted else {}
        converted = foreign.convert(answers, context=context)
    echo(converted.text.rstrip())
    for warning in converted.warnings:
        note(f"warning: {warning}")
    if not converted.targets:
        note("warning: no target could be converted")
    return 0


def init(
    path: str | None,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None = None,
    *,
    force: bool = False,
) -> int:
    """Write a starter file, and beside it the schema that its first line names; return the code.

    `path` is `krelay.yaml` if None. The Services and workloads of `namespace` become its targets.
    """
    from krelay.cli.signals import run_to_exit
    from krelay.config import schema_text
    from krelay.config.schema import FILE as SCHEMA_FILE
    from krelay.importers import starter

    target = Path(path or files.NAMES[0])
    if target.exists() and not force:
        raise UsageError(f"{target} exists", hint="`--force` overwrites it")
    items: list[list[Any]] = [[], [], []]
    if namespace is not None:
        kinds = ["services", "deployments", "statefulsets"]
        items = run_to_exit(_list([namespace], context, kubeconfig, kinds))[namespace]
        if not any(items):
            raise NotFoundError(
                f'namespace "{namespace}" has no Services, Deployments or StatefulSets',
                hint="check the name and the context",
            )
    found = starter(namespace, items[0], [*items[1], *items[2]], context=context)
    schema = target.parent / SCHEMA_FILE
    try:
        target.write_text(found.text, encoding="utf-8")
        if force or not schema.exists():
            schema.write_text(schema_text(), encoding="utf-8")
    except OSError as exc:
        raise files.unwritable(target, exc) from exc
    file = f" -f {shlex.quote(path)}" if path else ""
    first = f"`krelay check{file}`" if found.targets else f"`krelay add{file} svc/NAME`"
    echo(f"{target}: written; next: {first}, then `krelay up{file}`")
    return 0


async def _look_up(
    wanted: Sequence[Place], context: str | None, kubeconfig: str | None
) -> dict[Place, Services]:
    """Return the Services of each place, or why they are unknown; clusters get a limited time.

    `context` is that of places without one.
    """
    from krelay.tasks import TaskGroup

    found: dict[Place, Services] = {}
    async with TaskGroup() as looking:
        for name in dict.fromkeys(place[0] for place in wanted):
            namespaces = [place[1] for place in wanted if place[0] == name]
            places = (found, name, name or context, kubeconfig, namespaces)
            looking.create_task(_services(*places))
    return found


async def _services(
    found: dict[Place, Services],
    key: str | None,
    context: str | None,
    kubeconfig: str | None,
    names: list[str | None],
) -> None:
    """Add the Services of these namespaces of a context to `found`."""
    import asyncio

    from krelay.cluster.api import Api, collection
    from krelay.cluster.objects import read_list
    from krelay.importers import Services

    try:
        async with (
            asyncio.timeout(_LOOK_UP_DEADLINE),
            await Api.connect(context=context, kubeconfig=kubeconfig) as api,
        ):
            for name in names:
                namespace = name or api.namespace
                paths = (
                    collection("v1", "services", namespace),
                    collection("discovery.k8s.io/v1", "endpointslices", namespace),
                )
                services, slices = [read_list(await api.get(path), path).items for path in paths]
                found[key, name] = Services(services, slices)
    except TimeoutError:
        why = f"no answer from the cluster within {_LOOK_UP_DEADLINE:g} s"
    except ClusterError as exc:
        why = str(exc)
    else:
        return
    for name in names:
        found.setdefault((key, name), Services(unknown=why))


async def _list(
    namespaces: Sequence[str], context: str | None, kubeconfig: str | None, kinds: Sequence[str]
) -> dict[str, list[list[Any]]]:
    """Return the objects of each namespace (by default the context's), a list for each kind."""
    from krelay.cluster.api import Api, collection
    from krelay.cluster.objects import read_list
    from krelay.cluster.rbac import view_command

    async with await Api.connect(context=context, kubeconfig=kubeconfig) as api:
        found = {}
        for namespace in namespaces or [api.namespace]:
            lists = []
            for kind in kinds:
                version = "v1" if kind == "services" else "apps/v1"
                path = collection(version, kind, namespace)
                try:
                    items, *_ = read_list(await api.get(path), path)
                except AccessDeniedError as exc:
                    command = view_command(exc.user, namespace)
                    hint = f"an administrator gives all rights for this with: {command}"
                    raise AccessDeniedError(exc.message, hint=hint) from exc
                word = {"deployments": "Deployment", "statefulsets": "StatefulSet"}.get(kind, "")
                lists.append([{**item, "kind": word} for item in items])
            found[namespace] = lists
        return found
