"""Clients in Python: `clients.py NAME PORT` runs one, in the image's root on this machine."""

# mypy: ignore-errors

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys

HOST = "127.0.0.1"
BIG = os.urandom(4 << 20)


async def grpc(port):
    import grpc

    options = [("grpc.max_receive_message_length", 16 << 20), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(f"{HOST}:{port}", options=options) as channel:
        call = channel.stream_stream("/test/Echo")()
        for message in [b"one", b"", BIG]:
            await call.write(message)
            assert await call.read() == message
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        calls = [channel.stream_stream("/test/Echo")() for _ in range(50)]
        for number, call in enumerate(calls):
            await call.write(b"%d" % number)
        for number, call in enumerate(calls):
            assert await call.read() == b"%d" % number
            await call.done_writing()
        try:
            await channel.unary_unary("/test/None")(b"")
        except grpc.aio.AioRpcError as exc:
            assert exc.code() is grpc.StatusCode.UNIMPLEMENTED, exc


async def http2(port):
    """Have forty streams of one connection at once, each with a body both ways."""
    from h2.connection import H2Connection
    from h2.events import DataReceived, StreamEnded

    reader, writer = await asyncio.open_connection(HOST, port)
    connection = H2Connection()
    connection.initiate_connection()
    streams = {}
    for number in range(40):
        stream = connection.get_next_available_stream_id()
        head = [(":method", "POST"), (":path", "/"), (":authority", HOST), (":scheme", "http")]
        connection.send_headers(stream, head)
        connection.send_data(stream, b"%d" % number * 100, end_stream=True)
        streams[stream] = b"%d" % number * 100
    got = dict.fromkeys(streams, b"")
    while streams:
        writer.write(connection.data_to_send())
        data = await reader.read(1 << 16)
        assert data, "the connection has ended"
        for event in connection.receive_data(data):
            if isinstance(event, DataReceived):
                got[event.stream_id] += event.data
            elif isinstance(event, StreamEnded):
                assert got[event.stream_id] == streams.pop(event.stream_id)


async def websocket(port):
    import websockets

    async with websockets.connect(f"ws://{HOST}:{port}", max_size=16 << 20) as connection:
        for message in ["text", BIG, b""]:
            await connection.send(message)
            assert await connection.recv() == message
        await (await connection.ping())
        await connection.send("close")
        try:
            await connection.recv()
        except websockets.ConnectionClosed as exc:
            assert (exc.rcvd.code, exc.rcvd.reason) == (4321, "as asked")


async def quic(port):
    from aioquic.asyncio import connect
    from aioquic.quic.configuration import QuicConfiguration

    config = QuicConfiguration(alpn_protocols=["echo"], verify_mode=ssl.CERT_NONE)
    async with connect(HOST, port, configuration=config) as client:
        for _ in range(3):
            reader, writer = await client.create_stream()
            data = BIG[: 256 << 10]
            writer.write(data)
            writer.write_eof()
            assert await reader.read() == data


async def nats(port):
    import nats

    client = await nats.connect(f"nats://{HOST}:{port}", allow_reconnect=False)

    async def answer(message):
        await message.respond(message.data)

    await client.subscribe("echo", cb=answer)
    for number in range(100):
        reply = await client.request("echo", b"%d" % number, timeout=10)
        assert reply.data == b"%d" % number
    await client.drain()


async def amqp(port):
    import pika

    connection = pika.BlockingConnection(pika.ConnectionParameters(HOST, port, heartbeat=2))
    channel = connection.channel()
    queue = channel.queue_declare("", exclusive=True).method.queue
    for number in range(100):
        channel.basic_publish("", queue, b"%d" % number)
    got = []
    for method, _, body in channel.consume(queue, inactivity_timeout=10):
        got.append(body)
        channel.basic_ack(method.delivery_tag)
        if len(got) == 100:
            break
    assert got == [b"%d" % number for number in range(100)]
    connection.sleep(5)  # over two heartbeats
    connection.close()


async def debugpy(port):
    """Speak the Debug Adapter Protocol: attach, stop in a running program, and go on."""
    reader, writer = await asyncio.open_connection(HOST, port)
    number = 0

    async def read():
        size = 0
        while line := (await reader.readline()).strip():
            size = int(line.rpartition(b":")[2])
        return json.loads(await reader.readexactly(size))

    async def ask(command, **arguments):
        nonlocal number
        number += 1
        body = {"seq": number, "type": "request", "command": command, "arguments": arguments}
        data = json.dumps(body).encode()
        writer.write(b"Content-Length: %d\r\n\r\n%s" % (len(data), data))
        return number

    async def until(wanted, **fields):
        while True:
            found = await read()
            if found["type"] == wanted and all(found.get(k) == v for k, v in fields.items()):
                assert found.get("success", True), found
                return found

    await until("response", request_seq=await ask("initialize", adapterID="test"))
    attach = await ask("attach", name="test", justMyCode=False)
    await until("event", event="initialized")
    await until("response", request_seq=await ask("configurationDone"))
    await until("response", request_seq=attach)
    threads = await until("response", request_seq=await ask("threads"))
    thread = threads["body"]["threads"][0]["id"]
    await ask("pause", threadId=thread)
    await until("event", event="stopped")
    stack = await until("response", request_seq=await ask("stackTrace", threadId=thread))
    assert stack["body"]["stackFrames"], stack
    await until("response", request_seq=await ask("disconnect", terminateDebuggee=False))


async def main(name, port):
    async with asyncio.timeout(60):
        await globals()[name](int(port))
    sys.stdout.write("done\n")


asyncio.run(main(*sys.argv[1:]))
