"""The backends in the cluster, and a shop for each test."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from shop.app import Shop, serve
from shop.redis import Redis

from krelay.pytest_plugin import Krelay


@dataclass
class Backends:
    """Addresses of this machine that lead into the cluster."""

    redis: str
    stats: str
    counters: str


@pytest.fixture(scope="session")
def backends(krelay_session: Krelay) -> Backends:
    """Use the addresses of `krelay run -- pytest`; with `pytest` alone, the plugin relays."""
    if "KRELAY_REDIS_ADDR" in os.environ:
        return Backends(
            os.environ["KRELAY_REDIS_ADDR"],
            os.environ["KRELAY_STATS_ADDR"],
            os.environ["KRELAY_STATS_8080_ADDR"],
        )
    found = krelay_session(
        redis="svc/redis :6379",
        stats="svc/stats :8125/udp :8080",
        namespace=os.environ.get("SHOP_NAMESPACE"),  # by default that of pytest.ini
    )
    stats, counters = found.all("stats")
    return Backends(found["redis"].address, stats.address, counters.address)


@dataclass
class RunningShop:
    url: str
    shop: Shop


@pytest.fixture
def shop(backends: Backends) -> Iterator[RunningShop]:
    """A shop with a separate stock: the jobs of a team may use one Redis at the same time."""
    stock = f"test-{uuid.uuid4()}"
    made = Shop(backends.redis, backends.stats, stock=stock)
    server = serve(made, "127.0.0.1:0")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield RunningShop(f"http://127.0.0.1:{server.server_port}", made)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        with Redis(backends.redis) as redis:
            redis("DEL", stock)
