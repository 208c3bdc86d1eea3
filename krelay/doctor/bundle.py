"""Bundle: an archive for a bug report, without secrets.

It holds the doctor's report, the file, versions, and of a krelay that runs the file its state, its
log, its tasks and what the cluster says of its agents.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import io
import os
import platform
import re
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krelay import __version__
from krelay.config import files
from krelay.config.redaction import redacted
from krelay.doctor.finding import Finding
from krelay.doctor.redaction import Redactor, dumped, secrets_of_environment, secrets_of_login
from krelay.errors import ClusterError, ConfigError, KrelayError, UsageError
from krelay.model import Config
from krelay.threads import in_thread

if TYPE_CHECKING:
    from krelay.cluster.api import Api
    from krelay.doctor.examination import Source

FOLDER = "krelay-bundle"
_LOG_LINES, _POD_LINES = 1_000, 200
_ANSWER_DEADLINE, _CLUSTER_DEADLINE = 5.0, 8.0
_MOST_AGENTS = 4
_MAX_TEXT = 4 << 20
"""Characters of one text."""
_VARIABLE = re.compile(r"\$\{(\w+)")
_PACKAGES = (
    *("aiofastnet", "aiohttp", "click", "h11", "jsonpatch", "jsonschema", "kubernetes_asyncio"),
    *("prometheus_client", "psutil", "PyYAML", "rich", "watchfiles", "websockets", "mcp"),
)


async def write(
    path: Path,
    findings: Sequence[Finding],
    source: Source | None,
    *,
    context: str | None = None,
    kubeconfig: str | None = None,
) -> list[str]:
    """Write the archive to `path`, which must not exist; return the names of its files.

    Only this user can read it. What cannot be had is left out, or a line says why.

    Raises:
        UsageError: `path` cannot be written.
    """
    redact = await in_thread(lambda: Redactor(secrets_of_environment()))
    texts: dict[str, str] = {}
    config: Config | None = None
    file: str | None = None
    if source is not None:
        try:
            file = await in_thread(lambda: source.file)
            config = await in_thread(source.load)
        except (ConfigError, UsageError):
            pass  # the report says so
        texts |= await in_thread(partial(_files, config, file, redact))
    texts["doctor.json"] = dumped([finding.as_json() for finding in findings])
    texts["versions.json"] = dumped(await in_thread(versions))
    snapshot = await in_thread(partial(_running, texts, file)) if file else {}
    names = {agent.get("context") for agent in snapshot.get("agents", ())} or {
        config.context if config else context
    }
    for name in names:
        async with _api(name, kubeconfig) as api:
            if api is not None:
                redact.add(await in_thread(partial(list, secrets_of_login(api.login))))
                await _agents(texts, api, name, snapshot)
    cleaned = {
        name: (redact.json if name.endswith(".json") else redact)(text[:_MAX_TEXT])
        for name, text in texts.items()
    }
    await in_thread(partial(_write, path, cleaned))
    return sorted(cleaned)


def versions() -> dict[str, Any]:
    """Return the versions of krelay, Python, the system and the packages in use. Blocks."""
    found: dict[str, Any] = {
        "krelay": __version__,
        "python": sys.version,
        "system": platform.platform(),
        "packages": {},
    }
    for name in _PACKAGES:
        try:
            found["packages"][name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found["packages"][name] = None
    return found


# -- the file and the krelay that runs it ----------------------------------------------------------


def _files(config: Config | None, file: str | None, redact: Redactor) -> dict[str, str]:
    """Return the files of the config without their secrets, by the names in the archive."""
    paths = config.files if config else (file,) if file else ()
    if config is not None:
        redact.add(_secrets_of_config(config))
    found = {}
    for number, path in enumerate(paths):
        name = f"file/{number}-{os.path.basename(path)}"
        try:
            text = files.read(path).decode("utf-8", "replace")
            found[name], secrets = redacted(text)
            redact.add(secrets)
            # A file that is invalid has expanded nothing.
            names = [name for secret in secrets for name in _VARIABLE.findall(secret)]
            redact.add(os.environ[name] for name in names if name in os.environ)
        except (KrelayError, ValueError) as exc:
            found[name] = f"# left out: {exc}\n"
    return found


def _secrets_of_config(config: Config) -> Iterator[str]:
    """Yield the secrets that variables may have brought into the config."""
    for target in config.targets:
        yield from target.credentials or ()
    if config.status.token:
        yield config.status.token


def _running(texts: dict[str, str], file: str) -> dict[str, Any]:
    """Add what the krelay that runs the file says of itself; return its state. Blocks."""
    from krelay.status.client import NotRunningError, ask

    def add(name: str, resource: str, text: Callable[[Any], str], **body: int) -> Any:
        try:
            answer = ask(file, "GET", resource, body, timeout=_ANSWER_DEADLINE)
            texts[f"running/{name}"] = text(answer)
        except NotRunningError:
            return {}
        except (KrelayError, LookupError, TypeError) as exc:
            texts[f"running/{name}"] = f"left out: {exc}\n"
            return {}
        return answer

    add("log.txt", "/v1/logs", lambda answer: _lines(answer["lines"]), lines=_LOG_LINES)
    add("tasks.txt", "/v1/tasks", lambda answer: answer["text"])
    found: dict[str, Any] = add("status.json", "/v1/status", dumped)
    return found


def _lines(lines: Any) -> str:
    return "".join(f"{line['text']}\n" for line in lines)


# -- its agents ------------------------------------------------------------------------------------


@asynccontextmanager
async def _api(context: str | None, kubeconfig: str | None) -> AsyncIterator[Api | None]:
    from krelay.cluster.api import Api

    try:
        api = await Api.connect(context=context, kubeconfig=kubeconfig)
    except ClusterError:
        yield None  # the report says so
        return
    async with api:
        yield api


async def _agents(
    texts: dict[str, str], api: Api, context: str | None, snapshot: dict[str, Any]
) -> None:
    """Add what the cluster says of the agents of a context."""
    agents = [agent for agent in snapshot.get("agents", ()) if agent.get("context") == context]
    places = [place for agent in agents for place in agent.get("where", ())]
    for place in places[:_MOST_AGENTS]:
        namespace, slash, pod = str(place).partition("/")
        if not slash:
            continue  # an embedded one
        name = f"agents/{namespace}-{pod}"
        for what, ask in (("pod.json", _pod), ("events.json", _events), ("log.txt", _log)):
            try:
                async with asyncio.timeout(_CLUSTER_DEADLINE):
                    texts[f"{name}/{what}"] = await ask(api, namespace, pod)
            except (ClusterError, TimeoutError) as exc:
                texts[f"{name}/{what}"] = f"left out: {exc or 'no answer in time'}\n"


async def _pod(api: Api, namespace: str, pod: str) -> str:
    """Return the pod without the variables of its containers."""
    from krelay.cluster.api import object_path

    found = await api.get(object_path("v1", "pods", namespace, pod))
    spec, metadata = found.get("spec") or {}, found.get("metadata") or {}
    kept = ("nodeName", "priorityClassName", "securityContext", "tolerations", "nodeSelector")
    shown = ("name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "labels")
    return dumped(
        {
            "metadata": {key: metadata[key] for key in shown if key in metadata},
            "spec": {key: spec[key] for key in kept if key in spec},
            "containers": [
                {key: container.get(key) for key in ("name", "image", "resources")}
                for container in spec.get("containers") or ()
            ],
            "status": found.get("status"),
        }
    )


async def _events(api: Api, namespace: str, pod: str) -> str:
    from krelay.cluster.api import collection

    selector = f"involvedObject.name={pod}"
    found = await api.get(collection("v1", "events", namespace), fieldSelector=selector)
    shown = ("type", "reason", "message", "count", "firstTimestamp", "lastTimestamp")
    items = found.get("items") or ()
    return dumped([{key: item.get(key) for key in shown} for item in items])


async def _log(api: Api, namespace: str, pod: str) -> str:
    from krelay.cluster.api import object_path

    path = object_path("v1", "pods", namespace, pod, "log")
    kept: list[bytes] = []
    async with api.stream(path, total=_CLUSTER_DEADLINE, tailLines=str(_POD_LINES)) as lines:
        async for batch in lines:
            kept += batch
    return b"\n".join(kept[:_POD_LINES]).decode("utf-8", "replace")


# -- the archive -----------------------------------------------------------------------------------


def _write(path: Path, texts: dict[str, str]) -> None:
    try:
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(number, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, text in sorted(texts.items()):
                data = text.encode(errors="replace")
                member = tarfile.TarInfo(f"{FOLDER}/{name}")
                member.size, member.mtime, member.mode = len(data), time.time(), 0o600
                archive.addfile(member, io.BytesIO(data))
    except FileExistsError:
        raise UsageError(f"{path} exists", hint="choose another name for the bundle") from None
    except OSError as exc:
        raise files.unwritable(path, exc) from exc
