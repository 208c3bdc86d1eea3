"""Exec plugins: credentials from a program that kubeconfig names.

As client-go plugin/pkg/client/auth/exec/exec.go; kubernetes.io, "client-go credential plugins".
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import math
import os
import sys
from collections.abc import Mapping
from typing import Any

from krelay import typed
from krelay.cluster.auth.files import read_pem
from krelay.cluster.auth.go_yaml import NotYamlError, read_yaml
from krelay.cluster.auth.identity import Identity, ahead, bearer, join_pair
from krelay.errors import CredentialsError, UnreachableError
from krelay.processes import end
from krelay.tasks import TaskGroup
from krelay.threads import in_thread
from krelay.typed import Shape, String, Timestamp, Token, fields

logger = logging.getLogger("krelay.cluster")

DEADLINE = 180.0  # seconds; a plugin may wait for a person in a browser
PATIENCE = 5.0  # seconds after which the log says that krelay waits for a plugin
MAX_OUTPUT = 1 << 20
_MAX_VALUES = 10_000
_KIND = "ExecCredential"
_STATUS = Shape(
    fields(String(), "token", "clientCertificateData", "clientKeyData")
    | {"expirationTimestamp": Timestamp()}
)
_EXEC_CREDENTIAL = Shape(
    {"apiVersion": Token(), "kind": Token(), "status": _STATUS},
    needs=("apiVersion", "status"),
)
_SHOWN = 2000  # characters of the plugin's stderr that an error repeats
_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
_CLUSTER_KEYS = (
    "server",
    "tls-server-name",
    "insecure-skip-tls-verify",
    "proxy-url",
    "disable-compression",
)
EXTENSION = "client.authentication.k8s.io/exec"


class ExecPlugin:
    """A source of identities: the program of `plugin`, the user's `exec` in kubeconfig."""

    def __init__(self, plugin: Mapping[str, Any], cluster: Mapping[str, Any]) -> None:
        self._plugin = plugin
        self._cluster = cluster
        if plugin["apiVersion"] not in _VERSIONS:
            raise CredentialsError(
                f'kubeconfig: the apiVersion of exec is "{plugin["apiVersion"]}"',
                hint=f"update the plugin; krelay and kubectl know {' and '.join(_VERSIONS)}",
            )
        self._name = os.path.basename(plugin["command"])

    async def fetch(self, *, rejected: bool) -> Identity:
        """Run the program; return what it answers. Raises CredentialsError."""
        interactive = self._interactive()
        info = await in_thread(lambda: self._exec_info(interactive), UnreachableError)
        return self._read(await self._run(info, interactive))

    def _interactive(self) -> bool:
        mode = self._plugin.get("interactiveMode") or "IfAvailable"
        if mode == "Never":
            return False
        terminal = sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()
        if mode == "Always" and not terminal:
            raise CredentialsError(
                f"{self._name} needs your input, and standard input is not a terminal",
                hint="log in with kubectl first, or run krelay in a terminal",
            )
        return terminal

    def _exec_info(self, interactive: bool) -> str:
        spec: dict[str, Any] = {"interactive": interactive}
        if self._plugin.get("provideClusterInfo"):
            known = {key: self._cluster[key] for key in _CLUSTER_KEYS if self._cluster.get(key)}
            if (ca := read_pem(self._cluster, "certificate-authority")) is not None:
                known["certificate-authority-data"] = base64.b64encode(ca).decode()
            known["config"] = self._cluster.get("extensions", {}).get(EXTENSION)
            spec["cluster"] = known
        return json.dumps({"kind": _KIND, "apiVersion": self._plugin["apiVersion"], "spec": spec})

    async def _run(self, info: str, interactive: bool) -> bytes:
        environment = dict(os.environ)
        for item in self._plugin.get("env", ()):
            environment[item["name"]] = item.get("value", "")
        environment["KUBERNETES_EXEC_INFO"] = info
        pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        try:
            process = await asyncio.create_subprocess_exec(
                self._plugin["command"],
                *self._plugin.get("args", ()),
                env=environment,
                stdin=None if interactive else null,
                stdout=pipe,
                stderr=None if interactive and _stderr_is_free() else pipe,
            )
        except OSError as exc:
            raise CredentialsError(
                f"cannot run the credential plugin {self._plugin['command']}: {exc.strerror}",
                hint=self._plugin.get("installHint", "").strip() or None,
            ) from exc
        reminder = asyncio.get_running_loop().call_later(
            PATIENCE, logger.warning, "waiting for the credential plugin %s", self._name
        )
        try:
            async with asyncio.timeout(DEADLINE):
                async with TaskGroup() as group:
                    output = group.create_task(_read_all(process.stdout))
                    stderr = group.create_task(self._log_stderr(process.stderr))
                code = await process.wait()
        except TimeoutError as exc:
            raise CredentialsError(f"{self._name} gave no answer in {DEADLINE:.0f} s") from exc
        finally:
            reminder.cancel()
            await end(process)
        if code != 0:
            said = stderr.result()
            raise CredentialsError(
                f"{self._name} failed with status {code}" + (f": {said}" if said else ""),
                hint="log in again; kubectl runs the same plugin",
            )
        return output.result()

    async def _log_stderr(self, stream: asyncio.StreamReader | None) -> str:
        """Log the plugin's stderr as it comes; return the end of it on one line."""
        said = ""
        while stream is not None and (chunk := await stream.read(1 << 16)):
            text = chunk.decode("utf-8", "replace")
            for line in text.splitlines():
                if line.strip():
                    logger.info("%s: %s", self._name, line.rstrip())
            said = (said + text)[-_SHOWN:]
        return " ".join(said.split())

    def _read(self, output: bytes) -> Identity:
        source = f"{self._name} did not answer with an ExecCredential"
        try:
            # client-go takes what begins as JSON for nothing else.
            json_text = output.lstrip().startswith(b"{")
            document = typed.parse(output, values=_MAX_VALUES) if json_text else read_yaml(output)
        except (typed.Mismatch, NotYamlError) as exc:
            raise CredentialsError(f"{source}: {exc}") from None
        answer = typed.read(_EXEC_CREDENTIAL, document, source, error=CredentialsError)
        if answer.get("kind", _KIND) != _KIND:
            raise CredentialsError(f"{source}, but with the kind {answer['kind']}")
        version, status = answer["apiVersion"], answer["status"]
        token, until = status.get("token"), status.get("expirationTimestamp", math.inf)
        pair = status.get("clientCertificateData"), status.get("clientKeyData")
        if version != self._plugin["apiVersion"]:
            raise CredentialsError(
                f"{self._name} answered in {version}, but kubeconfig requires "
                f"{self._plugin['apiVersion']}"
            )
        if bool(pair[0]) != bool(pair[1]) or not (token or pair[0]):
            raise CredentialsError(
                f"{self._name} gave neither a token nor a certificate with its key"
            )
        return Identity(
            authorization=bearer(token) if token else None,
            certificate=join_pair(pair[0].encode(), pair[1].encode()) if pair[0] else None,
            expires=ahead(until),
        )


def _stderr_is_free() -> bool:
    """Whether a plugin may write to stderr itself: no JSON log or live table is there."""
    handlers = logging.getLogger().handlers
    in_json = any(getattr(handler.formatter, "for_programs", False) for handler in handlers)
    painted = any(getattr(handler, "paints", False) for handler in handlers)
    return sys.stderr is not None and sys.stderr.isatty() and not in_json and not painted


async def _read_all(stream: asyncio.StreamReader | None) -> bytes:
    """Read to the end; return the first MAX_OUTPUT bytes."""
    kept = bytearray()
    while stream is not None and (chunk := await stream.read(1 << 16)):
        kept += chunk[: MAX_OUTPUT - len(kept)]
    return bytes(kept)
