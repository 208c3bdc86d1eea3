"""Api: the third step into the cluster; asks an API server, in plain JSON.

One `Api` a context. Every request has a deadline, renews credentials that the server rejects
(once), and is repeated where the server asks for patience.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self
from urllib.parse import quote

import aiohttp

from krelay import typed
from krelay.cluster import http
from krelay.cluster.api_errors import Refusal
from krelay.cluster.auth.credentials import Credentials
from krelay.cluster.auth.kubeconfig import NO_OVERRIDES, Overrides, load
from krelay.errors import AccessDeniedError, ClusterError, MalformedError, UnreachableError
from krelay.net.api_access import ApiAccess

__all__ = ["Api", "Overrides", "collection", "object_path"]

logger = logging.getLogger("krelay.cluster")

REQUEST_DEADLINE = 30.0
MAX_LINE = 4 << 20
"""Bytes of one event of a watch; etcd takes objects of 1.5 MiB."""
_ATTEMPTS = 4
_PASSING = (429, 500, 502, 503, 504)


def collection(api_version: str, resource: str, namespace: str | None = None) -> str:
    """The path of a collection: `("apps/v1", "deployments", "x")`; None is every namespace."""
    root = "/api/v1" if api_version == "v1" else f"/apis/{api_version}"
    inside = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
    return f"{root}{inside}/{resource}"


def object_path(
    api_version: str, resource: str, namespace: str | None, name: str, subresource: str = ""
) -> str:
    """The path of one object, or of its `subresource` (`portforward`, `log`)."""
    path = f"{collection(api_version, resource, namespace)}/{quote(name, safe='')}"
    return f"{path}/{subresource}" if subresource else path


class Api:
    """The API server of one context; `connect` makes one."""

    def __init__(self, credentials: Credentials, deadline: float = REQUEST_DEADLINE) -> None:
        self.contact = Contact()
        self._credentials = credentials
        self._deadline = deadline
        self._sessions: dict[str | None, aiohttp.ClientSession] = {}

    @classmethod
    async def connect(
        cls,
        *,
        context: str | None = None,
        kubeconfig: str | None = None,
        overrides: Overrides = NO_OVERRIDES,
    ) -> Self:
        """Reads kubeconfig (or the pod's service account); asks the server nothing yet.

        Raises:
            CredentialsError: no such context, or no kubeconfig at all.
        """
        credentials = Credentials(lambda: load(context, kubeconfig, overrides))
        await credentials.open()
        return cls(credentials, overrides.request_timeout or REQUEST_DEADLINE)

    @property
    def context(self) -> str | None:
        return self._credentials.login.context

    @property
    def namespace(self) -> str:
        """The context's namespace, or `default`; in a pod its own."""
        return self._credentials.login.namespace

    @property
    def where(self) -> str:
        """Context and server, for people."""
        return str(self._credentials.login)

    async def access(self) -> ApiAccess:
        """How to open one more connection, a tunnel, with credentials that are fresh now."""
        return await self._credentials.access()

    def reject(self, access: ApiAccess) -> None:
        """A tunnel's request was refused with 401: the next `access` will be another."""
        self._credentials.reject(access)

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        """An object or a list. Raises any ClusterError."""
        return await self._request("GET", path, query)

    async def create(self, path: str, body: Mapping[str, Any], **query: str) -> dict[str, Any]:
        """Posts `body`; the object as the server made it. Raises any ClusterError."""
        return await self._request("POST", path, query, body)

    async def delete(self, path: str, body: Mapping[str, Any] | None = None, **query: str) -> None:
        """Deletes; `body` is a DeleteOptions. Raises any ClusterError, NotFoundError for 404."""
        await self._request("DELETE", path, query, body)

    async def aclose(self) -> None:
        """Closes every connection."""
        for session in self._sessions.values():
            await session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    @asynccontextmanager
    async def stream(
        self, path: str, *, silence: float = 90.0, total: float | None = None, **query: str
    ) -> AsyncIterator[Lines]:
        """The lines of a watch (or a log), as batches of what arrived together.

        `silence` and `total` are deadlines in seconds, for one batch and for all of them; either
        one ends the iteration, as the server may. Raises any ClusterError.
        """
        until = asyncio.get_running_loop().time() + (total or math.inf)
        try:
            response, access = await self._open("GET", path, query, None)
        except Refusal as no:
            raise no.error(self.where) from no
        try:
            http.keep_alive(response)
            yield Lines(response, access, self.where, silence, until)
        finally:
            response.close()

    async def _request(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        data = json.dumps(body).encode() if body is not None else None
        until = loop.time() + self._deadline
        attempt = 0
        while True:
            attempt += 1
            try:
                response, access = await self._open(method, path, query, data)
            except Refusal as no:
                wait = no.after if no.after is not None else random.uniform(0, 0.5 * 2**attempt)
                # A 429 was not even begun; anything else may have been, so only what can be
                # repeated without harm is.
                again = no.status == 429 or (no.status in _PASSING and method != "POST")
                if not again or attempt == _ATTEMPTS or loop.time() + wait >= until:
                    raise no.error(self.where) from no
                logger.debug("%s %s: %s, again in %.1f s", method, path, no.status, wait)
            else:
                with http.translated(access, self.where):
                    async with asyncio.timeout(self._deadline), response:
                        return _object(await http.body(response, http.MAX_BODY), self.where)
            await asyncio.sleep(wait)

    async def _open(
        self, method: str, path: str, query: dict[str, str], data: bytes | None
    ) -> tuple[aiohttp.ClientResponse, ApiAccess]:
        """The head of a success, with new credentials if the old ones are refused.

        Raises:
            Refusal: any other answer.
        """
        renewed = False
        while True:
            # Not part of the deadline: a plugin may be waiting for a person.
            access = await self._credentials.access()
            with http.translated(access, self.where):
                async with asyncio.timeout(self._deadline):
                    response = await http.send(
                        self._session(access), access, method, path, query=query, data=data
                    )
                    if 200 <= response.status < 300:
                        return response, access
                    async with response:
                        no = Refusal(
                            response.status,
                            await http.start_of_body(response, http.MAX_ERROR),
                            _seconds(response.headers.get("Retry-After")),
                        )
            if no.status == 401:
                self._credentials.reject(access)
            if no.status != 401 or renewed:
                raise no
            renewed = True

    def _session(self, access: ApiAccess) -> aiohttp.ClientSession:
        socks = http.socks_of(access)
        if socks not in self._sessions:
            self._sessions[socks] = http.session(socks)
        return self._sessions[socks]


class Lines:
    """The batches of lines of one answer, each without its line end."""

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        access: ApiAccess,
        where: str,
        silence: float,
        until: float,
    ) -> None:
        self._response = response
        self._access = access
        self._where = where
        self._silence = silence
        self._until = until
        self._rest = bytearray()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[bytes]:
        loop = asyncio.get_running_loop()
        while True:
            try:
                with http.translated(self._access, self._where):
                    async with asyncio.timeout_at(min(loop.time() + self._silence, self._until)):
                        chunk = await self._response.content.readany()
            except UnreachableError as exc:
                if isinstance(exc.__cause__, TimeoutError):
                    # Nobody promised to say anything: whoever asks anew learns who is there.
                    raise StopAsyncIteration from exc
                raise
            self._rest += chunk
            if not chunk:
                last, self._rest = bytes(self._rest), bytearray()
                if not last:
                    raise StopAsyncIteration
                return [last]
            if b"\n" in chunk:
                *lines, rest = bytes(self._rest).split(b"\n")
                self._rest = bytearray(rest)
                return lines
            if len(self._rest) > MAX_LINE:
                raise ClusterError(f"a line of more than {MAX_LINE} bytes ({self._where})")


def _object(body: bytes, where: str) -> dict[str, Any]:
    try:
        found = typed.parse(body)
    except typed.Mismatch as exc:
        raise MalformedError(
            f"the answer is no JSON object ({where}): {exc}",
            hint="is that an API server, or a web page?",
        ) from exc
    if not isinstance(found, dict):
        raise MalformedError(
            f"the answer is no JSON object ({where})", hint="is that an API server, or a web page?"
        )
    return found


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After in its form of seconds, the only one that API servers use (RFC 9110)."""
    return float(retry_after) if retry_after and retry_after.isdecimal() else None


class Contact:
    """Shared by the watches of a context; each takes part from `watching` on."""

    def __init__(self) -> None:
        self._lost: dict[Watching, str] = {}

    @contextmanager
    def watching(self, path: str) -> Iterator[Watching]:
        """Take part for as long as the block lasts; `path` is what is watched."""
        watch = Watching(self, path)
        try:
            yield watch
        finally:
            self._lost.pop(watch, None)

    def lost(self, watch: Watching, why: ClusterError) -> None:
        """Log the first loss; the others of the same kind are details."""
        # A missing right concerns one collection, everything else the server.
        scope = watch.path if isinstance(why, AccessDeniedError) else ""
        level = logging.DEBUG if self._known(watch, scope) else logging.WARNING
        what = scope or "the API server"
        logger.log(level, "out of touch with %s, the last known state stays: %s", what, why)
        self._lost[watch] = scope

    def good(self, watch: Watching) -> None:
        """Log that all is well again when the last watch that was lost is back."""
        scope = self._lost.pop(watch, None)
        if scope is not None and scope not in self._lost.values():
            logger.info("in touch with %s again", scope or "the API server")

    def _known(self, watch: Watching, scope: str) -> bool:
        return watch in self._lost or scope in self._lost.values()


class Watching:
    """One watch's part in a `Contact`."""

    def __init__(self, contact: Contact, path: str) -> None:
        self.path = path
        self._contact = contact

    def lost(self, why: ClusterError) -> None:
        """Report that the watch cannot learn anything now, and why."""
        self._contact.lost(self, why)

    def good(self) -> None:
        """Report that the watch is open."""
        self._contact.good(self)
