"""Api: requests to the API server of one context, in JSON.

Every request has a deadline, renews credentials that the server rejects (once), and is repeated
when the server is overloaded or restarts. When kubeconfig names another server, what waits for the
former one is ended, and sent to the new one if that is safe.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote

import aiohttp

from krelay import typed
from krelay.cluster import http
from krelay.cluster.api_errors import StatusError
from krelay.cluster.auth.credentials import Credentials, LoginChange
from krelay.cluster.auth.kubeconfig import NO_OVERRIDES, Login, Overrides, PinnedContext
from krelay.errors import (
    AccessDeniedError,
    ClusterError,
    CredentialsError,
    MalformedError,
    UnreachableError,
)
from krelay.net.api_access import ApiAccess

logger = logging.getLogger("krelay.cluster")

Lines = AsyncIterator[list[bytes]]
"""Lines without their line ends, in batches as they arrive."""

REQUEST_DEADLINE = 30.0
MAX_LINE = 4 << 20  # bytes of one event of a watch; etcd takes objects of 1.5 MiB
_ATTEMPTS = 4
_PASSING = (429, 500, 502, 503, 504)


def collection(api_version: str, resource: str, namespace: str | None = None) -> str:
    """Return the path of `resource` (as `deployments`) in `namespace`, or in all if it is None."""
    root = "/api/v1" if api_version == "v1" else f"/apis/{api_version}"
    inside = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
    return f"{root}{inside}/{resource}"


def object_path(
    api_version: str, resource: str, namespace: str | None, name: str, subresource: str = ""
) -> str:
    """Return the path of one object, or of its `subresource` (`portforward`, `log`)."""
    path = f"{collection(api_version, resource, namespace)}/{quote(name, safe='')}"
    return f"{path}/{subresource}" if subresource else path


class Api:
    """The API server of one context; `connect` creates it."""

    def __init__(self, credentials: Credentials, deadline: float = REQUEST_DEADLINE) -> None:
        self.health = WatchHealth()
        self.changes = 0
        """How often another kubeconfig was adopted."""
        self.moves = 0
        """How often that led to another server, or by another way to it."""
        self.date: tuple[str, float] | None = None
        """The Date of the latest answer, and when it came by this machine's clock (Unix time)."""
        self.on_change: Callable[[LoginChange], None] = lambda change: None
        """Called when another kubeconfig was adopted."""
        self._changed = asyncio.Event()
        self._waits: dict[asyncio.Timeout, bool] = {}
        self._credentials = credentials
        credentials.on_change = self._adopted
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
        """Read kubeconfig, or the pod's service account; send nothing to the server yet.

        The context and its namespace stay those of this moment.

        Raises:
            CredentialsError: no such context, or no kubeconfig at all.
        """
        credentials = Credentials(PinnedContext(context, kubeconfig, overrides))
        await credentials.open()
        return cls(credentials, overrides.request_timeout or REQUEST_DEADLINE)

    @property
    def login(self) -> Login:
        """The server, the user and the context, as last read from kubeconfig."""
        return self._credentials.login

    @property
    def namespace(self) -> str:
        """The context's namespace, or `default`; in a pod the pod's own."""
        return self._credentials.login.namespace

    @property
    def where(self) -> str:
        """Context and server, for messages."""
        return str(self._credentials.login)

    async def access(self) -> ApiAccess:
        """Return what a connection needs, with fresh credentials. Raises CredentialsError.

        It has no deadline: a credential plugin may wait for a person.
        """
        while True:
            changes = self.changes
            try:
                async with self._until(math.inf, whatever=True):
                    return await self._credentials.access()
            except TimeoutError:
                if changes == self.changes:
                    raise

    def reject(self, access: ApiAccess) -> None:
        """Renew credentials that the server refused (401) when a tunnel used them."""
        self._credentials.reject(access)

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        """Return an object or a list. Raises any ClusterError."""
        return await self._request("GET", path, query)

    async def create(self, path: str, body: Mapping[str, Any], **query: str) -> dict[str, Any]:
        """Post `body`; return the object as the server created it. Raises any ClusterError."""
        return await self._request("POST", path, query, body)

    async def delete(self, path: str, body: Mapping[str, Any] | None = None, **query: str) -> None:
        """Delete an object; `body` is a DeleteOptions.

        Raises:
            NotFoundError: the object does not exist.
            ClusterError: any other refusal.
        """
        await self._request("DELETE", path, query, body)

    async def reread(self) -> LoginChange | None:
        """Read kubeconfig again; return what has changed. What cannot be used changes nothing."""
        return await self._credentials.reread()

    async def pause(self, seconds: float, changes: int) -> None:
        """Wait between two attempts: no longer than until `self.changes` is not `changes`."""
        if changes == self.changes:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._changed.wait()

    def _adopted(self, change: LoginChange) -> None:
        """End all that waits for the former server or its credentials."""
        self.changes += 1
        self.moves += change.moved
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        for timeout, whatever in self._waits.items():
            if (change.moved or whatever) and not timeout.expired():
                timeout.reschedule(0.0)
        self.on_change(change)

    @asynccontextmanager
    async def _until(self, when: float, *, whatever: bool = False) -> AsyncIterator[None]:
        """Raise TimeoutError at `when`, and as soon as the server is another one; with `whatever`,
        as soon as anything of kubeconfig is another."""
        async with asyncio.timeout_at(when) as timeout:
            self._waits[timeout] = whatever
            try:
                yield
            finally:
                del self._waits[timeout]

    async def aclose(self) -> None:
        """Close every connection."""
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
        """Open a watch (or a log) and yield its lines.

        `silence` and `total` are deadlines in seconds for one batch and for the whole. Either one
        ends the iteration, as the server may. Raises any ClusterError.
        """
        until = asyncio.get_running_loop().time() + (total or math.inf)
        try:
            response, access = await self._open("GET", path, query, None)
        except StatusError as exc:
            raise exc.to_cluster_error(self.where) from exc
        try:
            http.keep_alive(response)
            async with aclosing(self._read_lines(response, access, silence, until)) as lines:
                yield lines
        finally:
            response.close()

    async def _read_lines(
        self, response: aiohttp.ClientResponse, access: ApiAccess, silence: float, until: float
    ) -> AsyncGenerator[list[bytes]]:
        loop = asyncio.get_running_loop()
        rest = bytearray()
        while True:
            try:
                with http.translated_errors(access, self.where):
                    async with self._until(min(loop.time() + silence, until)):
                        chunk = await response.content.readany()
            except UnreachableError as exc:
                if isinstance(exc.__cause__, TimeoutError):
                    return  # a silent server may be healthy; the next request finds out
                raise
            rest += chunk
            if not chunk:
                if rest:
                    yield [bytes(rest)]
                return
            if b"\n" in chunk:
                *lines, tail = bytes(rest).split(b"\n")
                rest = bytearray(tail)
                yield lines
            elif len(rest) > MAX_LINE:
                raise ClusterError(f"a line of more than {MAX_LINE} bytes ({self.where})")

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
        wait: float | None
        while True:
            attempt += 1
            changes, moves = self.changes, self.moves
            try:
                response, access = await self._open(method, path, query, data)
                with http.translated_errors(access, self.where):
                    async with self._until(loop.time() + self._deadline), response:
                        return _parse_object(
                            await http.read_body(response, http.MAX_BODY), self.where
                        )
            except (UnreachableError, CredentialsError):
                # A former server may have executed a POST, so krelay does not repeat it.
                if moves == self.moves or method == "POST":
                    raise
                wait = 0.0
            except StatusError as exc:
                wait = exc.retry_after
                if wait is None:
                    wait = random.uniform(0, 0.5 * 2**attempt)
                # After a 429 the server has done nothing. After any other error it may have, so
                # a POST is not repeated.
                again = exc.code == 429 or (exc.code in _PASSING and method != "POST")
                if not again or attempt == _ATTEMPTS or loop.time() + wait >= until:
                    raise exc.to_cluster_error(self.where) from exc
                logger.debug("%s %s: %s, again in %.1f s", method, path, exc.code, wait)
            await self.pause(wait, changes)

    async def _open(
        self, method: str, path: str, query: dict[str, str], data: bytes | None
    ) -> tuple[aiohttp.ClientResponse, ApiAccess]:
        """Send a request, with new credentials if the old ones are refused; return a success.
        Raises StatusError for any other answer."""
        renewed = False
        while True:
            access = await self.access()
            try:
                with http.translated_errors(access, self.where):
                    async with self._until(asyncio.get_running_loop().time() + self._deadline):
                        response = await http.send(
                            self._session(access), access, method, path, query=query, data=data
                        )
                        if date := response.headers.get("Date"):
                            self.date = date, time.time()
                        if 200 <= response.status < 300:
                            return response, access
                        async with response:
                            error = StatusError(
                                response.status,
                                await http.read_body(response, http.MAX_ERROR, truncate=True),
                                _seconds(response.headers.get("Retry-After")),
                            )
            except CredentialsError as exc:
                if http.is_wrong_signature(exc) and self._credentials.reorder_authorities(access):
                    continue
                raise
            if error.code == 401:
                self._credentials.reject(access)
            if error.code != 401 or renewed:
                raise error
            renewed = True

    def _session(self, access: ApiAccess) -> aiohttp.ClientSession:
        socks = http.socks_proxy(access)
        if socks not in self._sessions:
            self._sessions[socks] = http.session(socks)
        return self._sessions[socks]


def _parse_object(body: bytes, where: str) -> dict[str, Any]:
    try:
        return typed.MapOf(typed.AnyValue()).read(typed.parse(body))
    except typed.Mismatch as exc:
        raise MalformedError(
            f"the answer is not a JSON object ({where}): {exc}",
            hint="is that an API server, or a web page?",
        ) from exc


def _seconds(retry_after: str | None) -> float | None:
    """Parse Retry-After in seconds (RFC 9110, section 10.2.3); API servers send no dates."""
    return float(retry_after) if retry_after and retry_after.isdecimal() else None


class WatchHealth:
    """Log when the watches of a context lose their API server, and when they are back.

    A lost API server is one event, however many watches see it: the log has one line when the
    first of them fails, and one when the last of them is back.
    """

    def __init__(self) -> None:
        self._failing: dict[Watch, str] = {}

    @contextmanager
    def watch(self, path: str) -> Iterator[Watch]:
        """Register a watch of the collection at `path` for the time of the block."""
        watch = Watch(self._failing, path)
        try:
            yield watch
        finally:
            self._failing.pop(watch, None)


@dataclass(frozen=True, eq=False, slots=True)
class Watch:
    """One watch: reports its failures and recoveries."""

    _failing: dict[Watch, str]
    _path: str

    def failed(self, error: ClusterError, *, first: bool = False) -> None:
        """Report that the watch cannot be opened, or broke.

        The `first` contact has nothing to lose: who waits for it has the error.
        """
        # A missing right concerns one collection, any other error the whole server.
        scope = self._path if isinstance(error, AccessDeniedError) else ""
        known = self in self._failing or scope in self._failing.values()
        level = logging.DEBUG if known else logging.INFO if first else logging.WARNING
        what = scope or "the API server"
        if first:
            logger.log(level, "no contact with %s yet: %s", what, error)
        else:
            logger.log(level, "lost contact with %s, keeping the last known state: %s", what, error)
        self._failing[self] = scope

    def recovered(self) -> None:
        """Report that the watch is open."""
        scope = self._failing.pop(self, None)
        if scope is not None and scope not in self._failing.values():
            logger.info("regained contact with %s", scope or "the API server")
