"""The targets by name: a function of any bytes, which raises where a promise is broken."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CORPUS = Path(__file__).with_name("corpus")


@dataclass(frozen=True, slots=True)
class Target:
    """A function `name` of the module `fuzz.MODULE`, for inputs of up to `size` bytes."""

    name: str
    module: str
    size: int = 4_096

    def load(self) -> Callable[[bytes], None]:
        """The function; importing it imports what it tries out."""
        found: Callable[[bytes], None] = getattr(
            importlib.import_module(f"fuzz.{self.module}"), self.name
        )
        return found

    @property
    def corpus(self) -> Path:
        """The directory of its seeds."""
        return CORPUS / self.name


TARGETS = {
    target.name: target
    for target in (
        Target("frames", "wire"),
        Target("session", "wire", 16_384),
        Target("handshake", "wire"),
        Target("header", "wire", 512),
        Target("connection", "agent", 8_192),
        Target("framing", "agent"),
        Target("door", "agent", 8_192),
        Target("config_yaml", "config", 32_768),
        Target("config_txt", "config", 32_768),
        Target("socks5", "proxies", 2_048),
        Target("http_proxy", "proxies", 8_192),
        Target("socks_client", "proxies", 1_024),
        Target("spdy", "transport"),
        Target("websocket", "transport"),
        Target("http_answer", "transport", 16_384),
        Target("upgrade", "transport", 16_384),
        Target("api_objects", "cluster", 16_384),
        Target("api_refusal", "cluster", 8_192),
        Target("credentials", "cluster"),
    )
}
