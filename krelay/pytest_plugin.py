"""The pytest plugin: the fixtures `krelay` and `krelay_session`.

Every pytest run of the environment loads it, so it imports the rest of krelay at the first use.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from krelay.api import Forwards

_ABSENT = pytest.StashKey[dict[object, str]]()
"""Why there is no cluster, by context, kubeconfig and file: only the first test waits for it."""

_OPTIONS = (
    ("context", "The kubeconfig context to relay into."),
    ("namespace", "The namespace of targets whose line has none."),
    ("embedded", "Run the agent on this machine; targets are then host/ and ip/ only."),
    ("required", "Fail, rather than skip, if there is no cluster."),
)
_SWITCHES = ("embedded", "required")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options `--krelay-context` and so on, also as `krelay_context` of the ini file."""
    group = parser.getgroup("krelay", "forwards into a Kubernetes cluster")
    for name, text in _OPTIONS:
        if name in _SWITCHES:
            group.addoption(f"--krelay-{name}", action="store_true", default=None, help=text)
            parser.addini(f"krelay_{name}", text, type="bool", default=False)
        else:
            group.addoption(f"--krelay-{name}", metavar="NAME", help=text)
            parser.addini(f"krelay_{name}", text, default="")


class Krelay:
    """The value of the fixtures: call it for forwards that last until the fixture ends."""

    def __init__(self, config: pytest.Config, stack: contextlib.ExitStack) -> None:
        self._config = config
        self._stack = stack

    def __call__(
        self,
        *texts: str,
        file: str | os.PathLike[str] | None = None,
        context: str | None = None,
        namespace: str | None = None,
        embedded: bool | None = None,
        timeout: float | None = None,
        **targets: str,
    ) -> Forwards:
        """Return forwards that are ready. The arguments are those of `krelay.relay`; None takes
        the value of the option. The test is skipped if there is no cluster.

        Raises:
            KrelayError: the forwards failed for another reason.
        """
        __tracebackhide__ = True
        from krelay.api import TIMEOUT, relay
        from krelay.errors import CredentialsError, UnreachableError

        context = context or self._option("context")
        absent = self._config.stash.setdefault(_ABSENT, {})
        local = self._option("embedded") if embedded is None else embedded
        which = (context, os.environ.get("KUBECONFIG"), file and _state(file))
        if not local and which in absent:
            pytest.skip(absent[which])
        wanted = relay(
            *texts,
            file=file,
            context=context,
            namespace=namespace or self._option("namespace"),
            embedded=bool(local),
            timeout=TIMEOUT if timeout is None else timeout,
            **targets,
        )
        try:
            forwards = wanted.__enter__()
        except (CredentialsError, UnreachableError) as exc:
            if self._option("required"):
                raise
            absent[which] = f"no cluster: {exc}"
            pytest.skip(absent[which])
        self._stack.push(wanted)
        return forwards

    def _option(self, name: str) -> str | None:
        given = self._config.getoption(f"krelay_{name}")
        return given or self._config.getini(f"krelay_{name}") or None


def _state(file: str | os.PathLike[str]) -> tuple[str, int]:
    """Return which file it is, and its modification time: each version may name other contexts."""
    path = os.path.abspath(file)
    try:
        return path, os.stat(path).st_mtime_ns
    except OSError:
        return path, 0


@pytest.fixture(name="krelay")
def _krelay(pytestconfig: pytest.Config) -> Iterator[Krelay]:
    """Forwards until the test ends: `krelay(web="svc/nginx :80")["web"].url()`."""
    with contextlib.ExitStack() as stack:
        yield Krelay(pytestconfig, stack)


@pytest.fixture(name="krelay_session", scope="session")
def _krelay_session(pytestconfig: pytest.Config) -> Iterator[Krelay]:
    """The same until all tests have ended, for fixtures of the session."""
    with contextlib.ExitStack() as stack:
        yield Krelay(pytestconfig, stack)
