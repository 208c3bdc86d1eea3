"""Headless Chromium, driven by its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
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


class Page:
    """A tab; `errors` holds the errors of its console."""

    def __init__(self, connection: ClientConnection, tasks: asyncio.TaskGroup) -> None:
        self.errors: list[str] = []
        self._connection = connection
        self._count = 0
        self._loaders: set[str] = set()
        self._loaded = asyncio.Event()
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.reading = tasks.create_task(self._read())

    async def _read(self) -> None:
        async for text in self._connection:
            message = json.loads(text)
            if "id" in message:
                self._answers.pop(message["id"]).set_result(message)
                continue
            params = message["params"]
            if message["method"] == "Page.lifecycleEvent" and params["name"] == "load":
                self._loaders.add(params["loaderId"])
                self._loaded.set()
            if message["method"] == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(params["exceptionDetails"]))
            elif message["method"] == "Runtime.consoleAPICalled" and params["type"] == "error":
                self.errors.append(json.dumps(params["args"]))
            elif message["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
                self.errors.append(params["entry"]["text"] + " " + params["entry"].get("url", ""))

    async def send(self, method: str, **params: Any) -> Any:
        """Send a command, and return its result."""
        self._count += 1
        answer = self._answers[self._count] = asyncio.get_running_loop().create_future()
        await self._connection.send(
            json.dumps({"id": self._count, "method": method, "params": params})
        )
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
        await self.value(
            f"""new Promise((resolve) => {{
                const look = () => {{
                    if ({condition}) {{ watcher.disconnect(); resolve(true); }}
                }};
                const watcher = new MutationObserver(look);
                const what = {{ subtree: true, childList: true, characterData: true,
                                attributes: true }};
                watcher.observe(document, what);
                look();
            }})"""
        )

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
        while result["loaderId"] not in self._loaders:
            self._loaded.clear()
            await self._loaded.wait()

    async def picture(self, path: Path, *, whole: bool = True) -> None:
        """Return a screenshot as PNG."""
        result = await self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        await asyncio.to_thread(path.write_bytes, base64.b64decode(result["data"]))


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
        "--no-proxy-server",
        "--hide-scrollbars",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        address = await _address(process)
        async with connect(address, **_PATIENT) as root:
            await root.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
            found = json.loads(await root.recv())["result"]["targetInfos"]
            tab = next(target["targetId"] for target in found if target["type"] == "page")
        base = address.partition("/devtools/")[0]
        url = f"{base}/devtools/page/{tab}"
        async with (
            connect(url, **_PATIENT) as connection,
            asyncio.TaskGroup() as tasks,
        ):
            page = Page(connection, tasks)
            assert process.stderr is not None
            log = tasks.create_task(process.stderr.read())  # a full pipe would stop the browser
            for domain in ("Page", "Runtime", "Log"):
                await page.send(f"{domain}.enable")
            await page.send("Page.setLifecycleEventsEnabled", enabled=True)
            yield page
            page.reading.cancel()
            log.cancel()
    finally:
        # Its helpers hold the pipe, too: all of its group must end.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()


async def _address(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    async for line in process.stderr:
        text = line.decode(errors="replace")
        if text.startswith("DevTools listening on "):
            return text.removeprefix("DevTools listening on ").strip()
    raise AssertionError("the browser did not start")
