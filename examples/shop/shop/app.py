"""The web service: `GET /` lists the stock, `POST /buy/NAME` sells one piece.

The stock is a hash in Redis (TCP). Each sale is a statsd counter (UDP).
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from shop.redis import Redis

# Sells one piece, unless none is left: in one step, however many customers there are.
SELL = """
local left = tonumber(redis.call('hget', KEYS[1], ARGV[1]))
if left and left > 0 then return redis.call('hincrby', KEYS[1], ARGV[1], -1) end
return left and -1 or -2
"""


class SoldOut(Exception):
    pass


class Shop:
    """The stock under the key `stock` at `redis`; sales are counted at `stats`."""

    def __init__(self, redis: str, stats: str, *, stock: str = "stock") -> None:
        self._redis = redis
        host, _, port = stats.rpartition(":")
        self._stats = host.strip("[]"), int(port)
        self._stock = stock

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Shop:
        """Find the backends: `krelay run` sets variables, and in the cluster they have names.

        In docker-compose they have the same names, as aliases of krelay's container.
        """
        redis = environ.get("KRELAY_REDIS_ADDR", "redis:6379")
        stats = environ.get("KRELAY_STATS_ADDR", "stats:8125")
        return cls(redis, stats)

    def put(self, **products: int) -> None:
        """Put products on the shelf."""
        with Redis(self._redis) as redis:
            for name, pieces in products.items():
                redis("HSET", self._stock, name, pieces)

    def stock(self) -> dict[str, int]:
        """Return what is left of each product."""
        with Redis(self._redis) as redis:
            found = redis("HGETALL", self._stock)
        assert isinstance(found, list)
        return {name: int(pieces) for name, pieces in zip(found[::2], found[1::2], strict=True)}

    def sell(self, name: str) -> int:
        """Sell one piece; return what is left. Raises SoldOut, or KeyError for no such product."""
        with Redis(self._redis) as redis:
            left = redis("EVAL", SELL, 1, self._stock, name)
        assert isinstance(left, int)
        if left == -2:
            raise KeyError(name)
        if left == -1:
            raise SoldOut(name)
        self._count(f"sold.{name}")
        return left

    def _count(self, counter: str) -> None:
        family = socket.AF_INET6 if ":" in self._stats[0] else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.sendto(f"{counter}:1|c".encode(), self._stats)


def serve(shop: Shop, listen: str) -> ThreadingHTTPServer:
    """Return a server of the shop at `HOST:PORT`."""
    host, _, port = listen.rpartition(":")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, shop.stock())

        def do_POST(self) -> None:
            name = unquote(self.path.removeprefix("/buy/"))
            try:
                self._answer(200, {"left": shop.sell(name)})
            except KeyError:
                self._answer(404, {"error": f"no product {name}"})
            except SoldOut:
                self._answer(409, {"error": f"{name} is sold out"})

        def _answer(self, status: int, found: Mapping[str, object]) -> None:
            body = json.dumps(found).encode() + b"\n"
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return ThreadingHTTPServer((host, int(port)), Handler)
