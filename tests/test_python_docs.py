"""The examples of docs/python.md, as they stand but for where they lead: an embedded agent."""

from __future__ import annotations

import asyncio
import functools
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import krelay
from tests import rig
from tests.integration.product import environment

pytestmark = pytest.mark.process

TEXT = (Path(__file__).parents[1] / "docs" / "python.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
SCRIPTS = [text for text in EXAMPLES if "def test_" not in text]
TESTS = [text for text in EXAMPLES if "def test_" in text]


class Hello(BaseHTTPRequestHandler):
    """A page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    """That of a page."""
    with ThreadingHTTPServer((rig.HOST, 0), Hello) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def led(text: str, port: int) -> str:
    """The example with its targets on this machine."""
    return re.sub(r'"(svc|sts)/\S+ :\d+"', f'"ip/127.0.0.1 :{port}"', text)


def test_there_are_examples_of_everything() -> None:
    assert (len(SCRIPTS), len(TESTS)) == (4, 2)


@pytest.mark.parametrize(
    ("example", "shown"),
    list(
        zip(
            SCRIPTS,
            (
                r"200\n127.0.0.1 \d+",
                r"HTTP/1.0 200 OK",
                r"200",
                r"db: failed: refused: the agent reached the host, but",
            ),
            strict=True,
        )
    ),
    ids=["with", "async with", "notebook", "errors"],
)
def test_a_script(
    example: str,
    shown: str,
    port: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(krelay, "relay", functools.partial(krelay.relay, embedded=True))
    exec(compile(led(example, port), "docs/python.md", "exec"), {})
    assert re.match(shown, capsys.readouterr().out)


async def test_the_tests(port: int, tmp_path: Path) -> None:
    for number, example in enumerate(TESTS):
        (tmp_path / f"test_{number}.py").write_text(led(example, port))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-q", "-p", "krelay.pytest_plugin"),
        *("-p", "no:cacheprovider", "--krelay-embedded"),
        cwd=tmp_path,
        env=environment(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert "3 passed" in out.decode(), out.decode()
