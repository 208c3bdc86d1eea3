"""Run the web service: `python -m shop`."""

from __future__ import annotations

import contextlib
import os

from shop.app import Shop, serve

if __name__ == "__main__":
    listen = os.environ.get("SHOP_LISTEN", "127.0.0.1:8000")
    shop = Shop.from_environ(os.environ)
    if not shop.stock():
        shop.put(tea=12, coffee=7)
    server = serve(shop, listen)
    print(f"http://{listen}/")
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
