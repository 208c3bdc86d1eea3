"""Settings of the agent, from its arguments and its environment."""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from agent import HOST, PORT, memory
from krelay.wire.frames import MAX_PAYLOAD

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

    bind: str = HOST
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
    def session_grace(self) -> float:
        """Seconds that a session without a tunnel is kept: no longer than an idle agent runs."""
        return min(self.grace, self.idle_timeout or self.grace)

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
    given = _simple(args, environ)
    if given is None:
        given = _parse(args, environ)
    try:
        key = bytes.fromhex(environ.get("KRELAY_KEY", ""))
    except ValueError:
        _exit("KRELAY_KEY is not hexadecimal")
    try:
        memory_limit = memory.memory_limit(environ)
    except ValueError:
        _exit(f"{memory.ENV} is not a number of bytes")
    pod_ip = environ.get("KRELAY_POD_IP", "")
    try:
        if pod_ip:
            address(pod_ip)
    except ValueError:
        _exit("KRELAY_POD_IP is not an address")
    try:
        door_port = port(environ.get("KRELAY_DOOR_PORT") or str(DOOR_PORT))
    except ValueError:
        _exit("KRELAY_DOOR_PORT is not a port")
    settings = Settings(
        **given,
        memory=memory_limit,
        key=key or None,
        key_sha256=environ.get("KRELAY_KEY_SHA256") or None,
        pod_ip=pod_ip,
        door_port=door_port,
    )
    if not settings.secured and not ipaddress.ip_address(settings.bind).is_loopback:
        _exit(f"--bind {settings.bind} is open to others and requires a key: set KRELAY_KEY")
    return settings


_OPTIONS: dict[str, Callable[[str], Any]] = {
    "bind": address,
    "port": port,
    "idle_timeout": duration,
    "connect_timeout": duration,
    "grace": duration,
    "replay": size,
    "ping": duration,
    "ping_timeout": duration,
}
_IN_ENVIRON = ("grace", "replay", "ping", "ping_timeout")


def _presets(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the options that the environment sets."""
    names = {name: "KRELAY_" + name.upper() for name in _IN_ENVIRON}
    return {name: environ[variable] for name, variable in names.items() if variable in environ}


def _simple(args: Sequence[str], environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the options if all of `args` are a valid `--NAME=VALUE`; None if argparse must judge.

    Its import would be a tenth of an agent's start.
    """
    texts = _presets(environ)
    for arg in args:
        option, equals, value = arg.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        if not equals or option != "--" + name.replace("_", "-") or name not in _OPTIONS:
            return None
        texts[name] = value
    try:
        return {name: _OPTIONS[name](text) for name, text in texts.items()}
    except ValueError:
        return None


def _parse(args: Sequence[str], environ: Mapping[str, str]) -> dict[str, Any]:
    import argparse

    parser = argparse.ArgumentParser("krelay-server", allow_abbrev=False)
    presets = _presets(environ)
    for name, kind in _OPTIONS.items():
        # argparse converts a default that is a string as it converts the argument.
        preset = presets.get(name, argparse.SUPPRESS)
        parser.add_argument("--" + name.replace("_", "-"), type=kind, default=preset)
    parser.add_argument("-v", "--v", default="0", help="accepted for old manifests; no effect")
    known = vars(parser.parse_args(args))
    return {name: value for name, value in known.items() if name in _OPTIONS}


def _exit(message: str) -> NoReturn:
    sys.stderr.write(f"krelay-server: error: {message}\n")
    sys.exit(2)
