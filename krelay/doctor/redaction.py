"""Redaction: take secrets out of the texts of a bundle.

What kubeconfig, the file and the environment hold as a secret is replaced wherever it appears, and
so is what looks like one: tokens, certificates, keys, and user names in URLs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from krelay.cluster.auth.files import read_file
from krelay.cluster.auth.kubeconfig import Login
from krelay.config.redaction import REDACTED, is_sensitive

SHORTEST = 4
"""Characters of a secret that is looked for: a shorter one would be found in other words."""
_PART_OF_WORDS = 8
"""Characters of a secret that is found inside of words too; a shorter one is a word by itself."""
_WORDS = frozenset(
    ("always", "auto", "debug", "default", "disabled", "enabled", "error", "false", "info", "never")
    + ("none", "null", "true", "warn", "warning")
)
"""Values of variables that are no secrets, and that reports are full of."""
# What stands before a word: also an escape, as in `\n`, `\u003c` or `%2F`.
_START = (
    r"(?:(?<![A-Za-z0-9])|(?<=\\[abfnrtv])|(?<=\\u[0-9a-fA-F]{4})"
    r"|(?<=\\x[0-9a-fA-F]{2})|(?<=%[0-9a-fA-F]{2}))"
)
_END = r"(?![A-Za-z0-9])"

_NAMES = r"(?:password|passwd|passphrase|secret|token|authorization|api[-_]?key|private[-_]?key)"
_SECRET_KEY = re.compile(f"{_NAMES}$", re.IGNORECASE)
_PATTERNS = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), replacement)
    for pattern, replacement in (
        (r"-----BEGIN [A-Z0-9 ]+-----.*?(?:-----END [A-Z0-9 ]+-----|\Z)", REDACTED),
        (r"://[^/\s@\"']*@", f"://{REDACTED}@"),
        # The look ahead keeps it linear: the first `eyJ` of what it lets pass matches.
        (
            r"(?<![\w-])(?=[\w-]++\.[\w-])([\w-]*?)\beyJ[\w-]*\.[\w-]+(?:\.[\w-]+)?",
            rf"\1{REDACTED}",
        ),
        (r"\b(Bearer|Basic)\s+[\w.~+/=-]+", rf"\1 {REDACTED}"),
        (r"\bk8s-aws-v1\.[\w-]+|\bya29\.[\w.-]+|\bsha256~[\w-]+", REDACTED),
        (rf"({_NAMES}=|--{_NAMES} )[^\s&\"',;]+", rf"\1{REDACTED}"),
        (rf"({_NAMES}\\?[\"']\s*+:\s*+\\?[\"'])[^\"'\\]+", rf"\1{REDACTED}"),
        (r"([?&][\w-]*sig(?:nature)?=)[^\s&\"']+", rf"\1{REDACTED}"),  # a signed URL
        (r"(api[-_]?key:\s*+)[^\s\"'\\]+", rf"\1{REDACTED}"),
        (r"\b[A-Za-z0-9+/]{80,}={0,2}", REDACTED),  # base64: a certificate or a key
    )
)


class Redactor:
    """Takes secrets out of texts; `add` names more of them."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: set[str] = set()
        self.add(secrets)

    def add(self, secrets: Iterable[str]) -> None:
        """Replace these from now on, also where they are quoted for a URL or for JSON."""
        for secret in secrets:
            if len(secret) >= SHORTEST and secret.casefold() not in _WORDS:
                escaped = secret.encode("unicode_escape").decode()
                in_json = (json.dumps(secret, ensure_ascii=ascii)[1:-1] for ascii in (False, True))
                forms = (secret, quote(secret, safe=""), unquote(secret), escaped, *in_json)
                self._secrets.update(form for form in forms if len(form) >= SHORTEST)

    def __call__(self, text: str) -> str:
        """Return `text` without secrets."""
        for secret in sorted(self._secrets, key=len, reverse=True):
            if len(secret) >= _PART_OF_WORDS:
                text = text.replace(secret, REDACTED)
            elif secret in text:
                text = re.sub(_as_word(secret), REDACTED, text)
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return text

    def json(self, text: str) -> str:
        """Return a JSON text without secrets: what is left is valid JSON."""
        try:
            return dumped(self._value(json.loads(text)))
        except (ValueError, RecursionError):
            return self(text)

    def _value(self, value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {self(name): self._value(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [self._value(item, key) for item in value]
        if isinstance(value, str):
            return REDACTED if _SECRET_KEY.search(key) and value else self(value)
        # A number may be a secret too; `true` and null are not.
        shown = str(value)
        return value if isinstance(value, bool | None) or self(shown) == shown else REDACTED


def dumped(value: Any) -> str:
    """Return a value as JSON for a person to read."""
    return json.dumps(value, indent=2, default=str) + "\n"


def _as_word(secret: str) -> str:
    start = _START if secret[0].isalnum() else ""
    return start + re.escape(secret) + (_END if secret[-1].isalnum() else "")


def secrets_of_login(login: Login) -> Iterator[str]:
    """Yield the secrets that kubeconfig holds for a login. Blocks."""
    user = login.user
    yield from (str(user[key]) for key in _SECRET_KEYS if user.get(key))
    with contextlib.suppress(OSError, UnicodeError):
        if path := user.get("tokenFile"):
            yield read_file(path).decode().strip()
    config = (user.get("auth-provider") or {}).get("config") or {}
    yield from (str(value) for key, value in config.items() if is_sensitive(key))
    variables = (user.get("exec") or {}).get("env") or ()
    yield from (str(item.get("value")) for item in variables if is_sensitive(item["name"]))
    for url in (login.server, str(login.cluster.get("proxy-url") or "")):
        yield from _user_info(url)


_SECRET_KEYS = ("token", "password", "client-key-data", "client-certificate-data")


def secrets_of_environment(environ: Mapping[str, str] = os.environ) -> Iterator[str]:
    """Yield the values of variables that look like secrets, and the users of proxies."""
    for name, value in environ.items():
        if is_sensitive(name) and len(value) >= _SHORTEST_VALUE:
            yield value
        if "://" in value:
            yield from _user_info(value)


_SHORTEST_VALUE = 8
"""A shorter value of the environment may be a word: `TOKENS=true`."""


def _user_info(url: str) -> Iterator[str]:
    try:
        parts = urlsplit(url)
    except ValueError:
        return
    yield from filter(None, (parts.username, parts.password))
