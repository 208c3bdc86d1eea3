"""What happens to an agent's door: a policy that drops its packets, and a stranger's flood."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from tests.chaos.world import cluster
from tests.e2e import kit

PORT = "10250"

_FLOOD = """
import asyncio, random, sys

HEAD = b"GET / HTTP/1.1\\r\\nHost: a\\r\\nConnection: Upgrade\\r\\nUpgrade: krelay\\r\\n\\r\\n"
WORDS = b"", b"GET", HEAD[:40], HEAD, HEAD + bytes(300), bytes(5000), b"POST / HTTP/1.1\\r\\n"

async def knock():
    while True:
        try:
            reader, writer = await asyncio.open_connection(sys.argv[1], int(sys.argv[2]))
            writer.write(random.choice(WORDS))
            async with asyncio.timeout(20):
                while await reader.read(1 << 16):
                    pass
            writer.transport.abort()
        except (OSError, TimeoutError):
            await asyncio.sleep(0.01)

async def main():
    await asyncio.gather(*(knock() for _ in range(300)))

asyncio.run(main())
"""


@contextmanager
def dropped(address: str) -> Iterator[None]:
    """Packets to and from the door of the pod at this address vanish, also of live connections."""
    rules = [
        (chain, *match, "-p", "tcp", side, PORT, "-j", "DROP")
        for match, side, chains in (
            (("-d", address), "--dport", ("OUTPUT", "FORWARD")),
            (("-s", address), "--sport", ("INPUT", "FORWARD")),
        )
        for chain in chains
    ]
    try:
        for chain, *rule in rules:
            cluster("exec", "iptables", "-I", chain, "1", *rule)
        yield
    finally:
        for chain, *rule in rules:
            cluster("exec", "iptables", "-D", chain, *rule, check=False)


@contextmanager
def flooded(namespace: str, address: str) -> Iterator[None]:
    """Another pod opens hundreds of connections to the door, and never proves a key."""
    name = f"stranger-{secrets.token_hex(3)}"
    container = {
        "name": "stranger",
        "image": kit.IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", _FLOOD, address, PORT],
        "resources": {"limits": {"cpu": "300m", "memory": "128Mi"}},
    }
    spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
    kit.apply(namespace, pod)
    try:
        kit.kubectl(
            "-n", namespace, "wait", "--for=condition=Ready", f"pod/{name}", "--timeout=170s"
        )
        yield
    finally:
        words = ("delete", "pod", name, "--force", "--grace-period=0", "--ignore-not-found")
        kit.kubectl("-n", namespace, *words, check=False)
