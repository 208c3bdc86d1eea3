"""The quick start: three small targets, relayed by `krelay up` with an embedded agent."""

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
    """Answers with the address that the request came from: the agent's, not the client's."""

    def do_GET(self) -> None:
        body = f"hello from the target; your request came from {self.client_address}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the terminal is krelay's."""


class EchoUdp(asyncio.DatagramProtocol):
    """Echoes datagrams."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.transport.sendto(data, addr)  # type: ignore[attr-defined]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Echo bytes until the client ends."""
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()
    except ConnectionError:
        writer.transport.abort()


async def main() -> int:
    """Serve the targets while krelay runs; return its exit code."""
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
    # A separate process group, so that krelay gets each signal once, whether a terminal sends it to
    # the whole group or another process sends it to this one.
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
