"""The dashboard, in a real browser if there is one."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from krelay.cli.terminal.figures import size
from krelay.model import StatusConfig
from krelay.state.states import DirectState, PodConnectionState, State, Trouble
from krelay.status import Handler
from krelay.status.app import dashboard
from tests.state.said import said
from tests.status.browser import PROGRAM, Page, browser
from tests.status.reports import FORWARDS, NOW, forward
from tests.status.serving import TOKEN, Service, service

ROWS = "document.querySelectorAll('#forwards > tbody')"
NAMES = (
    f"[...{ROWS}].filter((row) => !row.hidden).map((row) => row.querySelector('th').textContent)"
)
ASIDE = "document.getElementById('aside').textContent"
VERDICT = "document.getElementById('verdict').textContent"
INJECTION = "<img src=x onerror=\"document.title='owned'\"><b>&amp;</b>"
CONNECTIONS = [
    {
        "client": "127.0.0.1:40001",
        "started": "2026-03-01T12:00:00+00:00",
        "program": "psql (pid 812)",
        "endpoint": "10.244.0.31:8080",
        "via": "pod web-6d9f7c5b4-x2x8k",
        "ended": None,
        "toRemoteBytes": 2048,
        "toLocalBytes": 1 << 20,
        "result": None,
        "reason": "",
        "opened": True,
    },
    {
        "client": "127.0.0.1:40000",
        "started": "2026-03-01T11:59:58+00:00",
        "program": "",
        "endpoint": None,
        "via": "",
        "ended": "2026-03-01T11:59:59+00:00",
        "toRemoteBytes": 0,
        "toLocalBytes": 0,
        "result": "no_stream",
        "reason": INJECTION,
        "opened": False,
    },
]


async def connections(body: Mapping[str, Any]) -> Any:
    """Answer with the same two connections for each target."""
    found = {"target": body["target"], "index": 0, "name": body["target"], "open": 2}
    return {"forwards": [{**found, "connections": CONNECTIONS}]}


ANSWERS: dict[tuple[str, str], Handler] = {("GET", "/v1/connections"): connections}


def test_the_dashboard_loads_no_other_file() -> None:
    text = dashboard()[0].decode()
    assert not re.findall(
        r"<link(?! id=\"icon\" rel=\"icon\" href=\"data:)|<script\s|@import|url\(", text
    )
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


def row(name: str) -> str:
    return f"document.getElementById('target-{name}')"


def cell(name: str, selector: str) -> str:
    return f"{row(name)}.querySelector('{selector}').textContent"


async def click(tab: Page, element: str) -> None:
    """Click with the mouse: only that lets a page copy."""
    await tab.value(f"{element}.scrollIntoView({{ block: 'center' }})")
    box = await tab.value(f"{element}.getBoundingClientRect().toJSON()")
    place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    for kind in ("mousePressed", "mouseReleased"):
        await tab.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)


async def press(tab: Page, key: str) -> None:
    """Press a key, as a user would."""
    text = {"text": key} if len(key) == 1 else {}
    code = {"Enter": 13, "Escape": 27, "ArrowDown": 40, "ArrowUp": 38}.get(key, 0)
    for kind in ("keyDown", "keyUp"):
        await tab.send(
            "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text
        )


async def paste(tab: Page) -> None:
    """Press Ctrl-V."""
    await tab.send(
        "Input.dispatchKeyEvent",
        type="keyDown",
        key="v",
        code="KeyV",
        modifiers=2,
        windowsVirtualKeyCode=86,
        commands=["paste"],
    )


class TestBrowser:
    pytestmark = pytest.mark.browser

    async def test_it_shows_targets_events_and_agents(self, tmp_path: Path) -> None:
        async with service(handlers=ANSWERS) as made:
            made.bus.publish(said("tunnel", "p1t1: resumed"))
            way = DirectState(
                "shop", (PodConnectionState("shop/debug-0", "spdy", 3, True),), "no b"
            )
            made.live.now = dataclasses.replace(made.live.now, direct=(way,))
            async with opened(made, tmp_path) as tab:
                assert await tab.value(f"{ROWS}.length") == len(FORWARDS)
                assert await tab.value(VERDICT) == "3 of 6 ready"
                text = await tab.value(f"{row('shop-db')}.textContent")
                for part in (
                    "shop-db",
                    "degraded",
                    "CrashLoopBackOff",
                    "localhost:5432",
                    "sts/postgres",
                ):
                    assert part in text
                await tab.until("document.getElementById('events').textContent.includes('resumed')")
                header = await tab.value("document.querySelector('header').textContent")
                for part in ("/home/me/shop/krelay.yaml", "in sync"):
                    assert part in header
                agents = await tab.value("document.getElementById('agents').textContent")
                for part in (
                    "relays/krelay-server-7k2xw",
                    "12.7 ms",
                    "p1t3 down",
                    "staging",
                    "direct into pods",
                    "shop/debug-0",
                    "3 streams · stalled",
                    "no b",
                ):
                    assert part in agents
                assert tab.errors == []

    async def test_what_does_not_work_comes_first_in_the_order_of_the_file(
        self, tmp_path: Path
    ) -> None:
        async with service(handlers=ANSWERS) as made, opened(made, tmp_path) as tab:
            names = ["legacy", "shop-db", "cache", "web", "api[9000:http]", "dns"]
            assert await tab.value(NAMES) == names
            # What has the focus keeps it while its row moves.
            await tab.value(f"{row('web')}.querySelector('.more').focus()")
            made.live.change("web", state=State.FAILED, reason="the endpoint refuses")
            made.bus.publish(said("state", "failed: the endpoint refuses", target="web"))
            await tab.until(f"{NAMES}[0] === 'web'")
            assert await tab.value(NAMES) == ["web", *(name for name in names if name != "web")]
            assert await tab.value("document.activeElement.closest('tbody').id") == "target-web"
            made.live.change("web", state=State.READY, reason="")
            await tab.until(f"{NAMES}[3] === 'web'")
            assert await tab.value(NAMES) == names
            assert await tab.value("document.activeElement.closest('tbody').id") == "target-web"

    async def test_a_change_appears_without_a_reload(self, tmp_path: Path) -> None:
        async with service(handlers=ANSWERS) as made, opened(made, tmp_path) as tab:
            await tab.value("window.stays = true")
            assert await tab.value(cell("web", ".state span")) == "ready"
            await tab.until(f"{cell('web', '.rates .back')} === 'idle'")
            made.live.change("web", state=State.FAILED, reason="the endpoint refuses")
            made.bus.publish(said("state", "failed: the endpoint refuses", target="web"))
            await tab.until(f"{cell('web', '.state span')} === 'failed'")
            assert await tab.value(cell("web", ".why")) == "the endpoint refuses"
            await tab.until(
                "document.querySelector('#events li').textContent.includes('web: failed: the end')"
            )
            assert await tab.value(VERDICT) == "2 of 6 ready"
            traffic = dataclasses.replace(FORWARDS[0].traffic, to_local_bytes=1 << 40)
            rate = f"/↓ .*[kMGT]B.s/.test({cell('web', '.rates .number')})"
            moving = f"!{row('web')}.querySelector('.spark').matches('.idle')"
            async with tab.shows(rate), tab.shows(moving):
                made.live.change("web", traffic=traffic)
            made.live.now = dataclasses.replace(
                made.live.now, forwards=(forward("new"), *made.live.now.forwards[2:])
            )
            await tab.until(f"{ROWS}.length === 5")
            assert "new" in await tab.value(NAMES)
            assert await tab.value("window.stays") is True
            assert tab.errors == []

    async def test_a_slash_leads_to_the_filter_and_escape_ends_it(self, tmp_path: Path) -> None:
        async with service(handlers=ANSWERS) as made, opened(made, tmp_path) as tab:
            await press(tab, "/")
            assert await tab.value("document.activeElement.id") == "filter"
            await tab.send("Input.insertText", text="SVC kube-dns")
            assert await tab.value(NAMES) == ["dns"]
            assert await tab.value(ASIDE) == "1 of 6 targets"
            await tab.send("Input.insertText", text=" 127.0.0.1:9")
            assert await tab.value(NAMES) == []
            assert not await tab.value("document.getElementById('unmatched').hidden")
            await press(tab, "Escape")
            assert len(await tab.value(NAMES)) == 6
            await tab.send("Input.insertText", text="postgres")
            await press(tab, "Enter")
            assert await tab.value("document.activeElement.ariaExpanded") == "true"
            await tab.value("document.getElementById('filter').select()")
            await tab.send("Input.insertText", text="nowhere")
            await tab.value("document.getElementById('clear').click()")
            assert len(await tab.value(NAMES)) == 6
            await press(tab, "ArrowDown")
            await press(tab, "ArrowDown")
            assert await tab.value("document.activeElement.closest('tbody').id") == "target-shop-db"
            await tab.value("document.querySelector('#chips .pending').click()")
            assert await tab.value(NAMES) == ["cache"]
            await tab.value("document.querySelector('#chips .pending').click()")
            assert len(await tab.value(NAMES)) == 6
            assert tab.errors == []

    async def test_the_verdict_leads_to_the_first_failure(self, tmp_path: Path) -> None:
        async with service(handlers=ANSWERS) as made:
            reason = "cannot listen on 127.0.0.1:2222: Address already in use"
            trouble = Trouble(reason, "pick `:22` or `kill", NOW)
            made.live.change("legacy", last_error=trouble)
            made.live.change("web", last_error=Trouble("connection refused", "start it", NOW))
            async with opened(made, tmp_path) as tab:
                await tab.value("document.getElementById('filter').value = 'web'; filter()")
                await tab.value("document.getElementById('verdict').click()")
                assert await tab.value("document.activeElement.closest('tbody').id") == (
                    "target-legacy"
                )
                assert await tab.value(cell("legacy", ".trouble p")) == trouble.message
                assert await tab.value(cell("legacy", ".trouble .hint")) == "pick :22 or `kill"
                assert await tab.value(cell("legacy", ".trouble .hint code")) == ":22"
                # The last error stays with a target that works again.
                await tab.value(f"{row('web')}.querySelector('.more').click()")
                found = await tab.value(cell("web", ".trouble"))
                assert re.fullmatch(
                    r"Last error, \d+ (s|min) ago: connection refusedstart it", found
                )
                for name in ("legacy", "shop-db", "cache"):
                    made.live.change(name, state=State.READY)
                await tab.until(f"{VERDICT} === 'all 6 ready'")
                assert not await tab.value(
                    "document.getElementById('verdict').hasAttribute('href')"
                )

    async def test_the_title_and_the_icon_show_the_verdict(self, tmp_path: Path) -> None:
        icon = "document.getElementById('icon').href"
        async with service(handlers=ANSWERS) as made, opened(made, tmp_path) as tab:
            title = "✗ 3 of 6 ready · shop/krelay.yaml"
            await tab.until(f"document.title === '{title}'")
            failed = await tab.value(icon)
            for name in ("legacy", "shop-db", "cache"):
                made.live.change(name, state=State.READY)
            await tab.until("document.title === '✓ all 6 ready · shop/krelay.yaml'")
            assert await tab.value(icon) != failed
            assert (await tab.value(icon)).startswith("data:image/svg+xml,")
            assert tab.errors == []

    async def test_a_target_that_speaks_http_is_a_link_and_others_are_copied(
        self, tmp_path: Path
    ) -> None:
        async with service(handlers=ANSWERS) as made:
            made.live.change("web", url="http://127.0.0.1:8080/")
            async with opened(made, tmp_path) as tab:
                link = f"{row('web')}.querySelector('a.address')"
                assert await tab.value(f"{link}.href") == "http://127.0.0.1:8080/"
                assert await tab.value(f"{link}.textContent") == "127.0.0.1:8080"
                assert await tab.value(f"{link}.target") == "_blank"
                assert "noopener" in await tab.value(f"{link}.rel")
                assert await tab.value(f"{row('dns')}.querySelector('a.address')") is None
                for clipboard in ("the browser's", "none"):
                    if clipboard == "none":  # as on a page of another machine, without TLS
                        await tab.value(
                            "Object.defineProperty(navigator, 'clipboard', { value: undefined })"
                        )
                    for name, button, address in (
                        ("web", "button.copy", "127.0.0.1:8080"),
                        ("shop-db", "button.address", "localhost:5432"),
                    ):
                        async with tab.shows(f"{ASIDE} === 'copied {address}'"):
                            await click(tab, f"{row(name)}.querySelector('{button}')")
                        await press(tab, "/")
                        await paste(tab)
                        pasted = "document.getElementById('filter').value"
                        assert await tab.value(pasted) == address
                        await press(tab, "Escape")
                assert tab.errors == []

    async def test_a_row_opens_to_its_connections(self, tmp_path: Path) -> None:
        async with service(handlers=ANSWERS) as made, opened(made, tmp_path) as tab:
            button = f"{row('web')}.querySelector('.more')"
            assert await tab.value(f"{button}.getAttribute('aria-label')") == "Details of web"
            assert await tab.value(f"{button}.ariaExpanded") == "false"
            await tab.value(f"{row('web')}.querySelector('.row').click()")
            assert await tab.value(f"{button}.ariaExpanded") == "true"
            controlled = f"document.getElementById({button}.getAttribute('aria-controls'))"
            assert await tab.value(f"{controlled} !== null")
            await tab.until(f"{row('web')}.querySelectorAll('.ended tbody tr').length === 2")
            lines = f"[...{row('web')}.querySelectorAll('.ended tbody tr')]"
            live, ended = await tab.value(f"{lines}.map((line) => line.textContent)")
            for part in ("psql (pid 812)", ":40001", "pod web-6d9f7c5b4-x2x8k", "1.0 MB", "open"):
                assert part in live
            for part in ("127.0.0.1:40000", "1 s", f"not connected: {INJECTION}"):
                assert part in ended
            things = await tab.value(cell("web", ".things"))
            for part in ("svc/web:80", "clusterIP", "agent", "1042 connections", "7 reset"):
                assert part in things
            await tab.value(f"{button}.click()")
            assert await tab.value(f"{row('web')}.querySelector('.detail')") is None
            assert tab.errors == []

    async def test_sizes_are_those_of_the_terminal(self, tmp_path: Path) -> None:
        counts = [0, 999, 1000, 1234, 9949, 9951, 999_499, 999_501, 340 * 10**6, 5 * 10**15]
        async with service(handlers=ANSWERS) as made, opened(made, tmp_path) as tab:
            assert await tab.value(f"{counts}.map(size)") == list(map(size, counts))

    @pytest.mark.parametrize("width", [400, 1280, 2560])
    async def test_an_address_never_wraps(self, width: int, tmp_path: Path) -> None:
        name, reason = "a-service-with-a-long-name", "no pod is ready: " + "b " * 200
        listen = ("[2001:db8:1234:5678:9abc:def0:1234:5678]:65535",)
        async with service(handlers=ANSWERS) as made:
            forwards = [forward(f"t{index}", listen=("127.0.0.1:65535",)) for index in range(9)]
            forwards += [
                forward(name, State.FAILED, reason=reason, listen=("127.0.0.1:65535",)),
                forward("quiet", State.DEGRADED, reason=reason, live=3),
                forward("wide", listen=listen, to="svc/" + "c" * 60, url="http://[::1]:65535/"),
            ]
            made.live.now = dataclasses.replace(made.live.now, forwards=tuple(forwards))
            async with opened(made, tmp_path, width=width) as tab:
                lines = """[...document.querySelectorAll('.address')].map((one) => [
                    one.getClientRects().length, one.getBoundingClientRect().height < 26,
                    one.scrollWidth <= one.clientWidth + 1])"""
                assert await tab.value(lines) == [[1, True, True]] * 12
                assert await tab.value("document.documentElement.scrollWidth") == width
                if width > 400:
                    heights = (
                        f"new Set([...{ROWS}].map((one) => Math.round(one.offsetHeight))).size"
                    )
                    assert await tab.value(heights) == 1
                    assert await tab.value(f"{ROWS}[11].getBoundingClientRect().bottom") < 900

    async def test_sixty_targets_are_rows_of_one_line(self, tmp_path: Path) -> None:
        forwards = tuple(forward(f"target-{number}", index=0) for number in range(60))
        async with service(handlers=ANSWERS) as made:
            made.live.now = dataclasses.replace(made.live.now, forwards=forwards)
            async with opened(made, tmp_path, width=1280) as tab:
                assert await tab.value(f"{ROWS}[59].getBoundingClientRect().bottom") < 2400
                await press(tab, "/")
                await tab.send("Input.insertText", text="target-42")
                assert await tab.value(NAMES) == ["target-42"]
                # The filter stays in sight while the page scrolls.
                await press(tab, "Escape")
                await tab.value("scrollTo(0, 1500)")
                assert await tab.value(
                    "document.getElementById('filter').getBoundingClientRect().top >= 0"
                )

    async def test_a_reload_of_the_page_goes_on_where_it_was(self, tmp_path: Path) -> None:
        async with service(handlers=ANSWERS) as made, opened(made, tmp_path) as tab:
            await press(tab, "/")
            await tab.send("Input.insertText", text="web")
            await tab.value(f"{row('web')}.querySelector('.more').click()")
            await tab.open(f"{made.url}/")
            await tab.until(f"{ROWS}.length")
            assert await tab.value(NAMES) == ["web"]
            assert await tab.value(f"{row('web')}.querySelector('.detail') !== null")

    async def test_a_link_to_a_target_opens_it(self, tmp_path: Path) -> None:
        async with service(handlers=ANSWERS) as made:
            async with opened(made, tmp_path, query="#target-dns") as tab:
                await tab.until(f"{row('dns')}.querySelector('.detail')")
                assert await tab.value("document.activeElement.closest('tbody').id") == "target-dns"

    async def test_the_details_of_an_only_target_are_open(self, tmp_path: Path) -> None:
        async with service(handlers=ANSWERS) as made:
            made.live.now = dataclasses.replace(made.live.now, forwards=(forward("web"),))
            async with opened(made, tmp_path) as tab:
                await tab.until(f"{row('web')}.querySelector('.ended tbody')")
                assert await tab.value(VERDICT) == "ready"

    async def test_a_draining_forward_does_not_count_for_the_verdict(self, tmp_path: Path) -> None:
        staying, old = forward("web"), forward("old", State.DRAINING, index=1)
        async with service(handlers=ANSWERS) as made:
            made.live.now = dataclasses.replace(made.live.now, forwards=(staying, old))
            async with opened(made, tmp_path) as tab:
                assert made.live.now.ready
                await tab.until(f"{VERDICT} === 'ready'")
                made.live.now = dataclasses.replace(made.live.now, forwards=(old,))
                await tab.until(f"{VERDICT} === 'ending'")
                assert not made.live.now.ready
                made.live.now = dataclasses.replace(made.live.now, forwards=())
                await tab.until(f"{VERDICT} === 'starting'")

    async def test_a_file_out_of_sync_is_shown_with_its_problems(self, tmp_path: Path) -> None:
        async with service(handlers=ANSWERS) as made, opened(made, tmp_path) as tab:
            problem = {"line": 4, "column": 7, "message": "`svx/` is no type", "path": None}
            error = {"message": "1 problem", "path": "krelay.yaml", "problems": [problem]}
            file = dataclasses.replace(
                made.live.now.file, in_step=False, since=datetime.now(UTC), error=error
            )
            made.live.now = dataclasses.replace(made.live.now, file=file)
            await tab.until("!document.getElementById('file').hidden")
            told = await tab.value("document.getElementById('file').textContent")
            assert "krelay.yaml:4:7: `svx/` is no type" in told
            facts = "document.querySelector('#facts .wrong').textContent"
            assert await tab.value(facts) == "out of sync"

    async def test_text_of_krelay_is_never_html(self, tmp_path: Path) -> None:
        async with service(handlers=ANSWERS) as made:
            evil = forward(INJECTION, State.FAILED, reason=INJECTION, to=INJECTION, via=INJECTION)
            made.live.now = dataclasses.replace(made.live.now, forwards=(evil,))
            made.bus.publish(said("state", INJECTION, target=INJECTION))
            async with opened(made, tmp_path) as tab:
                await tab.until("document.querySelector('#events li time')")
                assert await tab.value(f"{ROWS}[0].querySelector('th').textContent") == INJECTION
                await tab.until(f"{ROWS}[0].querySelector('.ended tbody')")
                assert (
                    await tab.value("document.querySelectorAll('main img, main b i').length") == 0
                )
                assert "owned" not in await tab.value("document.title")
                assert tab.errors == []

    async def test_a_lost_connection_is_shown_and_restored(self, tmp_path: Path) -> None:
        async with service(handlers=ANSWERS) as made, opened(made, tmp_path) as tab:
            address = made.listening.addresses[0]
            await made.listening.apply(StatusConfig())
            await tab.until("!document.getElementById('lost').hidden")
            lost = await tab.value("document.getElementById('lost').textContent")
            assert lost.startswith("No connection to krelay; this data is ")
            title = "✗ no connection · shop/krelay.yaml"
            assert await tab.value("document.title") == title
            await made.listening.apply(StatusConfig((address.host, address.port)))
            await tab.until("document.getElementById('lost').hidden")
            made.bus.publish(said("state", "heard again"))
            await tab.until("document.getElementById('events').textContent.includes('heard again')")

    async def test_a_token_in_the_query_opens_it(self, tmp_path: Path) -> None:
        async with service(TOKEN, ANSWERS) as made:
            made.bus.publish(said("agent", "serves"))
            async with opened(made, tmp_path, query=f"?token={TOKEN}") as tab:
                await tab.until("document.getElementById('events').textContent.includes('serves')")
                assert await tab.value("location.href") == f"{made.url}/"
                assert TOKEN not in await tab.value("document.cookie")
                assert tab.errors == []

    @pytest.mark.parametrize("width", [400, 700, 1180, 2400])
    async def test_nothing_is_wider_than_the_window(self, width: int, tmp_path: Path) -> None:
        long = forward("a" * 63, State.FAILED, reason="b" * 300, to="svc/" + "c" * 200)
        async with service(handlers=ANSWERS) as made:
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
        async with service(handlers=ANSWERS) as made, opened(made, tmp_path) as tab:
            background = "getComputedStyle(document.body).backgroundColor"
            made.live.change("legacy", last_error=Trouble("taken", "`kill` it", NOW))
            for name in ("legacy", "web"):
                await tab.value(f"{row(name)}.querySelector('.more').click()")
                await tab.until(f"{row(name)}.querySelector('.ended tbody')")
            await tab.until(f"{row('legacy')}.querySelector('.hint code')")
            found = await tab.value(background)
            assert await tab.value(contrast) >= 4.5
            await tab.shape(1180, 900, dark=True)
            await tab.until(f"{background} !== '{found}'")
            assert await tab.value(contrast) >= 4.5

    async def test_a_screen_reader_can_name_its_parts(self, tmp_path: Path) -> None:
        async with service(handlers=ANSWERS) as made, opened(made, tmp_path, width=400) as tab:
            nodes = (await tab.send("Accessibility.getFullAXTree"))["nodes"]
            roles = [node.get("role", {}).get("value") for node in nodes if not node["ignored"]]
            for role in ("table", "rowheader", "columnheader", "main", "heading", "status", "log"):
                assert role in roles, role
            named = {node["name"]["value"] for node in nodes if node.get("name", {}).get("value")}
            assert "Targets and their state" in named
            assert await tab.value("document.getElementById('said').ariaLive") == "polite"
