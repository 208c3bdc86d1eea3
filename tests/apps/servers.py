"""Servers in Python: gRPC, HTTP/2, WebSocket, server-sent events and QUIC. Runs in a pod."""

# mypy: ignore-errors

from __future__ import annotations

import asyncio
import datetime
import pathlib

import grpc
import hypercorn.asyncio
import hypercorn.config
import websockets.asyncio.server
from aioquic.asyncio import QuicConnectionProtocol, serve
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import StreamDataReceived
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

GRPC, HTTP2, WEBSOCKET, QUIC = 50051, 8080, 8081, 4433


class Calls(grpc.GenericRpcHandler):
    """`/test/Echo` answers each message with itself; a call may be a stream either way."""

    def service(self, details):
        if details.method != "/test/Echo":
            return None
        return grpc.stream_stream_rpc_method_handler(self.echo)

    async def echo(self, messages, context):
        async for message in messages:
            yield message


async def http(scope, receive, send):
    """`/events` sends one event a request of the client's patience; all else echoes the body."""
    if scope["type"] != "http":
        return
    if scope["path"] == "/events":
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number in range(5):
            body = b"data: %d\n\n" % number
            await send({"type": "http.response.body", "body": body, "more_body": True})
            await asyncio.sleep(0.2)
        await send({"type": "http.response.body", "body": b""})
        return
    body, more = bytearray(), True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": bytes(body)})


async def echo(connection):
    async for message in connection:
        if message == "close":
            await connection.close(4321, "as asked")
        else:
            await connection.send(message)


class QuicEcho(QuicConnectionProtocol):
    def quic_event_received(self, event):
        if isinstance(event, StreamDataReceived):
            self._quic.send_stream_data(event.stream_id, event.data, event.end_stream)
            self.transmit()


def certificate() -> tuple[str, str]:
    """Write a certificate and its key; return their paths."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "apps")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    where = pathlib.Path("/tmp/cert.pem"), pathlib.Path("/tmp/key.pem")
    where[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    where[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return str(where[0]), str(where[1])


async def main() -> None:
    rpc = grpc.aio.server(options=[("grpc.max_receive_message_length", 16 << 20)])
    rpc.add_generic_rpc_handlers((Calls(),))
    rpc.add_insecure_port(f"0.0.0.0:{GRPC}")
    await rpc.start()
    cert, key = certificate()
    quic = QuicConfiguration(is_client=False, alpn_protocols=["echo"])
    quic.load_cert_chain(cert, key)
    await serve("0.0.0.0", QUIC, configuration=quic, create_protocol=QuicEcho)
    config = hypercorn.config.Config()
    config.bind = [f"0.0.0.0:{HTTP2}"]
    async with websockets.asyncio.server.serve(echo, "0.0.0.0", WEBSOCKET, max_size=16 << 20):
        await hypercorn.asyncio.serve(http, config)


asyncio.run(main())
