"""TokenStore: the tokens of an OIDC user in a kubeconfig file, which other tools use and write too.

As client-go tools/clientcmd/config.go, ModifyConfig: `FILE.lock`, created exclusively, keeps other
writers out. Unlike client-go, krelay changes the two tokens alone: comments, order and style of the
file stay, and readers never see half of it.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import json
import os
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import yaml

from krelay.cluster.auth.go_yaml import NotYamlError, read_yaml
from krelay.errors import CredentialsError, UnreachableError
from krelay.threads import in_thread

LOCK_PATIENCE = 5.0
"""Seconds to wait for another program's lock; kubectl holds it for milliseconds."""
TURN_PATIENCE = 40.0
"""Seconds to wait for another krelay that refreshes tokens of a file in the same directory."""
_LOOK_EVERY = 0.05
_MOST = 8 << 20
_DEEPEST = 200
TOKEN_KEYS = ("id-token", "refresh-token")
_PATH = ("user", "auth-provider", "config")


class NotWritableError(CredentialsError):
    """The file cannot be written, or not without a risk for the rest of it."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """An id token and a refresh token; empty if there is none."""

    id_token: str = field(default="", repr=False)
    refresh_token: str = field(default="", repr=False)

    @classmethod
    def of(cls, config: Mapping[str, str]) -> Tokens:
        """Return those of an `auth-provider`'s config."""
        return cls(*(config.get(key) or "" for key in TOKEN_KEYS))

    def as_config(self) -> dict[str, str]:
        """Return the fields of the config; a token that is missing has none."""
        values = zip(TOKEN_KEYS, (self.id_token, self.refresh_token), strict=True)
        return {key: value for key, value in values if value}


class TokenStore:
    """The entry of `user` in the first of the kubeconfig `files` that has one."""

    def __init__(self, files: Sequence[str], user: str) -> None:
        self._files = files
        self._user = user

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Let one krelay at a time refresh the tokens, so that no token is spent twice.

        `FILE.lock` is not held meanwhile: kubectl does not wait for it.
        """
        number = await in_thread(self._open_directory, UnreachableError)
        if number is None:
            yield
            return
        import fcntl  # where a directory can be opened, as it cannot on Windows

        try:
            until = time.monotonic() + TURN_PATIENCE
            while time.monotonic() < until:
                with suppress(BlockingIOError):
                    fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                await asyncio.sleep(_LOOK_EVERY)
            yield
        finally:
            os.close(number)

    def read(self) -> Tokens:
        """Return the tokens as they are now, and make sure that others can be written. Blocks.

        Raises:
            NotWritableError: others cannot be written.
        """
        path = self._path()
        with _locked(path):
            text = _read(path)
            if not os.access(path, os.W_OK):
                raise NotWritableError(f"{path}: permission denied")
        _replaced(text, self._user, dict.fromkeys(TOKEN_KEYS, "x"), path)
        return _tokens(text, self._user, path)

    def peek(self) -> Tokens | None:
        """Return the tokens as they are now, None if they cannot be read. Blocks."""
        try:
            path = self._path()
            return _tokens(_read(path), self._user, path)
        except NotWritableError:
            return None

    def write(self, tokens: Tokens) -> str:
        """Replace the tokens; return the path of the file. Blocks.

        Raises:
            NotWritableError: the file is as it was.
        """
        path = self._path()
        while True:
            text = _read(path)
            edited = _replaced(text, self._user, tokens.as_config(), path)
            with _locked(path):
                if _read(path) != text:
                    continue
                try:
                    _write(os.path.realpath(path), edited.encode())
                except OSError as exc:
                    raise NotWritableError(f"cannot write {path}: {exc.strerror}") from exc
            return path

    def _path(self) -> str:
        for path in self._files:
            if not os.path.exists(path) or os.path.samefile(path, os.devnull):
                continue
            if _config(_read(path), self._user, path) is not None:
                return path
        raise NotWritableError(f'no kubeconfig file has the oidc user "{self._user}"')

    def _open_directory(self) -> int | None:
        # A lock on the directory needs no file, and no other program takes one.
        with suppress(OSError, NotWritableError):
            return os.open(os.path.dirname(os.path.realpath(self._path())), os.O_RDONLY)
        return None


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Hold `PATH.lock` as client-go does, for moments: kubectl fails while it is there."""
    lock = f"{path}.lock"
    until = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0))
            break
        except FileExistsError:
            if time.monotonic() > until:
                raise NotWritableError(
                    f"{lock} exists, so another program writes {path}",
                    hint=f"if none does, one has left it behind: `rm {lock}`",
                ) from None
            time.sleep(_LOOK_EVERY)
        except OSError as exc:
            raise NotWritableError(f"cannot create {lock}: {exc.strerror}") from exc
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(lock)


def _read(path: str) -> str:
    try:
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(number, "rb") as file:
            if not stat.S_ISREG(os.fstat(number).st_mode):
                raise NotWritableError(f"{path} is not a regular file")
            data = file.read(_MOST + 1)
        if len(data) > _MOST:
            raise NotWritableError(f"{path} is larger than {_MOST >> 20} MiB")
        return data.decode()
    except UnicodeError:
        raise NotWritableError(f"{path} is not UTF-8") from None
    except OSError as exc:
        raise NotWritableError(f"cannot read {path}: {exc.strerror}") from exc


def _write(path: str, data: bytes) -> None:
    """Replace the content of a file, at once if that leaves its mode, its owner and its links."""
    found = os.stat(path)
    if found.st_nlink == 1:
        try:
            _replace(path, data, found)
        except OSError as exc:
            if exc.errno not in _IN_PLACE:
                raise  # as for want of space, which would cut off the file itself
        else:
            return
    with open(path, "r+b") as file:
        file.write(data)
        file.truncate()


def _replace(path: str, data: bytes, found: os.stat_result) -> None:
    folder, name = os.path.split(path)
    number, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    try:
        with open(number, "wb") as file:
            os.fchown(number, found.st_uid, found.st_gid)
            os.fchmod(number, stat.S_IMODE(found.st_mode))
            file.write(data)
            file.flush()
            os.fsync(number)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


_IN_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV)
"""A mounted file cannot be replaced, nor a folder or an owner of others be given a file. kubectl
always writes in place."""


# -- the text --------------------------------------------------------------------------------------


def _replaced(text: str, user: str, tokens: Mapping[str, str], path: str) -> str:
    """Return `text` with other tokens of `user`, and nothing else changed, which is checked.

    Raises:
        NotWritableError: that cannot be done here.
    """
    root = _parse(text, path)
    config = _config_of(root, user)
    if config is None:
        raise NotWritableError(f'{path} has no oidc user "{user}"')
    edited = text
    for start, end, new in sorted(_edits(text, config, tokens), reverse=True):
        edited = edited[:start] + new + edited[end:]
    for key, value in tokens.items():
        config.set(key, value)
    same = _parse(edited, path).plain() == root.plain()
    if not same or not tokens.items() <= _tokens(edited, user, path).as_config().items():
        raise NotWritableError(f'{path}: the tokens of user "{user}" cannot be replaced safely')
    return edited


def _edits(text: str, config: _Node, tokens: Mapping[str, str]) -> Iterator[tuple[int, int, str]]:
    """Yield the places in `text` to replace, and by what; JSON's strings are YAML's too."""
    for key, value in tokens.items():
        new = json.dumps(value)
        if (node := config.get(key)) is not None:
            start, end = node.start, node.end
            space = " " if start and text[start - 1] == ":" else ""
            tail = "\n" if "\n" in text[start:end] and not config.flow else ""
            yield start, end, space + new + tail
        elif config.pairs:
            first = config.pairs[0][0].start
            line = text.rfind("\n", 0, first) + 1
            between = ", " if config.flow else "\n" + " " * (first - line)
            name = json.dumps(key) if config.flow else key
            yield first, first, f"{name}: {new}{between}"


def _tokens(text: str, user: str, path: str) -> Tokens:
    """Return the tokens that a reader of kubeconfig finds, with merged and repeated fields."""
    try:
        found = read_yaml(text.encode())
    except NotYamlError:
        raise NotWritableError(f"{path} is not YAML") from None
    users = _field(found, "users")
    for entry in users if isinstance(users, list) else ():
        if _field(entry, "name") == user:
            found = functools.reduce(_field, _PATH, entry)
            values = {key: _field(found, key) for key in TOKEN_KEYS}
            return Tokens.of({key: str(value or "") for key, value in values.items()})
    return Tokens()


def _field(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _config(text: str, user: str, path: str) -> _Node | None:
    return _config_of(_parse(text, path), user)


def _config_of(root: _Node, user: str) -> _Node | None:
    """Return the config of the user's auth-provider, if it has one."""
    users = root.get("users")
    for entry in users.items if users is not None else ():
        name = entry.get("name")
        if name is not None and name.value == user:
            found: _Node | None = entry
            for key in _PATH:
                found = found.get(key) if found is not None else None
            return found
    return None


@dataclass(slots=True)
class _Node:
    """A value of a YAML document, and where it stands. Its scalars are texts."""

    start: int
    end: int = 0
    value: str | None = None
    pairs: list[tuple[_Node, _Node]] = field(default_factory=list)
    items: list[_Node] = field(default_factory=list)
    flow: bool = False
    kind: str = "scalar"

    def get(self, key: str) -> _Node | None:
        return next((value for name, value in self.pairs if name.value == key), None)

    def set(self, key: str, value: str) -> None:
        """Set the text of a field."""
        if (found := self.get(key)) is not None:
            found.value, found.kind = value, "scalar"
        else:
            self.pairs.append((_Node(0, value=key), _Node(0, value=value)))

    def plain(self) -> Any:
        """Return the content, to be compared."""
        pairs = [(k.plain(), v.plain()) for k, v in self.pairs]
        pairs.sort(key=lambda pair: repr(pair[0]))
        return self.kind, self.value, pairs, [item.plain() for item in self.items]


def _parse(text: str, path: str) -> _Node:
    """Return the first document of `text`, by the events of libyaml, whose own nodes need the C
    stack."""
    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)(text)
    try:
        return _build(loader)
    except (yaml.YAMLError, _TooDeepError):
        raise NotWritableError(f"{path} is not YAML") from None
    finally:
        loader.dispose()


class _TooDeepError(Exception):
    pass


def _build(loader: Any) -> _Node:
    root = _Node(0, kind="sequence")
    stack: list[_Node] = [root]
    keys: list[_Node | None] = [None]
    anchors: set[str] = set()
    while not isinstance(event := loader.get_event(), yaml.DocumentEndEvent | yaml.StreamEndEvent):
        if isinstance(event, yaml.StreamStartEvent | yaml.DocumentStartEvent):
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            stack.pop().end = event.end_mark.index  # type: ignore[union-attr]
            keys.pop()
            continue
        node = _Node(event.start_mark.index, event.end_mark.index)
        if isinstance(event, yaml.ScalarEvent):
            node.value = event.value
        elif isinstance(event, yaml.CollectionStartEvent):
            node.kind = "mapping" if isinstance(event, yaml.MappingStartEvent) else "sequence"
            node.flow = bool(event.flow_style)
        if isinstance(event, yaml.AliasEvent):
            node.kind, node.value = "alias" if event.anchor in anchors else "dangling", event.anchor
        elif event.anchor:
            anchors.add(event.anchor)
            node.kind += f" {event.anchor}"
        parent, key = stack[-1], keys[-1]
        if not parent.kind.startswith("mapping"):
            parent.items.append(node)
        elif key is None:
            keys[-1] = node
        else:
            parent.pairs.append((key, node))
            keys[-1] = None
        if isinstance(event, yaml.CollectionStartEvent):
            if len(stack) > _DEEPEST:
                raise _TooDeepError
            stack.append(node)
            keys.append(None)
    return root.items[0] if root.items else root
