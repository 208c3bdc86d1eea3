"""What krelay does with odd kubeconfigs is what kubectl does: see the table.

`tests/e2e/test_odd_kubeconfigs.py` runs kubectl on the same table.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from krelay.cluster.api import Api
from krelay.errors import KrelayError
from tests.cluster.auth.odd_kubeconfigs import Odd, table
from tests.cluster.auth.recorder import Recorder


@pytest.fixture(scope="module")
def recorder() -> Iterator[Recorder]:
    with Recorder().serve() as found:
        yield found


async def answer(environ: dict[str, str], *, explicit: bool) -> str:
    """Ask for the version; return krelay's error, or nothing."""
    path = environ["KUBECONFIG"] if explicit else None
    try:
        async with await Api.connect(kubeconfig=path) as api:
            await api.get("/version")
    except KrelayError as exc:
        return exc.message
    return ""


@pytest.mark.parametrize("odd", [pytest.param(odd, id=name) for name, odd in table().items()])
async def test_krelay_does_what_kubectl_does(
    odd: Odd, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "@https6@" in str(odd.config) and "https6" not in recorder.ports:
        pytest.skip("no ::1")
    recorder.clear()
    environ = odd.lay_out(tmp_path, recorder.ports)
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    error = await answer(environ, explicit=odd.explicit)
    wanted = odd.kubectl if odd.krelay is None else odd.krelay
    expected = odd.expected(wanted, tmp_path, recorder.ports)
    if isinstance(expected, str):
        assert re.search(expected, error)
        assert recorder.seen == []
    else:
        assert (error, recorder.seen) == ("", [expected])


def test_the_table_gives_a_reason_where_krelay_does_otherwise() -> None:
    for name, odd in table().items():
        if odd.krelay is not None and type(odd.krelay) is not type(odd.kubectl):
            assert odd.why, name
    assert len(table()) > 190
