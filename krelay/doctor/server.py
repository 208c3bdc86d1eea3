"""The API server: how it is reached and how fast, its version, its clock, and who asks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from krelay.cluster import proxies
from krelay.cluster.auth.files import read_pem
from krelay.cluster.auth.identity import tls_context
from krelay.cluster.auth.kubeconfig import Login
from krelay.doctor.finding import Finding, ok, warning
from krelay.errors import AccessDeniedError, NotFoundError
from krelay.net.api_access import ApiAccess
from krelay.net.dial import dial
from krelay.net.dns import lookup
from krelay.net.handshake_stream import HandshakeStream
from krelay.text import one_line
from krelay.transport.connect import connect, connect_errors, host_and_port
from krelay.transport.http import Exchange

if TYPE_CHECKING:
    from krelay.cluster.api import Api

ROUND_TRIPS = 5
SLOW = 0.3
"""Seconds of a round trip from which on a terminal feels it."""
SKEW = 30.0
"""Seconds by which clocks may differ: tokens are renewed a minute before they end."""
OLDEST = (1, 23)
"""The first Kubernetes that deletes finished Jobs by itself."""


@dataclass(slots=True)
class Reached:
    """How the API server was reached. Times are in seconds.

    `steps` has the time of each step of the connection, `trips` those of requests on it. `skew` is
    how far this machine's clock is ahead of the server's, None if the server named no time.
    `status` is that of its answer to `/version`, and `body` the answer.
    """

    steps: dict[str, float] = field(default_factory=dict)
    trips: list[float] = field(default_factory=list)
    skew: float | None = None
    status: int = 0
    body: bytes = b""

    @property
    def round_trip(self) -> float:
        """The median time of a request on an open connection."""
        return sorted(self.trips)[len(self.trips) // 2]


async def reach(access: ApiAccess) -> Reached:
    """Connect to an API server, and send some requests on one connection.

    Raises:
        UnreachableError, CredentialsError, ClusterError: as `krelay.transport.connect.connect`.
    """
    found = Reached()
    stream = await _connect(access, found)
    try:
        with connect_errors(access):
            await _request(stream, access, found)
            with contextlib.suppress(EOFError, OSError):  # a server may end it after an answer
                for _ in range(ROUND_TRIPS - 1):
                    await _request(stream, access, found)
    finally:
        stream.abort()
    return found


async def _connect(access: ApiAccess, found: Reached) -> HandshakeStream:
    clock = asyncio.get_running_loop().time
    server = urlsplit(access.url)
    host, port = host_and_port(server)
    start = clock()
    if access.proxy is not None:
        stream = await connect(access)
        found.steps["proxy"] = clock() - start
        return stream
    with connect_errors(access):
        addresses = await lookup(host)
        if host not in {address for _, address in addresses}:
            found.steps["DNS"] = clock() - start
        stream = await _dial(addresses, port, found)
        if server.scheme == "https":
            start = clock()
            assert access.ssl is not None
            try:
                await stream.start_tls(access.ssl, access.server_hostname or host)
            except BaseException:
                stream.abort()
                raise
            found.steps["TLS"] = clock() - start
    return stream


async def _dial(addresses: list[tuple[int, str]], port: int, found: Reached) -> HandshakeStream:
    """Connect to the first address that accepts; the deadline is the check's."""
    clock = asyncio.get_running_loop().time
    failure: OSError | None = None
    for _, address in addresses:
        start = clock()
        try:
            async with asyncio.timeout(_ADDRESS_DEADLINE):
                _, stream = await dial(HandshakeStream, address, port)
        except OSError as exc:  # TimeoutError too
            failure = exc
        else:
            found.steps["TCP"] = clock() - start
            return stream
    raise failure or OSError("no address")


_ADDRESS_DEADLINE = 3.0


async def _request(stream: HandshakeStream, access: ApiAccess, found: Reached) -> None:
    clock = asyncio.get_running_loop().time
    server = urlsplit(access.url)
    headers = [("Host", server.netloc.rpartition("@")[2]), *access.headers]
    start, sent = clock(), time.time()
    exchange = Exchange(stream, "GET", f"{server.path}/version", headers)
    found.status, answer = await exchange.read_head()
    found.trips.append(clock() - start)
    found.body = await exchange.read_body()
    date = next((value for name, value in answer if name == "date"), "")
    found.skew = skew(date, sent, time.time())


def skew(date: str, sent: float, received: float) -> float | None:
    """Return how far this machine is ahead of a server whose answer has this Date, in seconds;
    None if it is no date. The times are Unix times of this machine."""
    try:
        server = parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    # The date has whole seconds: it was between `server` and a second later.
    return max(0.0, sent - server - 1) + min(0.0, received - server)


def anonymous(login: Login) -> ApiAccess:
    """Return the access to a server without credentials. Blocks. Raises CredentialsError."""
    verify = not login.cluster.get("insecure-skip-tls-verify")
    secure = urlsplit(login.server).scheme == "https"
    authority = read_pem(login.cluster, "certificate-authority") if secure else None
    return ApiAccess(
        url=login.server,
        ssl=tls_context(authority, None, verify=verify) if secure else None,
        server_hostname=login.cluster.get("tls-server-name") or None,
        headers=(),
        proxy=proxies.from_kubeconfig(login.cluster.get("proxy-url"))
        or proxies.from_environment(login.server),
    )


# -- findings --------------------------------------------------------------------------------------


def speed(found: Reached) -> Finding:
    """Say how the server was reached and how fast."""
    first, trip = found.trips[0], found.round_trip
    times = {**found.steps, "first answer": first}
    steps = ", ".join(f"{name} {_ms(seconds)}" for name, seconds in times.items())
    text = f"reached: {steps}; round trip {_ms(trip)}"
    details: dict[str, Any] = {
        "round_trip_ms": round(trip * 1000, 1),
        **{f"{name.replace(' ', '_').lower()}_ms": round(t * 1000, 1) for name, t in times.items()},
    }
    if trip > SLOW:
        hint = "far away, or behind a slow VPN or proxy: each new connection waits this long"
        return warning("server", text, hint, **details)
    return ok("server", text, **details)


def version(found: Reached) -> Finding:
    """Say which Kubernetes this is."""
    try:
        body = json.loads(found.body)
        name = one_line(body["gitVersion"], 100)
    except (ValueError, TypeError, KeyError, RecursionError):
        return ok("version", f"the server does not state its version ({found.status})")
    parts = re.match(r"v(\d+)\.(\d+)", name)
    number = (int(parts[1]), int(parts[2])) if parts else OLDEST
    if number < OLDEST:
        hint = f"krelay needs {OLDEST[0]}.{OLDEST[1]} or later"
        return warning("version", f"Kubernetes {name}", hint, kubernetes=name)
    return ok("version", f"Kubernetes {name}", kubernetes=name)


def clock(ahead: float | None) -> Finding:
    """Judge the clock of this machine, which is so many seconds `ahead` of the server's."""
    if ahead is None:
        return ok("clock", "the server does not say the time")
    seconds = round(ahead)
    if abs(ahead) < SKEW:
        return ok("clock", "agrees with the server's", skew_seconds=seconds)
    return warning(
        "clock",
        f"this machine is {abs(seconds)} s {'ahead of' if seconds > 0 else 'behind'} the server",
        "set the clock (NTP): certificates and tokens end at the wrong time",
        skew_seconds=seconds,
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"


# -- who asks --------------------------------------------------------------------------------------

_REVIEWS = ("authentication.k8s.io/v1", "authentication.k8s.io/v1beta1")
ANONYMOUS = "system:anonymous"


async def who(api: Api) -> str | None:
    """Return the name under which the API server knows this user; None if it cannot say.

    Raises:
        ClusterError: the server refuses the credentials, or does not answer.
    """
    for review in _REVIEWS:
        body = {"apiVersion": review, "kind": "SelfSubjectReview"}
        try:
            answer = await api.create(f"/apis/{review}/selfsubjectreviews", body)
        except NotFoundError:
            continue
        except AccessDeniedError as exc:
            return exc.user or None
        info: Any = answer
        for key in ("status", "userInfo", "username"):
            info = info.get(key) if isinstance(info, dict) else None
        return info if isinstance(info, str) and info else None
    return None


def user(name: str | None) -> Finding:
    """Say who the API server takes this user for."""
    if name is None:
        return ok("user", "known to the server, which cannot say by which name")
    if name == ANONYMOUS:
        text = f"{name}: kubeconfig has no credentials that the server takes"
        return warning("user", text, "log in, or set the user of this context", user=name)
    return ok("user", name, user=name)
