"""Jobs: each Job that krelay has posted and not yet seen deleted, so that none is left unnoticed.

krelay chooses a Job's name rather than the API server (`generateName`): whatever becomes of a
request to create one, the Job can be deleted, or at least named.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from krelay.cluster.api import Api, collection, object_path
from krelay.cluster.api_errors import Refusal
from krelay.cluster.objects import MADE, read_object
from krelay.errors import ClusterError, CredentialsError, NotFoundError, UnreachableError
from krelay.tasks import shield_cleanup

logger = logging.getLogger("krelay.jobs")

CREATE_PATIENCE = 3.0
"""Seconds that the API server gets to confirm a Job's creation after a cancellation."""
DELETE_DEADLINE = 5.0
"""Seconds that the deletion of a Job may take."""

_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
"""Of k8s.io/apimachinery/pkg/util/rand: it spells no words."""
_SUFFIX = 8
_MAX_NAME = 63
"""The Job's name is the value of a label of its pod (RFC 1123 label)."""

_BACKGROUND = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
"""Without it the pod would stay: over REST a Job orphans its own (pkg/registry/batch/job)."""


@dataclass(slots=True)
class _Posted:
    ours: bool
    """Whether krelay chose the name. A name that a patch chose may be another program's Job."""
    answered: bool = False
    """Whether the API server said what became of the request to create it."""


class PostedJobs:
    """Creates and deletes Jobs, and knows which of them may still exist."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self._posted: dict[tuple[str, str], _Posted] = {}

    @property
    def left(self) -> tuple[str, ...]:
        """`NAMESPACE/NAME` of each Job that may still exist."""
        return tuple(f"{namespace}/{name}" for namespace, name in self._posted)

    async def create(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Post `manifest`, whose `metadata` has a namespace and either a `name` or a
        `generateName`; return the Job as the API server made it.

        If this raises or is cancelled, the Job is deleted first, or stays in `left`.

        Raises:
            ClusterError: the Job could not be created, or the API server did not answer.
        """
        body = copy.deepcopy(dict(manifest))
        metadata = body["metadata"]
        prefix = metadata.pop("generateName", "")
        posted = _Posted(ours="name" not in metadata)
        if posted.ours:
            metadata["name"] = prefix[: _MAX_NAME - _SUFFIX] + _suffix()
        key = metadata["namespace"], metadata["name"]
        made: list[dict[str, Any]] = []

        async def post() -> None:
            try:
                path = collection("batch/v1", "jobs", key[0])
                made.append(read_object(MADE, await self.api.create(path, body), path))
            except ClusterError as exc:
                posted.answered = isinstance(exc.__cause__, Refusal)
                if _certainly_not_made(exc):
                    del self._posted[key]
                raise
            posted.answered = True

        self._posted[key] = posted
        try:
            # The API server may carry out a request whose answer never arrives.
            await shield_cleanup(post(), within=CREATE_PATIENCE)
        except BaseException:
            await shield_cleanup(self.discard(*key))
            raise
        return made[0]

    async def delete(self, namespace: str, name: str) -> None:
        """Delete a Job; its pod follows. It may be gone already.

        Raises:
            ClusterError: it could not be deleted, and stays in `left`.
        """
        posted = self._posted.setdefault((namespace, name), _Posted(ours=True, answered=True))
        try:
            async with asyncio.timeout(DELETE_DEADLINE):
                await self.api.delete(object_path("batch/v1", "jobs", namespace, name), _BACKGROUND)
        except NotFoundError:
            logger.debug("the Job %s/%s was gone already", namespace, name)
            if not posted.answered:
                return  # the API server may yet create it
        except TimeoutError as exc:
            raise UnreachableError(
                f"no answer to the deletion of {namespace}/{name} within {DELETE_DEADLINE:g} s",
                hint="the agent ends by itself when idle, and its Job soon after",
            ) from exc
        self._posted.pop((namespace, name), None)

    async def discard(self, namespace: str, name: str) -> ClusterError | None:
        """Delete a Job that may exist; return why it could not be deleted, if so."""
        posted = self._posted.get((namespace, name))
        if posted is None or not (posted.ours or posted.answered):
            return None
        try:
            await self.delete(namespace, name)
        except ClusterError as exc:
            logger.debug("the Job %s/%s is not deleted yet: %s", namespace, name, exc)
            return exc
        return None

    async def clear(self) -> None:
        """Delete each Job in `left`, and name those that could not be deleted."""
        why: ClusterError | None = None
        try:
            for namespace, name in list(self._posted):
                why = await self.discard(namespace, name) or why
        finally:
            left, self._posted = self._posted, {}
            for (namespace, name), posted in left.items():
                logger.warning(
                    "the Job %s/%s may be left behind (%s); it ends by itself when idle",
                    namespace,
                    name,
                    (why or "interrupted") if posted.answered else "its creation had no answer",
                )


def _suffix() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(_SUFFIX))


def _certainly_not_made(exc: ClusterError) -> bool:
    """Whether the request was refused, or never sent."""
    cause = exc.__cause__
    if isinstance(cause, Refusal):
        return cause.status < 500 and cause.status != 408
    return isinstance(exc, CredentialsError) or isinstance(cause, aiohttp.ClientConnectorError)
