"""The quick start: three small targets, and `krelay up` with an embedded agent before them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

HERE = Path(__file__).parent
LOCAL_WEB = os.environ.get("LOCAL_WEB", "8080")
LOCAL_ECHO = os.environ.get("LOCAL_ECHO", "7007")
TRY = f"""
try, in another terminal:
  curl http://127.0.0.1:{LOCAL_WEB}/
  echo hello | nc -N 127.0.0.1 {LOCAL_ECHO}
  echo hello | nc -u -w1 127.0.0.1 {LOCAL_ECHO}
Edit examples/quickstart.yaml and save it: the listeners follow. Ctrl-C ends it.
"""


class Web(BaseHTTPRequestHandler):
    """Says where the request came from: the agent, not the client."""

    def do_GET(self) -> None:
        body = f"hello from the target; you came by way of {self.client_address}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet: the terminal is krelay's."""


class EchoUdp(asyncio.DatagramProtocol):
    """Sends each datagram back."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.transport.sendto(data, addr)  # type: ignore[attr-defined]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends each byte back until the client ends."""
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()
    except ConnectionError:
        writer.transport.abort()


async def main() -> int:
    """Serve, run krelay, and end with it."""
    web = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    Thread(target=web.serve_forever, daemon=True).start()
    tcp = await asyncio.start_server(echo, "127.0.0.1", 0)
    loop = asyncio.get_running_loop()
    udp, _ = await loop.create_datagram_endpoint(EchoUdp, local_addr=("127.0.0.1", 0))
    environ = {
        **os.environ,
        "WEB_PORT": str(web.server_port),
        "ECHO_PORT": str(tcp.sockets[0].getsockname()[1]),
        "ECHO_UDP_PORT": str(udp.get_extra_info("sockname")[1]),
    }
    print(TRY, flush=True)
    # In a group of its own, so that it gets each signal once, whether a terminal sends it to
    # everybody or somebody to this process alone.
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "krelay", "up", "-f", str(HERE / "quickstart.yaml")),
        env=environ,
        process_group=0,
    )
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, process.send_signal, signal.SIGTERM)
    code = await process.wait()
    udp.close()
    tcp.close()
    return code


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
