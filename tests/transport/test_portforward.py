from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest

from krelay.errors import (
    AccessDeniedError,
    CredentialsError,
    KrelayError,
    PodGoneError,
    TunnelError,
    UnreachableError,
)
from krelay.model import Transport
from krelay.net import dial as net_dial
from krelay.transport import portforward
from krelay.transport.portforward import TransportPreference, open_portforward, transport_from_env
from krelay.transport.upgrade import UnauthorizedError

from .conftest import Peer, Play, Server, Witness, open_pipe, serving

pytestmark = pytest.mark.usefixtures("engine")

AUTO, PROXY, SPDY, WEBSOCKET = Transport


def answer(status: int, body: str | dict[str, Any] = "", *headers: str) -> bytes:
    text = json.dumps({"kind": "Status", **body}) if isinstance(body, dict) else body
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(text)}", *headers]
    return "\r\n".join([*lines, "", text]).encode()


def forbidden(verb: str) -> dict[str, Any]:
    return {
        "reason": "Forbidden",
        "message": f'pods "web-0" is forbidden: User "dev" cannot {verb} resource '
        '"pods/portforward" in API group "" in the namespace "team"',
    }


GONE = {"reason": "NotFound", "message": 'pods "web-0" not found'}


class Gateway:
    """Answers what `post` and `get` say; None plays the echo, b"" hangs up."""

    def __init__(self, server: Server, post: bytes | None = None, get: bytes | None = None) -> None:
        self.server, self.answers = server, {"POST": post, "GET": get}

    async def __call__(self, peer: Peer) -> None:
        said = self.answers[peer.method]
        if said is None:
            await self.server.echo(peer)
        else:
            peer.writer.write(said)
            peer.writer.close()
            await peer.writer.wait_closed()


async def dial(
    server: Server,
    transport: Transport = AUTO,
    *,
    preference: TransportPreference | None = None,
    **changes: Any,
) -> Witness:
    """Opens a pipe, has one byte come back, and closes it."""
    witness = Witness()
    timeout = changes.pop("timeout", 5.0)
    pipe = await open_portforward(
        server.access(**changes),
        namespace="team",
        pod="web-0",
        port=8080,
        protocol=witness,
        transport=transport,
        timeout=timeout,
        preference=preference or TransportPreference(),
    )
    pipe.write(b"x")
    await witness.until(lambda: witness.data == b"x")
    pipe.abort()
    await witness.lost
    return witness


async def refusal(server: Server, play: Play, transport: Transport = AUTO) -> KrelayError:
    server.play = play
    with pytest.raises(KrelayError) as caught:
        await dial(server, transport)
    return caught.value


def methods(server: Server) -> list[str]:
    return [peer.method for peer in server.peers]


async def test_the_request_has_the_pod_and_the_headers_of_its_transport(
    server: Server, transport: Transport
) -> None:
    await dial(server, transport)
    (peer,) = server.peers
    assert peer.target == "/prefix/api/v1/namespaces/team/pods/web-0/portforward"
    headers = peer.headers
    assert ("Host", f"127.0.0.1:{server.port}") in headers
    assert headers[-2:] == [("Authorization", "Bearer t"), ("Impersonate-Group", "a")]
    if transport is SPDY:
        assert peer.method == "POST"
        assert ("X-Stream-Protocol-Version", "portforward.k8s.io") in headers
        assert ("Upgrade", "SPDY/3.1") in headers
    else:
        assert peer.method == "GET"
        assert ("Sec-WebSocket-Protocol", "SPDY/3.1+portforward.k8s.io") in headers


async def test_a_server_on_loopback_needs_no_tls(transport: Transport) -> None:
    async with serving("http") as server:
        await dial(server, transport)


async def test_repeated_headers_are_sent_as_often(server: Server, transport: Transport) -> None:
    groups = (("Impersonate-Group", "a"), ("Impersonate-Group", "b"))
    await dial(server, transport, headers=groups)
    assert server.peers[0].headers[-2:] == list(groups)


async def test_a_header_with_a_line_break_is_refused(server: Server, transport: Transport) -> None:
    with pytest.raises(CredentialsError, match="line break"):
        await dial(server, transport, headers=(("Impersonate-User", "a\r\nX: y"),))
    assert not server.peers


async def test_plain_spdy_is_tried_first(server: Server) -> None:
    await dial(server)
    assert methods(server) == ["POST"]


@pytest.mark.parametrize(
    "said",
    [
        answer(403, forbidden("create")),
        answer(400, "Bad Request"),
        answer(404, "<html>no such page</html>"),
        answer(405),
        answer(502, "<h1>Bad Gateway</h1>"),
        answer(200, "index"),
        answer(101, "", "Upgrade: h2c"),
        b"SSH-2.0-x\r\n\r\n",
        b"",
    ],
)
async def test_a_refused_transport_is_replaced_by_the_other_and_remembered(
    server: Server, said: bytes
) -> None:
    server.play = Gateway(server, post=said)
    preference = TransportPreference()
    await dial(server, preference=preference)
    assert methods(server) == ["POST", "GET"]
    await dial(server, preference=preference)
    assert methods(server) == ["POST", "GET", "GET"]
    server.play = Gateway(server, get=answer(403, forbidden("get")))
    await dial(server, preference=preference)
    await dial(server, preference=preference)
    assert methods(server)[3:] == ["GET", "POST", "POST"]


async def test_a_swallowed_request_is_followed_by_the_other_transport(server: Server) -> None:
    async def play(peer: Peer) -> None:
        await (peer.closed() if peer.method == "POST" else server.echo(peer))

    server.play = play
    await dial(server, timeout=0.5)
    assert methods(server) == ["POST", "GET"]


@pytest.mark.parametrize(("transport", "verb"), [(SPDY, "create"), (WEBSOCKET, "get")])
async def test_a_forbidden_verb_is_named(server: Server, transport: Transport, verb: str) -> None:
    said = answer(403, forbidden(verb))
    error = await refusal(server, Gateway(server, said, said), transport)
    assert isinstance(error, AccessDeniedError)
    assert str(error) == f'cannot {verb} pods/portforward in namespace "team"'
    assert error.hint == "the Role needs the verbs get and create on pods/portforward"
    assert len(server.peers) == 1


async def test_two_forbidden_verbs_are_both_named(server: Server) -> None:
    play = Gateway(server, answer(403, forbidden("create")), answer(403, forbidden("get")))
    error = await refusal(server, play)
    assert isinstance(error, AccessDeniedError)
    assert str(error) == 'cannot get or create pods/portforward in namespace "team"'


async def test_a_forbidden_verb_is_named_although_the_other_transport_fails_otherwise(
    server: Server,
) -> None:
    play = Gateway(server, answer(403, "go away"), answer(502))
    assert str(await refusal(server, play)) == (
        'cannot create pods/portforward in namespace "team": go away'
    )
    play = Gateway(server, answer(405), answer(403, forbidden("get")))
    assert str(await refusal(server, play)) == 'cannot get pods/portforward in namespace "team"'


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (answer(401, {"message": "Unauthorized"}), UnauthorizedError),
        (answer(401), UnauthorizedError),
        (answer(404, GONE), PodGoneError),
        (answer(404, "pod does not exist"), PodGoneError),
        (answer(500, "rpc error: sandbox container is not running"), PodGoneError),
    ],
)
async def test_an_unknown_user_or_pod_is_asked_for_by_one_transport_only(
    server: Server, said: bytes, error: type[KrelayError]
) -> None:
    assert type(await refusal(server, Gateway(server, said, said))) is error
    assert len(server.peers) == 1


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (answer(500, {"message": "error dialing backend"}), "error dialing backend (500)"),
        (answer(502, "<h1>Bad\n Gateway</h1>"), "Bad Gateway (502)"),
        (answer(503), "the answer is empty (503)"),
        pytest.param(
            b"HTTP/1.1 500 X\r\n\r\n" + b"a" * 99_999, "a" * 300 + " (500)", id="a long body"
        ),
        (answer(404, "not here"), "pod team/web-0 is gone: not here"),
        (
            answer(101, "", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Accept: x"),
            "invalid Sec-WebSocket-Accept header: x (a wrong answer)",
        ),
        (b"HTTP/1.1 200\r\n\r\n", "the answer is empty (200)"),
    ],
)
async def test_any_other_response_is_an_error_with_its_words(
    server: Server, said: bytes, shown: str
) -> None:
    error = await refusal(server, Gateway(server, get=said), WEBSOCKET)
    assert isinstance(error, TunnelError)
    assert shown in str(error)


async def test_another_subprotocol_is_refused(server: Server) -> None:
    async def play(peer: Peer) -> None:
        peer.writer = Renaming(peer.writer)  # type: ignore[assignment]
        await server.echo(peer)

    class Renaming:
        def __init__(self, writer: asyncio.StreamWriter) -> None:
            self.writer = writer

        def write(self, data: bytes) -> None:
            self.writer.write(data.replace(b"SPDY/3.1+portforward", b"v4.channel"))

    error = await refusal(server, play, WEBSOCKET)
    assert "another subprotocol (a wrong answer)" in str(error)


async def test_a_server_without_an_answer_is_unreachable_at_the_deadline(
    server: Server, transport: Transport
) -> None:
    async def play(peer: Peer) -> None:
        await peer.closed()

    server.play = play
    with pytest.raises(UnreachableError, match="no answer from the API server .* within 0.05 s"):
        await dial(server, transport, timeout=0.05)
    await server.gone.wait()


async def test_a_connection_closed_without_an_answer_is_unreachable(
    server: Server, transport: Transport
) -> None:
    error = await refusal(server, Gateway(server, b"", b""), transport)
    assert isinstance(error, UnreachableError)
    assert "it closed the connection" in str(error)


@pytest.mark.parametrize("scheme", ["https", "http"])  # within TLS, within the upgrade
async def test_a_request_lost_in_an_outage_is_sent_again_when_it_is_over(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shut = asyncio.Event()
    real = net_dial.dial

    async def look(*args: Any) -> Any:
        try:
            return await real(*args)
        except ConnectionRefusedError:
            shut.set()
            raise

    monkeypatch.setattr(portforward, "PROBE_EVERY", 0.01)
    monkeypatch.setattr(portforward, "dial", look)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        before = Server(scheme)
        before.port = listener.getsockname()[1]
        async with asyncio.TaskGroup() as tasks:
            dialling = tasks.create_task(dial(before, SPDY))
            accepted, _ = await asyncio.get_running_loop().sock_accept(listener)
            with accepted:
                listener.close()
                await shut.wait()
                assert not dialling.done()
                async with serving(scheme, before.port) as server:
                    await dialling
                    assert len(server.peers) == 1


async def test_a_slow_server_that_stays_reachable_is_asked_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portforward, "PROBE_EVERY", 0.1)
    looks, enough = 0, asyncio.Event()
    real = net_dial.dial

    async def look(*args: Any) -> Any:
        nonlocal looks
        looks += 1
        if looks == 3:
            enough.set()
        return await real(*args)

    async def slow(peer: Peer) -> None:
        await enough.wait()
        await server.echo(peer)

    monkeypatch.setattr(portforward, "dial", look)
    server.play = slow
    await dial(server, SPDY)
    assert len(server.peers) == 1


async def test_a_cancelled_request_closes_its_connection(
    server: Server, transport: Transport
) -> None:
    asked = asyncio.Event()

    async def play(peer: Peer) -> None:
        asked.set()
        await peer.closed()

    server.play = play
    with pytest.raises(asyncio.CancelledError):  # noqa: PT012
        async with asyncio.TaskGroup() as group:
            task = group.create_task(dial(server, transport))
            await asked.wait()
            task.cancel()
            await task
    await server.gone.wait()


async def test_a_protocol_that_fails_leaves_no_connection_open(
    server: Server, transport: Transport
) -> None:
    class Failing(Witness):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            raise ZeroDivisionError

    witness = Failing()
    with pytest.raises(ZeroDivisionError):
        await open_portforward(
            server.access(), namespace="n", pod="p", port=1, protocol=witness, transport=transport
        )
    await witness.lost
    await server.gone.wait()


@pytest.mark.parametrize(
    ("configured", "value", "means"),
    [
        (AUTO, None, AUTO),
        (AUTO, "true", AUTO),
        (AUTO, "false", SPDY),
        (AUTO, "False", SPDY),
        (PROXY, None, AUTO),
        (PROXY, "false", SPDY),
        (WEBSOCKET, "false", WEBSOCKET),
        (SPDY, "true", SPDY),
    ],
)
def test_kubectl_s_variable_turns_auto_into_spdy(
    configured: Transport, value: str | None, means: Transport
) -> None:
    environ = {} if value is None else {"KUBECTL_PORT_FORWARD_WEBSOCKETS": value}
    assert transport_from_env(configured, environ) is means


def test_the_preference_remembers_a_limited_number_of_servers() -> None:
    preference = TransportPreference()
    for number in range(TransportPreference.LIMIT + 1):
        preference.worked(f"https://{number}", WEBSOCKET)
    assert preference.order(AUTO, "https://0") == (SPDY, WEBSOCKET)
    assert preference.order(AUTO, "https://1") == (WEBSOCKET, SPDY)
    assert preference.order(SPDY, "https://1") == (SPDY,)


@pytest.mark.parametrize(
    "changes",
    [
        {"url": "http://kube.test:1", "ssl": None},
        {"url": "http://127.0.0.1:1", "ssl": None, "proxy": "http://127.0.0.1:1"},
    ],
    ids=["far", "proxy"],
)
async def test_an_unencrypted_way_to_another_machine_is_refused(
    server: Server, transport: Transport, changes: dict[str, Any]
) -> None:
    with pytest.raises(CredentialsError, match="is not encrypted") as caught:
        await open_pipe(server, transport, **changes)
    assert caught.value.exit_code == 4
    assert not server.peers


async def test_a_localhost_on_another_machine_is_refused(
    monkeypatch: pytest.MonkeyPatch, transport: Transport
) -> None:
    async with serving("http") as server:
        monkeypatch.setattr("krelay.transport.connect.is_loopback", lambda host: False)
        with pytest.raises(CredentialsError, match="is not on this machine"):
            await open_pipe(server, transport, url=f"http://localhost:{server.port}")
