"""Server URL: the address of an API server, as client-go reads it from kubeconfig."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

from krelay.errors import CredentialsError

_IN_PATHS = "/:@!$&'()*+,;=~"
_BAD_ESCAPE = re.compile("%(?![0-9a-fA-F]{2})")


@dataclass(frozen=True, slots=True)
class ServerUrl:
    """An API server: `url` has no user, no query and no trailing slash, but perhaps a path.

    `user` and `password` are those of the URL; `user` is None if it has none.
    """

    url: str
    user: str | None = field(default=None, repr=False)
    password: str = field(default="", repr=False)

    @property
    def secure(self) -> bool:
        """Whether the server speaks TLS."""
        return self.url.startswith("https:")


def parse_server(text: str) -> ServerUrl:
    """Parse the `server` of a cluster (client-go's rest/url_utils.go, DefaultServerURL).

    An address without a scheme is one without TLS, also beside a certificate authority: only the
    text decides whether credentials may be sent.

    Raises:
        CredentialsError: not the URL of an API server. The error shows no password.
    """
    try:
        if not text.isprintable():
            raise ValueError
        parts = urlsplit(text)
        if not parts.scheme or not parts.netloc or text[0] == " ":
            parts = urlsplit(f"http://{text}")
            if parts.path not in ("", "/"):
                raise ValueError
        # urlsplit has made the scheme lower-case, so every later test of it agrees.
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        if not valid or " " in parts.netloc or _BAD_ESCAPE.search(parts.path):
            raise ValueError
    except ValueError:
        # The URL may contain a password, also after a look-alike of "@".
        shown = f'"{text}"' if text.isascii() and "@" not in text else "the server"
        raise CredentialsError(f"kubeconfig: {shown} is not the URL of an API server") from None
    path = posixpath.normpath(f"/{unquote(parts.path)}").lstrip("/")
    host = parts.netloc.rpartition("@")[2].removesuffix(":")
    return ServerUrl(
        f"{parts.scheme}://{host}" + (f"/{quote(path, safe=_IN_PATHS)}" if path else ""),
        None if parts.username is None else unquote(parts.username),
        unquote(parts.password or ""),
    )
