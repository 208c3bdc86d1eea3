"""The routes: their answers, formats and errors."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from krelay.errors import KrelayError
from krelay.state.states import State
from krelay.status import app as module
from tests.status.reports import Live
from tests.status.serving import TOKEN, client, echo, service

BEARER = {"Authorization": f"Bearer {TOKEN}"}


async def test_healthz_answers_as_text_and_json() -> None:
    async with service() as made, client(made) as http:
        async with http.get("/healthz") as response:
            assert (response.status, await response.text()) == (200, "ok\n")
        async with http.get("/healthz", headers={"Accept": "application/json"}) as response:
            assert await response.json() == {"status": "ok"}
        async with http.head("/healthz") as response:
            assert response.status == 200


async def test_readyz_answers_503_until_ready_and_404_for_an_unknown_target() -> None:
    async with service() as made, client(made) as http:
        async with http.get("/readyz") as response:
            found = await response.json()
            assert (response.status, found["ready"]) == (503, False)
            assert [one["target"] for one in found["notReady"]] == ["shop-db", "legacy", "cache"]
            assert found["notReady"][0]["reason"].startswith("no pod of sts/postgres is ready")
        async with http.get("/readyz?target=web&target=api") as response:
            assert (response.status, await response.json()) == (
                200,
                {"ready": True, "reason": "", "notReady": []},
            )
        async with http.get("/readyz?target=web&target=cache") as response:
            assert response.status == 503
        made.live.change("cache", state=State.READY)
        async with http.get("/readyz?target=web&target=cache") as response:
            assert response.status == 200
        async with http.get("/readyz?target=web&target=nope") as response:
            assert response.status == 404
            assert (await response.json())["error"]["message"] == "no target `nope`"


async def test_metrics_answers_in_the_preferred_format() -> None:
    async with service() as made, client(made) as http:
        async with http.get("/metrics") as response:
            assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert 'krelay_forward_open_streams{forward="web",target="web"} 14.0' in (
                await response.text()
            )
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        async with http.get("/metrics", headers=accept) as response:
            assert response.headers["Content-Type"].startswith("application/openmetrics-text")
            assert (await response.text()).endswith("# EOF\n")


async def test_status_is_the_snapshot() -> None:
    schema = Path(__file__).parents[2] / "schema" / "status.schema.json"
    async with service() as made, client(made) as http:
        async with http.get("/v1/status") as response:
            found = await response.json()
    assert found == json.loads(json.dumps(made.live.now.as_json()))
    jsonschema.validate(found, json.loads(schema.read_text("utf-8")))


async def test_a_handler_takes_precedence_over_the_snapshot() -> None:
    async with service(handlers={("GET", "/v1/status"): echo}) as made, client(made) as http:
        async with http.get("/v1/status") as response:
            assert await response.json() == {"got": {}}


async def test_an_unknown_resource_or_method_is_an_error_in_json() -> None:
    async with service(TOKEN) as made, client(made) as http:
        async with http.get("/v2/status", headers=BEARER) as response:
            assert response.status == 404
            assert await response.json() == {"error": {"message": "GET /v2/status: not found"}}
        async with http.post("/v1/status", headers=BEARER, json={}) as response:
            assert (response.status, response.headers["Allow"]) == (405, "GET,HEAD")
            assert (await response.json())["error"]["message"].endswith("method not allowed")


@pytest.mark.parametrize(
    "body", [b"[]", b"{", b"\xff\xfe\xff", b"1", b"[" * 100_000, b'"' + b"x" * 1000 + b'"']
)
async def test_a_body_must_be_an_object(body: bytes) -> None:
    headers = {**BEARER, "Content-Type": "application/json; charset=nonsense"}
    async with service(TOKEN) as made, client(made) as http:
        async with http.post("/v1/echo", data=body, headers=headers) as response:
            assert response.status == 400
            assert await response.json() == {"error": {"message": "the body is not a JSON object"}}


async def test_a_body_beyond_the_limit_is_refused() -> None:
    async with service(TOKEN) as made, client(made) as http:
        content = io.BytesIO(json.dumps({"text": "x" * (2 << 20)}).encode())
        headers = {**BEARER, "Content-Type": "application/json"}
        async with http.post("/v1/echo", data=content, headers=headers) as response:
            assert response.status == 413
            assert "error" in await response.json()


async def test_a_body_that_does_not_arrive_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BODY_DEADLINE", 0.05)
    async with service(TOKEN) as made:
        address = made.listening.addresses[0]
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(
            f"POST /v1/echo HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {TOKEN}\r\n"
            "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{".encode()
        )
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
        writer.close()
        await writer.wait_closed()


async def test_an_error_and_a_bug_of_a_handler_are_json(caplog: pytest.LogCaptureFixture) -> None:
    async def refuse(body: Mapping[str, Any]) -> Any:
        raise KrelayError("no", hint="try again")

    async def fail(body: Mapping[str, Any]) -> Any:
        raise ZeroDivisionError(body["password"])

    handlers = {("POST", "/refuse"): refuse, ("POST", "/fail"): fail}
    async with service(TOKEN, handlers) as made, client(made) as http:
        async with http.post("/refuse", json={}, headers=BEARER) as response:
            assert response.status == 422
            error = {"message": "no", "hint": "try again", "exitCode": 1}
            assert await response.json() == {"error": error}
        async with http.post("/fail", json={"password": "hunter2"}, headers=BEARER) as response:
            assert response.status == 500
            error = {"message": "internal error: ZeroDivisionError"}
            assert await response.json() == {"error": error}
    (record,) = caplog.records
    assert "POST /fail failed: ZeroDivisionError" in record.getMessage()
    assert "hunter2" not in caplog.text  # what an error says may be a part of the file


async def test_every_answer_has_security_headers() -> None:
    async with service() as made, client(made) as http:
        for resource in ("/", "/healthz", "/metrics", "/v1/events", "/v1/status", "/nope"):
            async with http.get(resource) as response:
                headers = response.headers
                assert headers["X-Content-Type-Options"] == "nosniff"
                assert headers["Cache-Control"] == "no-store"
                assert headers["Server"] == "krelay"
                assert "default-src 'none'" in headers["Content-Security-Policy"]
                assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


async def test_without_a_snapshot_only_handlers_and_healthz_answer() -> None:
    app = module.application({})
    assert [str(resource.canonical) for resource in app.router.resources()] == ["/healthz"]
    app = module.application({}, snapshot=Live())
    shown = {resource.canonical for resource in app.router.resources()}
    assert shown == {"/healthz", "/readyz", "/metrics", "/v1/status"}
