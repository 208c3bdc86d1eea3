"""Settings of the agent, from its arguments and its environment."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent import memory
from krelay.wire.frames import MAX_PAYLOAD

PORT = 9527
DOOR_PORT = 10250
"""Port of the door: managed control planes commonly reach pods on 443 and 10250 only."""
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")


@dataclass(frozen=True, slots=True)
class Settings:
    """How the agent runs. Times are in seconds; `replay` (`Limits.replay`) and `memory` in bytes.

    `memory` is the limit of which the agent uses four fifths. `key` authenticates clients. An agent
    in a pod has only its SHA-256 (hex) until the first client shows the key. Without either, every
    client that reaches the port may use the agent. The door listens on `pod_ip`, if that is set and
    clients must prove the key.
    """

    bind: str = "127.0.0.1"
    port: int = PORT
    idle_timeout: float = 300.0
    connect_timeout: float = 10.0
    grace: float = 120.0
    replay: int = 4 << 20
    ping: float = 3.0
    ping_timeout: float = 6.0
    memory: int = memory.DEFAULT
    key: bytes | None = None
    key_sha256: str | None = None
    pod_ip: str = ""
    door_port: int = DOOR_PORT

    @property
    def secured(self) -> bool:
        """Whether a client must prove that it knows the key."""
        return self.key is not None or self.key_sha256 is not None


def duration(text: str) -> float:
    """Return the seconds of a Go duration (`15s`, `5m`, `1h30m`) or of a number.

    Raises:
        ValueError: `text` is neither.
    """
    if _DURATION.sub("", text) == "" and text:
        return sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text))
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError(text)
    return seconds


def address(text: str) -> str:
    """Return `text`, which must be an IPv4 or IPv6 address.

    Raises:
        ValueError: `text` is not an address.
    """
    ipaddress.ip_address(text)
    return text


def port(text: str) -> int:
    """Return a port number; 0 means any free port.

    Raises:
        ValueError: `text` is not a port number.
    """
    number = int(text)
    if not 0 <= number <= 65_535:
        raise ValueError(text)
    return number


def size(text: str) -> int:
    """Return a number of bytes, at least that of one frame.

    Raises:
        ValueError: `text` is not such a number.
    """
    number = int(text)
    if number < MAX_PAYLOAD:
        raise ValueError(text)
    return number


def parse(args: Sequence[str], environ: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings for these arguments. Exit with status 2 on a usage error."""
    parser = argparse.ArgumentParser("krelay-server", allow_abbrev=False)
    default = Settings()
    parser.add_argument("--bind", type=address, default=default.bind, help="where to listen")
    parser.add_argument("--port", type=port, default=default.port)
    parser.add_argument("--idle-timeout", type=duration, default=default.idle_timeout)
    parser.add_argument("--connect-timeout", type=duration, default=default.connect_timeout)
    for name, kind, value in (
        ("grace", duration, default.grace),
        ("replay", size, default.replay),
        ("ping", duration, default.ping),
        ("ping-timeout", duration, default.ping_timeout),
    ):
        # argparse converts a default that is a string as it converts the argument.
        preset = environ.get("KRELAY_" + name.upper().replace("-", "_"), str(value))
        parser.add_argument(f"--{name}", type=kind, default=preset)
    parser.add_argument("-v", "--v", default="0", help="accepted for old manifests; no effect")
    known = parser.parse_args(args)
    try:
        key = bytes.fromhex(environ.get("KRELAY_KEY", ""))
    except ValueError:
        parser.error("KRELAY_KEY is not hexadecimal")
    try:
        memory_limit = memory.memory_limit(environ)
    except ValueError:
        parser.error(f"{memory.ENV} is not a number of bytes")
    pod_ip = environ.get("KRELAY_POD_IP", "")
    try:
        if pod_ip:
            address(pod_ip)
    except ValueError:
        parser.error("KRELAY_POD_IP is not an address")
    try:
        door_port = port(environ.get("KRELAY_DOOR_PORT") or str(default.door_port))
    except ValueError:
        parser.error("KRELAY_DOOR_PORT is not a port")
    settings = Settings(
        bind=known.bind,
        port=known.port,
        idle_timeout=known.idle_timeout,
        connect_timeout=known.connect_timeout,
        grace=known.grace,
        replay=known.replay,
        ping=known.ping,
        ping_timeout=known.ping_timeout,
        memory=memory_limit,
        key=key or None,
        key_sha256=environ.get("KRELAY_KEY_SHA256") or None,
        pod_ip=pod_ip,
        door_port=door_port,
    )
    if not ipaddress.ip_address(settings.bind).is_loopback and not settings.secured:
        parser.error(f"--bind {settings.bind} is open to others and requires a key: set KRELAY_KEY")
    return settings
