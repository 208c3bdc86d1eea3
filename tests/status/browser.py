"""Headless Chromium, driven by its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
PROGRAM = next(filter(None, map(shutil.which, PROGRAMS)), None)
_PATIENT: dict[str, Any] = dict.fromkeys(
    ("proxy", "max_size", "compression", "open_timeout", "ping_interval")
)
"""The limits of time of websockets would end the connection to a browser on a busy machine."""


PATIENCE = 60.0
"""Seconds for an answer of the browser, or for its start."""


class NoAnswerError(Exception):
    """The browser does not answer."""


class Page:
    """A tab; `errors` holds the errors of its console."""

    def __init__(self, connection: ClientConnection) -> None:
        self.errors: list[str] = []
        self._connection = connection
        self._count = 0
        self._session: dict[str, str] = {}
        self._loaders: set[str] = set()
        self._loaded = asyncio.Event()
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._heard: deque[str] = deque(maxlen=20)

    async def attach(self) -> None:
        """Open the tab."""
        tab = await self.send("Target.createTarget", url="about:blank")
        found = await self.send("Target.attachToTarget", targetId=tab["targetId"], flatten=True)
        self._session = {"sessionId": found["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            await self.send(f"{domain}.enable")
        await self.send("Page.setLifecycleEventsEnabled", enabled=True)

    async def read(self) -> None:
        """Take answers and events until the connection ends."""
        async for text in self._connection:
            message = json.loads(text)
            if "id" in message:
                answer = self._answers.pop(message["id"])
                if not answer.done():
                    answer.set_result(message)
                continue
            method, params = message["method"], message["params"]
            self._heard.append(method)
            if method == "Page.lifecycleEvent" and params["name"] == "load":
                self._loaders.add(params["loaderId"])
                self._loaded.set()
            elif method == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(params["exceptionDetails"]))
            elif method == "Runtime.consoleAPICalled" and params["type"] == "error":
                self.errors.append(json.dumps(params["args"]))
            elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
                self.errors.append(params["entry"]["text"] + " " + params["entry"].get("url", ""))

    @asynccontextmanager
    async def _patience(self, step: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(PATIENCE):
                yield
        except TimeoutError:
            heard = " ".join([*self._heard, *self.errors])
            raise NoAnswerError(f"{step}: nothing for {PATIENCE:.0f} s; before: {heard}") from None

    async def send(self, method: str, **params: Any) -> Any:
        """Send a command, and return its result."""
        self._count += 1
        answer = self._answers[self._count] = asyncio.get_running_loop().create_future()
        command = {"id": self._count, "method": method, "params": params, **self._session}
        async with self._patience(f"{method} {params}"):
            await self._connection.send(json.dumps(command))
            message = await answer
        assert "error" not in message, message
        return message["result"]

    async def value(self, expression: str) -> Any:
        """Return the settled value of a script."""
        result = await self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until `condition` holds; it is evaluated whenever the page changes."""
        await self.value(_holds(condition))

    @asynccontextmanager
    async def shows(self, condition: str) -> AsyncIterator[None]:
        """Wait until `condition` holds because of what the block does, if only for a moment."""
        shown = f"window.shown{self._count}"
        await self.value(f"void ({shown} = {_holds(condition)})")
        yield
        await self.value(shown)

    async def shape(self, width: int, height: int, *, dark: bool = False, scale: float = 1) -> None:
        """Set the size of the window and the preferred colour scheme."""
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )
        scheme = "dark" if dark else "light"
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.send("Emulation.setEmulatedMedia", features=features)

    async def open(self, url: str) -> None:
        """Open a URL, and wait for the load event of its document.

        The empty document before it has one too, which a busy browser may send late.
        """
        result = await self.send("Page.navigate", url=url)
        assert "errorText" not in result, result
        async with self._patience(f"load event of {url}"):
            while result["loaderId"] not in self._loaders:
                self._loaded.clear()
                await self._loaded.wait()

    async def picture(self, path: Path, *, whole: bool = True) -> None:
        """Return a screenshot as PNG."""
        result = await self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        await asyncio.to_thread(path.write_bytes, base64.b64decode(result["data"]))


def _holds(condition: str) -> str:
    """Return the script of a promise that is kept as soon as `condition` holds."""
    return f"""new Promise((resolve) => {{
        const look = () => {{
            if ({condition}) {{ watcher.disconnect(); resolve(true); }}
        }};
        const watcher = new MutationObserver(look);
        const what = {{ subtree: true, childList: true, characterData: true, attributes: true }};
        watcher.observe(document, what);
        look();
    }})"""


@asynccontextmanager
async def browser(profile: Path) -> AsyncIterator[Page]:
    """Run a browser with one empty tab."""
    assert PROGRAM is not None
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        "--headless=new",
        "--no-sandbox",  # which root cannot have
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--no-default-browser-check",
        "--no-startup-window",
        "--no-proxy-server",
        "--hide-scrollbars",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    tasks: list[asyncio.Task[object]] = []
    try:
        try:
            async with asyncio.timeout(PATIENCE):
                address = await _address(process)
        except TimeoutError:
            raise NoAnswerError("the browser does not say where it listens") from None
        assert process.stderr is not None
        # A full pipe would stop the browser.
        tasks.append(asyncio.create_task(process.stderr.read()))
        async with connect(address, **_PATIENT) as connection:
            page = Page(connection)
            tasks.append(asyncio.create_task(page.read()))
            await page.attach()
            yield page
    finally:
        # Its helpers hold the pipe, too: all of its group must end.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await process.communicate()


async def _address(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    async for line in process.stderr:
        text = line.decode(errors="replace")
        if text.startswith("DevTools listening on "):
            return text.removeprefix("DevTools listening on ").strip()
    raise NoAnswerError("the browser did not start")
