"""The page: one HTML file that needs no other, and the policy that lets it load no other."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from importlib import resources

_INLINE = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)


@functools.cache
def page() -> tuple[bytes, str]:
    """The page, and its Content-Security-Policy. Blocks the first time."""
    text = resources.files("krelay.status").joinpath("page.html").read_text("utf-8")
    sources: dict[str, list[str]] = {"style": [], "script": []}
    for kind, content in _INLINE.findall(text):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        sources[kind].append(f"'sha256-{digest}'")
    policy = (
        "default-src 'none'",
        f"style-src {' '.join(sources['style'])}",
        f"script-src {' '.join(sources['script'])}",
        "connect-src 'self'",
        "img-src data:",  # its icon
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    return text.encode(), "; ".join(policy)
