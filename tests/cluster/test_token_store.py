"""Tokens in kubeconfig files: found, replaced alone, under kubectl's lock."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import threading
from pathlib import Path

import pytest

from krelay.cluster.auth import token_store as module
from krelay.cluster.auth.token_store import NotWritableError, Tokens, TokenStore

OLD = Tokens("old.id.token", "old-refresh")
NEW = Tokens("new.id.token", 'new"refresh')
BLOCK = """\
# mine
apiVersion: v1
clusters: []  # none
users:
- name: other
  user: &other
    token: old-refresh
- name: me
  user:
    auth-provider:
      config:
        client-id: kube  # the app
        id-token: old.id.token
        idp-issuer-url: https://issuer
        refresh-token: old-refresh # secret
      name: oidc
  # the end
contexts: !ours
- {name: x, context: {cluster: c, user: me}, at: 2024-01-01T00:00:00Z}
"""
FLOW = json.dumps(
    {
        "users": [
            {
                "name": "me",
                "user": {
                    "auth-provider": {
                        "name": "oidc",
                        "config": {"id-token": OLD.id_token, "refresh-token": OLD.refresh_token},
                    }
                },
            }
        ]
    },
    indent="\t",
)


def store(path: Path, text: str) -> TokenStore:
    path.write_bytes(text.encode())
    return TokenStore((str(path.with_name("missing")), str(path)), "me")


@pytest.mark.parametrize(
    ("text", "old"),
    [
        pytest.param(BLOCK, OLD, id="block style, with comments"),
        pytest.param(BLOCK.replace("\n", "\r\n"), OLD, id="lines of Windows"),
        pytest.param("\n---\n" + BLOCK + "---\nusers: [{name: me}]\n", OLD, id="two documents"),
        pytest.param(FLOW, OLD, id="JSON with tabs"),
        pytest.param(
            BLOCK.replace("old.id.token", "'old.id.token'").replace(
                "old-refresh #", '"\\x6fld-refresh" #'
            ),
            OLD,
            id="quoted",
        ),
        pytest.param(
            BLOCK.replace("id-token: old.id.token", "id-token: >-\n          old.id.token"),
            OLD,
            id="a block scalar",
        ),
        pytest.param(
            BLOCK.replace("        id-token: old.id.token\n", ""),
            Tokens("", OLD.refresh_token),
            id="no id token",
        ),
        pytest.param(
            BLOCK.replace("id-token: old.id.token", "id-token:"),
            Tokens("", OLD.refresh_token),
            id="an empty id token",
        ),
        pytest.param(
            FLOW.replace('"id-token": "old.id.token",', ""),
            Tokens("", OLD.refresh_token),
            id="no id token, in JSON",
        ),
    ],
)
def test_the_tokens_are_replaced_and_nothing_else(tmp_path: Path, text: str, old: Tokens) -> None:
    path = tmp_path / "config"
    found = store(path, text)
    assert found.read() == found.peek() == old
    assert found.write(NEW) == str(path)
    assert found.peek() == NEW
    before, after = text.splitlines(), path.read_bytes().decode().splitlines()
    changed = [line for line in after if line not in before]
    assert all("token" in line for line in changed), changed
    kept = [line for line in before if "token" not in line and "old.id" not in line]
    assert [line for line in after if line in kept] == kept
    assert os.listdir(tmp_path) == ["config"], "no lock, no temporary file"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("users: [{name: me, user: {token: x}}]", "no kubeconfig file has"),
        ("", "no kubeconfig file has"),
        ("users: [", "is not YAML"),
        ("[" * 100_000, "is not YAML"),
        (BLOCK.replace("old.id.token", "&it old.id.token") + "it: *it\n", "safely"),
        (
            BLOCK.replace("\n- name: me", "\n- <<: *other\n  name: me").replace(
                "config:\n", "config: {}\n      more:\n"
            ),
            "safely",
        ),
        # In Go's YAML the later one of two wins, merged or not.
        (BLOCK.replace("      name: oidc", "        id-token: later\n      name: oidc"), "safely"),
        (
            "x: &x {refresh-token: r}\n"
            + BLOCK.replace("refresh-token: old-refresh # secret", "<<: *x"),
            "safely",
        ),
    ],
)
def test_a_file_that_cannot_be_edited_stays_as_it_is(
    tmp_path: Path, text: str, reason: str
) -> None:
    path = tmp_path / "config"
    found = store(path, text)
    for call in (found.read, lambda: found.write(NEW)):
        with pytest.raises(NotWritableError, match=reason):
            call()
    assert path.read_text() == text
    assert os.listdir(tmp_path) == ["config"]


def test_the_mode_and_a_link_are_kept(tmp_path: Path) -> None:
    real = tmp_path / "real"
    found = store(real, BLOCK)
    real.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to("real")
    found = TokenStore((str(link),), "me")
    found.write(NEW)
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert found.peek() == NEW


def test_a_file_that_cannot_be_replaced_is_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config"
    found = store(path, BLOCK)
    before = path.stat().st_ino

    def mounted(*_: object) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(os, "replace", mounted)
    found.write(NEW)
    assert path.stat().st_ino == before
    assert found.peek() == NEW
    assert os.listdir(tmp_path) == ["config"]


def test_merged_tokens_are_read(tmp_path: Path) -> None:
    merged = BLOCK.replace("refresh-token: old-refresh # secret", "<<: *x")
    found = store(tmp_path / "config", "x: &x {refresh-token: old-refresh}\n" + merged)
    assert found.peek() == OLD


def test_the_null_device_in_a_list_is_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "config"
    store(path, BLOCK)
    found = TokenStore((os.devnull, str(path)), "me")
    assert found.read() == OLD
    assert found.write(NEW) == str(path)


def test_hard_links_stay_links(tmp_path: Path) -> None:
    path, other = tmp_path / "config", tmp_path / "other"
    found = store(path, BLOCK)
    os.link(path, other)
    found.write(NEW)
    assert path.samefile(other)
    assert found.peek() == NEW


def test_a_file_of_another_owner_stays_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config"
    found = store(path, BLOCK)
    before = path.stat().st_ino

    def forbidden(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", forbidden)
    found.write(NEW)
    assert path.stat().st_ino == before, "a new file would have another owner"
    assert found.peek() == NEW
    assert os.listdir(tmp_path) == ["config"]


def test_a_full_disk_leaves_the_file_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config"
    found = store(path, BLOCK)
    before = path.stat().st_mtime_ns

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NotWritableError, match="No space left"):
        found.write(NEW)
    assert path.read_text() == BLOCK
    assert path.stat().st_mtime_ns == before
    assert os.listdir(tmp_path) == ["config"]


def test_the_lock_is_not_held_while_a_file_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config"
    found = store(path, BLOCK)
    parse, at_once = module._parse, []

    def look(text: str, name: str) -> object:
        at_once.append((tmp_path / "config.lock").exists())
        return parse(text, name)

    monkeypatch.setattr(module, "_parse", look)
    found.read()
    found.write(NEW)
    assert at_once
    assert not any(at_once)


def test_what_another_program_writes_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config"
    found = store(path, BLOCK)
    replaced, left = module._replaced, ["prod", "dev"]

    def edit(*given: object) -> str:
        if left:
            path.write_text(BLOCK + f"current-context: {left.pop()}\n")
        return replaced(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_replaced", edit)
    found.write(NEW)
    assert found.peek() == NEW
    assert path.read_text().endswith("current-context: prod\n")


def test_another_programs_lock_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config"
    found = store(path, BLOCK)
    lock = tmp_path / "config.lock"
    lock.touch()
    threading.Timer(0.1, lock.unlink).start()
    assert found.read() == OLD
    lock.touch()
    monkeypatch.setattr(module, "LOCK_PATIENCE", 0.1)
    with pytest.raises(NotWritableError, match=r"config\.lock exists") as caught:
        found.write(NEW)
    assert caught.value.hint == f"if none does, one has left it behind: `rm {lock}`"
    assert lock.exists()
    assert found.peek() == OLD


@pytest.mark.parametrize("kind", ["lock", "file"])
def test_what_forbids_to_write_is_known_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "config"
    found = store(path, BLOCK)
    if kind == "lock":
        found = TokenStore((str(path),), "me")
        real = os.open

        def read_only(name: str, flags: int, *more: int) -> int:
            if flags & os.O_CREAT:
                raise OSError(30, "Read-only file system")
            return real(name, flags, *more)

        monkeypatch.setattr(os, "open", read_only)
    else:
        monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(NotWritableError, match=r"Read-only file system|permission denied"):
        found.read()
    assert found.peek() == OLD


async def test_one_krelay_at_a_time_has_its_turn(tmp_path: Path) -> None:
    stores = [store(tmp_path / "config", BLOCK) for _ in range(5)]
    inside, most = 0, 0

    async def enter(found: TokenStore) -> None:
        nonlocal inside, most
        async with found.turn():
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    async with asyncio.TaskGroup() as tasks:
        for found in stores:
            tasks.create_task(enter(found))
    assert most == 1


async def test_tokens_are_not_shown() -> None:
    assert "token" not in repr(OLD).replace("Tokens", "")
