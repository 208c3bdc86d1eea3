"""Kubeconfigs that are pipes, large, or no files at all."""

from __future__ import annotations

import base64
import contextlib
import os
import threading
from pathlib import Path

import pytest

from krelay.cluster.auth import entries, files
from krelay.cluster.auth.kubeconfig import load
from krelay.errors import CredentialsError

TWO = """
current-context: one
clusters: [{name: c, cluster: {server: "https://h"}}]
contexts: [{name: one, context: {cluster: c}}, {name: two, context: {cluster: c}}]
"""


def test_a_fifo_is_opened_and_read_once_for_all_contexts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    # The writer comes when it likes: krelay waits for it.
    threading.Thread(target=path.write_text, args=(TWO,), daemon=True).start()
    environ = {"KUBECONFIG": str(path)}
    assert load(environ=environ).context == "one"
    monkeypatch.delattr(files, "_open")  # a second writer must not find a reader
    assert load("two", environ=environ).context == "two"
    assert load(kubeconfig=str(path), environ={}).context == "one"


def test_a_process_substitution_is_read_once(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, TWO.encode())
    os.close(writer)
    try:
        for context in ("one", "two"):
            assert load(context, f"/dev/fd/{reader}", environ={}).context == context
    finally:
        os.close(reader)


def test_a_large_pipe_is_read_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    text = TWO + "#" * (1 << 20)
    threading.Thread(target=path.write_text, args=(text,), daemon=True).start()
    assert load(environ={"KUBECONFIG": str(path)}).context == "one"


def test_a_pipe_that_nothing_is_written_to_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PIPE_DEADLINE", 0.05)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(CredentialsError, match=r"cannot read .*fifo: nothing came in 0 s"):
        load(environ={"KUBECONFIG": str(tmp_path / "fifo")})


def test_a_pipe_without_an_end_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_KUBECONFIG", 1 << 20)
    path = tmp_path / "fifo"
    os.mkfifo(path)

    def write() -> None:
        with contextlib.suppress(BrokenPipeError):
            path.write_bytes(b"#" * (4 << 20))

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    with pytest.raises(CredentialsError, match="larger than 1 MiB"):
        load(environ={"KUBECONFIG": str(path)})
    thread.join()


def test_a_key_is_no_pipe(tmp_path: Path) -> None:
    """krelay reads keys and tokens again, so they have to stay."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(CredentialsError, match="not a regular file"):
        files.read_pem({"client-key": str(tmp_path / "fifo")}, "client-key")


@pytest.mark.parametrize(
    ("path", "message"), [("/dev/zero", "not a regular file"), ("/", "Is a directory")]
)
def test_what_is_neither_file_nor_pipe_is_an_error(path: str, message: str) -> None:
    with pytest.raises(CredentialsError, match=f"cannot read {path}: {message}"):
        load(environ={"KUBECONFIG": path})


def test_the_null_device_is_no_kubeconfig() -> None:
    assert files.read_file(os.devnull) == b""
    with pytest.raises(CredentialsError, match="no kubeconfig: /dev/null"):
        load(environ={"KUBECONFIG": os.devnull})


def test_a_file_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_KUBECONFIG", 1 << 20)
    monkeypatch.setattr(files, "MAX_FILE", 1 << 20)
    path = tmp_path / "large"
    path.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(CredentialsError, match="larger than 1 MiB"):
        load(environ={"KUBECONFIG": str(path)})
    with pytest.raises(OSError, match="larger than 1 MiB"):
        files.read_file(path)


def test_a_file_is_parsed_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3,000 contexts with certificates take about a second of libyaml."""
    count = 0
    parse = entries._parse

    def counted(path: str, data: bytes) -> entries.Entries:
        nonlocal count
        count += 1
        return parse(path, data)

    monkeypatch.setattr(entries, "_parse", counted)
    path = tmp_path / "config"
    data = base64.b64encode(b"certificate" * 100).decode()
    rows = "".join(
        f"- name: c{n}\n  cluster: {{server: 'https://h{n}', certificate-authority-data: {data}}}\n"
        for n in range(300)
    )
    contexts = "".join(f"- {{name: x{n}, context: {{cluster: c{n}}}}}\n" for n in range(300))
    path.write_text(f"clusters:\n{rows}contexts:\n{contexts}")
    for n in range(300):
        assert load(f"x{n}", str(path), environ={}).server == f"https://h{n}"
    assert count == 1
    path.write_text(path.read_text().replace("https://h7", "https://g7"))
    os.utime(path, (1, 1))  # the time of an edit long ago
    assert load("x7", str(path), environ={}).server == "https://g7"
    assert count == 2
    path.write_text(path.read_text().replace("https://g7", "https://k7"))
    os.utime(path, (1, 1))
    assert load("x7", str(path), environ={}).server == "https://k7", "the inode's time is newer"
