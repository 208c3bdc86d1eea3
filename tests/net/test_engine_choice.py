"""Which engine serves: aiofastnet if it is there and fits, else asyncio, with a line of log."""

from __future__ import annotations

import asyncio
import builtins
import socket
import sys
import threading
from types import ModuleType
from typing import Any

import pytest

from krelay.net import engine as engines

pytestmark = pytest.mark.usefixtures("unchosen")


@pytest.fixture
def unchosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_chosen", None)
    monkeypatch.delenv(engines.VARIABLE, raising=False)


def stand_in(version: str = "1.2.0", **more: Any) -> ModuleType:
    """A release of aiofastnet that is not installed here."""
    module = ModuleType("aiofastnet")
    vars(module).update({"__version__": version, "OPENSSL_DYN_LIBS": object(), **more})
    return module


@pytest.mark.parametrize("version", ["1.2.0", "1.2", "1.3.0rc1", "1.10.4"])
def test_a_release_that_fits_is_used(
    version: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "aiofastnet", stand_in(version))
    assert engines.choose().name == f"aiofastnet {version}"
    assert caplog.messages == []


@pytest.mark.parametrize("version", ["0.22.0", "1.1.1", "2.0.0", "", "?"])
def test_a_release_that_does_not_fit_is_logged_once(
    version: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "aiofastnet", stand_in(version))
    assert engines.choose() is engines.choose()
    assert engines.choose().name == "asyncio"
    said = f"aiofastnet {version} does not fit; 1.2 or a later 1.x does"
    assert caplog.messages == [f"asyncio's transports are used: {said}"]


def test_without_aiofastnet_asyncio_serves_without_a_word(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "aiofastnet", None)
    assert engines.choose() == engines.Engine("asyncio")
    assert caplog.messages == []


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libssl.so.3: cannot open shared object file"),
        ModuleNotFoundError("No module named '_ssl'", name="_ssl"),
        RuntimeError("module compiled for another Python"),
    ],
)
def test_an_aiofastnet_that_cannot_be_imported_is_logged_once(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = builtins.__import__

    def broken(name: str, *args: Any) -> Any:
        if name == "aiofastnet":
            raise error
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", broken)
    assert engines.choose().name == "asyncio"
    assert caplog.messages == [
        f"asyncio's transports are used: aiofastnet cannot be imported: {error}"
    ]


def test_a_python_with_its_own_openssl_uses_asyncio(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "aiofastnet", stand_in(OPENSSL_DYN_LIBS=None))
    assert engines.choose().name == "asyncio"
    (said,) = caplog.messages
    assert "OpenSSL built in" in said


def test_without_a_directory_for_temporary_files_asyncio_serves(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setitem(sys.modules, "aiofastnet", stand_in())
    monkeypatch.setattr("tempfile.gettempdir", nowhere)
    assert engines.choose().name == "asyncio"
    (said,) = caplog.messages
    assert "No usable temporary directory" in said


def test_the_variable_turns_aiofastnet_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("KRELAY_ENGINE", "asyncio")
    monkeypatch.setitem(sys.modules, "aiofastnet", stand_in())
    assert engines.choose() == engines.Engine("asyncio")
    assert caplog.messages == []


def test_a_variable_with_an_unknown_word_is_logged_and_ignored(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("KRELAY_ENGINE", "uvloop")
    monkeypatch.setitem(sys.modules, "aiofastnet", stand_in())
    assert engines.choose().name == "aiofastnet 1.2.0"
    assert caplog.messages == ["KRELAY_ENGINE cannot be 'uvloop'; it is `auto` or `asyncio`"]


async def test_an_aiofastnet_that_fails_is_used_no_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one whose methods have changed: an error that a caller handles, then asyncio."""

    async def create_connection(*args: object, **options: object) -> None:
        raise TypeError("unexpected keyword argument")

    module = stand_in(create_connection=create_connection)
    monkeypatch.setitem(sys.modules, "aiofastnet", module)
    listener = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    host, port = listener.sockets[0].getsockname()
    with pytest.raises(OSError, match="aiofastnet failed: unexpected keyword argument"):
        await engines.create_connection(asyncio.Protocol, host, port, socket.AF_INET)
    transport, _ = await engines.create_connection(asyncio.Protocol, host, port, socket.AF_INET)
    transport.abort()
    assert caplog.messages == [
        "asyncio's transports are used from now on: aiofastnet failed: unexpected keyword argument"
    ]
    listener.close()


def test_threads_that_choose_at_once_choose_one_engine() -> None:
    found: list[engines.Engine] = []
    threads = [threading.Thread(target=lambda: found.append(engines.choose())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
