"""The dashboard, in a real browser if there is one."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from krelay.model import StatusConfig
from krelay.state.states import State
from krelay.status.app import dashboard
from tests.state.said import said
from tests.status.browser import PROGRAM, Page, browser
from tests.status.reports import FORWARDS, forward
from tests.status.serving import TOKEN, Service, service

ROWS = "document.querySelectorAll('#forwards tbody tr')"
VERDICT = "document.getElementById('verdict').textContent"
INJECTION = "<img src=x onerror=\"document.title='owned'\"><b>&amp;</b>"


def test_the_dashboard_loads_no_other_file() -> None:
    text = dashboard()[0].decode()
    assert not re.findall(r"<link(?! rel=\"icon\" href=\"data:)|<script\s|@import|url\(", text)
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "innerHTML" not in text
    assert not re.findall(r"\s(style|on\w+)=", text)


def test_the_policy_allows_only_the_inline_style_and_script() -> None:
    content, policy = dashboard()
    for kind in ("style", "script"):
        (inline,) = re.findall(rf"<{kind}>(.*?)</{kind}>", content.decode(), re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


@pytest.fixture(autouse=True)
def there_is_a_browser(request: pytest.FixtureRequest) -> None:
    """Skip without a browser, but fail in CI."""
    if request.node.get_closest_marker("browser") and PROGRAM is None:
        if os.environ.get("KRELAY_TEST_ALL"):
            pytest.fail("no chromium")
        pytest.skip("no chromium")


@asynccontextmanager
async def opened(
    made: Service, profile: Path, *, width: int = 1180, dark: bool = False, query: str = ""
) -> AsyncIterator[Page]:
    """Open the dashboard, and wait until it shows something."""
    async with browser(profile) as tab:
        await tab.shape(width, 900, dark=dark)
        await tab.open(f"{made.url}/{query}")
        await tab.until(f"{ROWS}.length")
        yield tab


def cell(row: int, selector: str) -> str:
    return f"{ROWS}[{row}].querySelector('{selector}').textContent"


class TestBrowser:
    pytestmark = pytest.mark.browser

    async def test_it_shows_targets_events_and_agents(self, tmp_path: Path) -> None:
        async with service() as made:
            made.bus.publish(said("tunnel", "p1t1: resumed"))
            async with opened(made, tmp_path) as tab:
                assert await tab.value(f"{ROWS}.length") == len(FORWARDS)
                assert await tab.value(VERDICT) == "3 of 6 ready"
                text = await tab.value(f"{ROWS}[3].textContent")
                for part in (
                    "shop-db",
                    "degraded",
                    "CrashLoopBackOff",
                    "[::1]:5432",
                    "sts/postgres",
                ):
                    assert part in text
                await tab.until("document.getElementById('events').textContent.includes('resumed')")
                header = await tab.value("document.querySelector('header').textContent")
                assert "/home/me/shop/krelay.yaml, in sync" in header
                agents = await tab.value("document.getElementById('agents').textContent")
                for part in ("relays/krelay-server-7k2xw", "12.7 ms", "p1t3 down", "staging"):
                    assert part in agents
                assert tab.errors == []

    async def test_a_change_appears_without_a_reload(self, tmp_path: Path) -> None:
        async with service() as made, opened(made, tmp_path) as tab:
            await tab.value("window.stays = true")
            assert await tab.value(cell(0, ".state")) == "ready"
            made.live.change("web", state=State.FAILED, reason="the endpoint refuses")
            made.bus.publish(said("state", "failed: the endpoint refuses", target="web"))
            await tab.until(f"{cell(0, '.state')} === 'failed'")
            assert await tab.value(cell(0, ".why")) == "the endpoint refuses"
            await tab.until(
                "document.querySelector('#events li').textContent.includes('web: failed: the end')"
            )
            assert await tab.value(VERDICT) == "2 of 6 ready"
            traffic = dataclasses.replace(FORWARDS[0].traffic, to_local_bytes=1 << 40)
            made.live.change("web", traffic=traffic)
            await tab.until(f"!/ 0 B|–/.test({cell(0, '.rate span span')})")
            made.live.now = dataclasses.replace(
                made.live.now, forwards=(forward("new"), *made.live.now.forwards[2:])
            )
            await tab.until(f"{cell(0, 'th')} === 'new'")
            assert await tab.value(f"{ROWS}.length") == 5
            assert await tab.value("window.stays") is True
            assert tab.errors == []

    async def test_a_draining_forward_does_not_count_for_the_verdict(self, tmp_path: Path) -> None:
        staying, old = forward("web"), forward("old", State.DRAINING, index=1)
        async with service() as made:
            made.live.now = dataclasses.replace(made.live.now, forwards=(staying, old))
            async with opened(made, tmp_path) as tab:
                assert made.live.now.ready
                await tab.until(f"{VERDICT} === 'all 1 ready'")
                made.live.now = dataclasses.replace(made.live.now, forwards=(old,))
                await tab.until(f"{VERDICT} === 'ending'")
                assert not made.live.now.ready
                made.live.now = dataclasses.replace(made.live.now, forwards=())
                await tab.until(f"{VERDICT} === 'starting'")

    async def test_a_file_out_of_sync_is_shown_with_its_problems(self, tmp_path: Path) -> None:
        async with service() as made, opened(made, tmp_path) as tab:
            problem = {"line": 4, "column": 7, "message": "`svx/` is no type", "path": None}
            error = {"message": "1 problem", "path": "krelay.yaml", "problems": [problem]}
            file = dataclasses.replace(
                made.live.now.file, in_step=False, since=datetime.now(UTC), error=error
            )
            made.live.now = dataclasses.replace(made.live.now, file=file)
            await tab.until("!document.getElementById('file').hidden")
            told = await tab.value("document.getElementById('file').textContent")
            assert "krelay.yaml:4:7: `svx/` is no type" in told

    async def test_text_of_krelay_is_never_html(self, tmp_path: Path) -> None:
        async with service() as made:
            evil = forward(INJECTION, State.FAILED, reason=INJECTION, to=INJECTION, via=INJECTION)
            made.live.now = dataclasses.replace(made.live.now, forwards=(evil,))
            made.bus.publish(said("state", INJECTION, target=INJECTION))
            async with opened(made, tmp_path) as tab:
                await tab.until("document.querySelector('#events li time')")
                assert await tab.value(cell(0, "th")) == INJECTION
                assert (
                    await tab.value("document.querySelectorAll('#forwards img, main b i').length")
                    == 0
                )
                assert await tab.value("document.title") == "(1) krelay"
                assert tab.errors == []

    async def test_a_lost_connection_is_shown_and_restored(self, tmp_path: Path) -> None:
        async with service() as made, opened(made, tmp_path) as tab:
            address = made.listening.addresses[0]
            await made.listening.apply(StatusConfig())
            await tab.until("!document.getElementById('lost').hidden")
            lost = await tab.value("document.getElementById('lost').textContent")
            assert lost.startswith("No connection to krelay; this data is ")
            await made.listening.apply(StatusConfig((address.host, address.port)))
            await tab.until("document.getElementById('lost').hidden")
            made.bus.publish(said("state", "heard again"))
            await tab.until("document.getElementById('events').textContent.includes('heard again')")

    async def test_a_token_in_the_query_opens_it(self, tmp_path: Path) -> None:
        async with service(TOKEN) as made:
            made.bus.publish(said("agent", "serves"))
            async with opened(made, tmp_path, query=f"?token={TOKEN}") as tab:
                await tab.until("document.getElementById('events').textContent.includes('serves')")
                assert await tab.value("location.href") == f"{made.url}/"
                assert TOKEN not in await tab.value("document.cookie")
                assert tab.errors == []

    @pytest.mark.parametrize("width", [400, 700, 1180, 2400])
    async def test_nothing_is_wider_than_the_window(self, width: int, tmp_path: Path) -> None:
        long = forward("a" * 63, State.FAILED, reason="b" * 300, to="svc/" + "c" * 200)
        async with service() as made:
            made.live.now = dataclasses.replace(made.live.now, forwards=(*FORWARDS, long))
            made.bus.publish(said("reload", "d" * 300))
            async with opened(made, tmp_path, width=width) as tab:
                await tab.until("document.querySelector('#events li time')")
                assert await tab.value("document.documentElement.scrollWidth") == width
                outside = f"""[...document.querySelectorAll('body :not(thead *)')]
                    .filter((element) => {{
                    const box = element.getBoundingClientRect();
                    return box.width > 1 && (box.right > {width} || box.left < 0);
                }}).map((element) => element.outerHTML.slice(0, 100))"""
                assert await tab.value(outside) == []

    async def test_it_follows_a_dark_colour_scheme(self, tmp_path: Path) -> None:
        # the contrast that WCAG wants of text, for all of it
        contrast = """(() => {
            const light = (color) => {
                const parts = color.match(/[\\d.]+/g).slice(0, 3).map(Number).map((value) => {
                    const part = value / 255;
                    return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
                });
                return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
            };
            const behind = (element) => {
                for (let at = element; at; at = at.parentElement) {
                    const color = getComputedStyle(at).backgroundColor;
                    if (!/, 0\\)$/.test(color)) return light(color);
                }
            };
            return Math.min(...[...document.querySelectorAll('body *')]
                .filter((element) => [...element.childNodes].some(
                    (node) => node.nodeType === 3 && node.textContent.trim())
                    && !["SCRIPT", "STYLE"].includes(element.tagName))
                .map((element) => {
                    const both = [light(getComputedStyle(element).color), behind(element)];
                    return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
                }));
        })()"""
        async with service() as made, opened(made, tmp_path) as tab:
            background = "getComputedStyle(document.body).backgroundColor"
            found = await tab.value(background)
            assert await tab.value(contrast) >= 4.5
            await tab.shape(1180, 900, dark=True)
            await tab.until(f"{background} !== '{found}'")
            assert await tab.value(contrast) >= 4.5

    async def test_a_screen_reader_can_name_its_parts(self, tmp_path: Path) -> None:
        async with service() as made, opened(made, tmp_path, width=400) as tab:
            nodes = (await tab.send("Accessibility.getFullAXTree"))["nodes"]
            roles = [node.get("role", {}).get("value") for node in nodes if not node["ignored"]]
            for role in ("table", "rowheader", "columnheader", "main", "heading", "status", "log"):
                assert role in roles, role
            named = {node["name"]["value"] for node in nodes if node.get("name", {}).get("value")}
            assert "Targets and their state" in named
            assert await tab.value("document.getElementById('verdict').ariaLive") == "polite"
