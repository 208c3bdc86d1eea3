"""One API client a context."""

from __future__ import annotations

import asyncio
from typing import Self

import pytest

from krelay.cluster.api import Api
from krelay.errors import CredentialsError
from krelay.supervisor.contexts import Contexts


class FakeApi:
    closed = 0

    @classmethod
    async def connect(cls, context: str | None, kubeconfig: str | None) -> Self:
        await asyncio.sleep(0)
        if context == "none":
            raise CredentialsError("no such context")
        return cls()

    async def aclose(self) -> None:
        FakeApi.closed += 1


async def test_each_is_made_once_and_closed_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Api, "connect", FakeApi.connect)
    contexts = Contexts()
    first, again, other = await asyncio.gather(*(contexts.api(c) for c in (None, None, "other")))
    assert first is again
    assert first is not other
    with pytest.raises(CredentialsError):
        await contexts.api("none")
    await contexts.close()
    await contexts.close()
    assert FakeApi.closed == 2


async def test_the_watches_of_a_context_are_shared_and_end_before_its_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Api, "connect", FakeApi.connect)
    contexts = Contexts()
    first, again, other = [await contexts.informers(c) for c in (None, None, "other")]
    assert first is again
    assert first is not other
    closed = FakeApi.closed
    order: list[int] = []
    close = first.close

    async def note() -> None:
        order.append(FakeApi.closed - closed)
        await close()

    monkeypatch.setattr(first, "close", note)
    await contexts.close()
    assert order == [0]
    assert FakeApi.closed == closed + 2
