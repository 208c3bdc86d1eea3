"""The shop, with its real backends in the cluster."""

from __future__ import annotations

import json
import time
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.error import HTTPError

from conftest import Backends, RunningShop


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def buy(shop: RunningShop, name: str) -> int:
    """Return the status of a purchase."""
    request = urllib.request.Request(f"{shop.url}/buy/{name}", method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except HTTPError as error:
        with error:
            return error.code


def test_a_sale_lowers_the_stock(shop: RunningShop) -> None:
    shop.shop.put(tea=2, coffee=1)
    assert buy(shop, "tea") == 200
    assert get(shop.url) == {"tea": 1, "coffee": 1}


def test_what_is_sold_out_cannot_be_bought(shop: RunningShop) -> None:
    shop.shop.put(tea=1)
    assert [buy(shop, "tea"), buy(shop, "tea")] == [200, 409]
    assert buy(shop, "cocoa") == 404


def test_two_customers_never_get_the_same_piece(shop: RunningShop) -> None:
    shop.shop.put(tea=5)
    with ThreadPoolExecutor(20) as customers:
        statuses = list(customers.map(lambda _: buy(shop, "tea"), range(20)))
    assert sorted(statuses) == [200] * 5 + [409] * 15


def test_sales_are_counted(shop: RunningShop, backends: Backends) -> None:
    """A counter is a datagram: it arrives a moment later."""
    name = f"tea-{uuid.uuid4()}"
    shop.shop.put(**{name: 3})
    for _ in range(3):
        assert buy(shop, name) == 200
    deadline = time.monotonic() + 30
    while (count := get(f"http://{backends.counters}/").get(f"sold.{name}", 0)) < 3:
        assert time.monotonic() < deadline, f"{count} of 3 sales were counted"
        time.sleep(0.1)
