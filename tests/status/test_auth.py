"""Authentication over TCP, also against pages of other sites in the user's browser."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.status.auth import is_local_host
from tests.status.serving import TOKEN, Service, client, service

BEARER = {"Authorization": f"Bearer {TOKEN}"}
JSON: dict[str, Any] = {"Content_Type": "application/json"}


async def status(
    made: Service, method: str, resource: str, data: bytes = b"", **headers: str
) -> int:
    """Return the status code of a bare request; headers are written with `_` for `-`."""
    address = made.listening.addresses[0]
    said = {"Host": str(address)}
    said.update({key.replace("_", "-"): value for key, value in headers.items()})
    reader, writer = await asyncio.open_connection(address.host, address.port)
    head = "".join(f"{key}: {value}\r\n" for key, value in said.items() if value)
    writer.write(
        f"{method} {resource} HTTP/1.1\r\n{head}Connection: close\r\n"
        f"Content-Length: {len(data)}\r\n\r\n".encode("latin-1")
        + data
    )
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return int(answer.split(b" ", 2)[1])


# -- a token -----------------------------------------------------------------------------------


async def test_a_token_is_required_for_everything_but_healthz() -> None:
    async with service(TOKEN) as made, client(made) as http:
        async with http.get("/healthz") as response:
            assert response.status == 200
        for resource in ("/", "/readyz", "/metrics", "/v1/status", "/v1/events", "/nope"):
            async with http.get(resource) as response:
                assert response.status == 401
                assert response.headers["WWW-Authenticate"].startswith("Bearer")
                assert "status.token" in (await response.json())["error"]["message"]
            async with http.get(resource, headers=BEARER) as response:
                assert response.status in (200, 404, 503)


@pytest.mark.parametrize(
    "shown",
    ["", "Bearer", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN}0", f"Bearer {TOKEN[:-1]}", TOKEN]
    + ["Bearer \xe9\xff"],
)
async def test_a_wrong_token_is_refused(shown: str) -> None:
    async with service(TOKEN) as made:
        assert await status(made, "GET", "/v1/status", Authorization=shown) == 401


async def test_a_token_in_the_query_works_only_for_the_dashboard_and_its_events() -> None:
    async with service(TOKEN) as made:
        assert await status(made, "GET", f"/?token={TOKEN}") == 303
        assert await status(made, "GET", "/?token=no") == 401
        assert await status(made, "GET", f"/v1/status?token={TOKEN}") == 401
        assert await status(made, "POST", f"/v1/echo?token={TOKEN}", **JSON) == 401
        async with client(made) as http:
            async with http.get(f"/v1/events?token={TOKEN}") as response:
                assert response.status == 200


async def test_a_token_in_the_query_becomes_a_cookie_that_is_not_the_token() -> None:
    async with service(TOKEN) as made, client(made) as http:
        async with http.get(f"/?token={TOKEN}", allow_redirects=False) as response:
            cookie = response.headers["Set-Cookie"]
            assert (response.status, response.headers["Location"]) == (303, "/")
        assert TOKEN not in cookie
        assert {"HttpOnly", "SameSite=Strict"} <= set(cookie.split("; "))
        for resource in ("/", "/v1/status", "/v1/events"):
            async with http.get(resource) as response:
                assert response.status == 200
    async with service(TOKEN[::-1]) as other:
        assert await status(other, "GET", "/v1/status", Cookie=cookie.partition(";")[0]) == 401


@pytest.fixture
async def cookie() -> str:
    """Return the cookie of a browser that has sent the token once."""
    async with service(TOKEN) as made, client(made) as http:
        async with http.get(f"/?token={TOKEN}", allow_redirects=False) as response:
            return response.headers["Set-Cookie"].partition(";")[0]


async def test_the_cookie_only_reads_what_the_dashboard_reads(cookie: str) -> None:
    async def nothing(body: Mapping[str, Any]) -> Any:
        raise AssertionError("it must not be asked")

    changing = [("POST", f"/v1/{name}") for name in ("plan", "reload", "stop", "echo")]
    handlers = dict.fromkeys([*changing, ("GET", "/v1/logs")], nothing)
    async with service(TOKEN, handlers) as made:
        for resource in ("/", "/v1/status", "/v1/status?x=1", "/metrics"):
            assert await status(made, "GET", resource, Cookie=cookie) == 200
        assert await status(made, "HEAD", "/", Cookie=cookie) == 200
        for method, resource in [*changing, ("GET", "/v1/logs"), ("GET", "/readyz"), ("GET", "/x")]:
            assert await status(made, method, resource, Cookie=cookie, **JSON, X_Krelay="1") == 403
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
            for resource in ("/", "/v1/status"):
                assert await status(made, method, resource, Cookie=cookie, X_Krelay="1") == 403
        for odd in ("//v1/plan", "/v1/status/../plan", "/v1/%70lan", "/v1/status%2f..%2fplan"):
            assert await status(made, "POST", odd, Cookie=cookie, X_Krelay="1") == 403
        # beside the cookie the token is still the token
        shown: dict[str, Any] = {"Cookie": cookie, "Authorization": f"Bearer {TOKEN}"}
        assert await status(made, "GET", "/readyz", **shown) == 503


async def test_the_cookie_is_not_accepted_as_a_token(cookie: str) -> None:
    secret = cookie.partition("=")[2]
    async with service(TOKEN) as made:
        assert (
            await status(made, "POST", "/v1/echo", Authorization=f"Bearer {secret}", **JSON) == 401
        )
        assert await status(made, "GET", f"/?token={secret}") == 401


# -- no token ----------------------------------------------------------------------------------


async def test_without_a_token_nothing_can_be_changed_over_tcp() -> None:
    async with service() as made:
        assert await status(made, "GET", "/v1/status") == 200
        assert await status(made, "POST", "/v1/echo", b"{}", Content_Type="application/json") == 403


async def test_an_unknown_host_name_is_refused() -> None:
    async with service() as made:
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil"):
            assert await status(made, "GET", "/v1/status", Host=host) == 421
            assert await status(made, "GET", "/", Host=host) == 421
        for host in ("localhost", "localhost:1", "127.0.0.1", "[::1]:80", "krelay.localhost"):
            assert await status(made, "GET", "/v1/status", Host=host) == 200
        assert await status(made, "GET", "/healthz", Host="evil.example") == 200
    async with service(TOKEN) as made:  # with the token, any host name works
        shown = f"Bearer {TOKEN}"
        found = await status(made, "GET", "/v1/status", Host="krelay:9527", Authorization=shown)
        assert found == 200


# -- other sites -------------------------------------------------------------------------------


async def test_a_foreign_origin_is_refused() -> None:
    async with service() as made:
        own = made.url
        assert await status(made, "GET", "/v1/status", Origin=own) == 200
        for odd in ("http://[", "http://[::1", "http://]", "[", "//", "http://a\u00b2@:x", " "):
            assert await status(made, "GET", "/v1/status", Origin=odd) == 403
        for other in ("https://evil.example", "null", own + "0", "http://127.0.0.1"):
            assert await status(made, "GET", "/v1/status", Origin=other) == 403


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded"])
async def test_a_post_that_a_form_could_send_is_refused(kind: str) -> None:
    async with service(TOKEN) as made:
        shown = {"Authorization": f"Bearer {TOKEN}", "Content_Type": kind}
        assert await status(made, "POST", "/v1/echo", b"{}", **shown) == 415
        assert await status(made, "POST", "/v1/echo", b"{}", **shown, X_Krelay="1") == 200
        shown["Content_Type"] = "application/json; charset=utf-8"
        assert await status(made, "POST", "/v1/echo", b"{}", **shown) == 200
        assert await status(made, "POST", "/v1/echo", b"{}", **shown, Origin="http://x") == 403


@given(st.text(max_size=30))
def test_any_host_header_is_local_or_not(host: str) -> None:
    assert is_local_host(host) in (True, False)


@given(st.from_regex(r"[a-z]{1,10}\.[a-z]{2,5}(:[0-9]{1,5})?", fullmatch=True))
def test_no_domain_is_local(host: str) -> None:
    assert is_local_host(host) is (host.partition(":")[0].endswith(".localhost"))
