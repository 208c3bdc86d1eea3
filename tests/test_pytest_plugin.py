"""The pytest plugin in another pytest: with an embedded agent, and without a cluster."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer

import pytest

from tests import rig
from tests.integration.product import environment
from tests.test_api import KUBECONFIG

pytestmark = pytest.mark.process

pytest_plugins = ["pytester"]


class Named(BaseRequestHandler):
    """Says its name to each connection."""

    def handle(self) -> None:
        self.request.sendall(b"target")


@pytest.fixture
def target() -> Iterator[int]:
    """The port of a target."""
    with ThreadingTCPServer((rig.HOST, 0), Named) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture
def pytester(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Remove the cluster and this pytest's own options."""
    monkeypatch.setenv("KUBECONFIG", "/dev/null")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:cacheprovider -p krelay.pytest_plugin")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return pytester


def run(pytester: pytest.Pytester, text: str, *args: str) -> pytest.RunResult:
    pytester.makepyfile(f"import socket\n{text}")
    return pytester.runpytest_subprocess("-rs", *args)


ASK = """
def ask(forward):
    with socket.create_connection((forward.host, forward.port), timeout=10) as sock:
        return sock.makefile("rb").read()
"""


def test_forwards_last_for_a_test_or_for_the_session(
    pytester: pytest.Pytester, target: int
) -> None:
    text = f"""{ASK}
import pytest
gone = []

@pytest.fixture(scope="session")
def shared(krelay_session):
    return krelay_session("ip/127.0.0.1 :{target}")

def test_one(krelay, shared):
    web = krelay(web="ip/127.0.0.1 :{target}")["web"]
    db = krelay(db="host/localhost :{target}")["db"]
    assert ask(web) == ask(db) == b"target"
    gone.extend([web, db])

def test_two(shared):
    assert len(gone) == 2
    for forward in gone:
        with pytest.raises(ConnectionRefusedError):
            ask(forward)
    (forward,) = shared.values()
    assert ask(forward) == b"target"

async def in_a_loop(krelay):
    assert ask(krelay(web="ip/127.0.0.1 :{target}")["web"]) == b"target"

def test_three(krelay):
    import asyncio
    asyncio.run(in_a_loop(krelay))
"""
    run(pytester, text, "--krelay-embedded").assert_outcomes(passed=3)


def test_the_ini_file_sets_the_options(pytester: pytest.Pytester, target: int) -> None:
    pytester.makeini("[pytest]\nkrelay_embedded = true\n")
    text = f"""{ASK}
def test_it(krelay):
    assert ask(krelay(web="ip/127.0.0.1 :{target}")["web"]) == b"target"
"""
    run(pytester, text).assert_outcomes(passed=1)


SVC = """
def test_one(krelay):
    krelay(web="svc/web :80")

def test_two(krelay_session):
    krelay_session("svc/web :80")
"""


def test_without_a_kubeconfig_a_test_is_skipped_with_the_reason(pytester: pytest.Pytester) -> None:
    result = run(pytester, SVC)
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines([*2 * ["SKIPPED*no cluster: no kubeconfig: /dev/null is missing*"]])


def test_an_unreachable_cluster_is_tried_once_and_skipped(pytester: pytest.Pytester) -> None:
    kubeconfig = pytester.path / "kubeconfig"
    kubeconfig.write_text(KUBECONFIG % rig.closed_port())
    text = f"""
import os
os.environ["KUBECONFIG"] = {str(kubeconfig)!r}
{SVC}
def test_three(krelay):
    open(os.environ["KUBECONFIG"], "w").close()
    krelay("svc/web :80")

def test_four(krelay):
    krelay("svc/web :80", context="other")
"""
    result = run(pytester, text, "--krelay-context", "here")
    result.assert_outcomes(skipped=4)
    # The third one is not tried: it would have another reason, as the fourth one has.
    result.stdout.fnmatch_lines(
        [
            *3 * ["SKIPPED*no cluster: cannot reach the API server*: connection refused"],
            'SKIPPED*no cluster: no context "other"*',
        ]
    )


def test_one_dead_cluster_skips_no_test_that_needs_another_or_none(
    pytester: pytest.Pytester, target: int
) -> None:
    kubeconfig = pytester.path / "kubeconfig"
    kubeconfig.write_text(KUBECONFIG % rig.closed_port())
    text = f"""{ASK}
import os, pathlib
os.environ["KUBECONFIG"] = {str(kubeconfig)!r}
HEAD = "apiVersion: krelay/v1\\n"
file = pathlib.Path("krelay.yaml")

def test_one(krelay):
    file.write_text(HEAD + "context: here\\ntargets: {{web: svc/web :80}}")
    krelay(file=file)

def test_two(krelay):
    file.write_text(HEAD + "agent: {{embedded: true}}\\ntargets: {{web: ip/127.0.0.1 :{target}}}")
    assert ask(krelay(file=file)["web"]) == b"target"

def test_three(krelay):
    krelay("svc/web :80", context="here")

def test_four(krelay):
    os.environ["KUBECONFIG"] = "/dev/null"
    krelay("svc/web :80", context="here")
"""
    result = run(pytester, text)
    result.assert_outcomes(passed=1, skipped=3)
    result.stdout.fnmatch_lines(
        [
            *2 * ["SKIPPED*no cluster: cannot reach the API server*: connection refused"],
            'SKIPPED*no cluster: no context "here" in kubeconfig*',
        ]
    )


def test_a_required_cluster_that_is_missing_fails_the_test(pytester: pytest.Pytester) -> None:
    result = run(pytester, SVC, "--krelay-required")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["E*CredentialsError: no kubeconfig*", "E*hint: set KUBECONFIG*"])


def test_any_other_error_fails_the_test_with_its_reason(pytester: pytest.Pytester) -> None:
    text = f"""
def test_line(krelay):
    krelay("svc/web")

def test_cluster(krelay):
    krelay("svc/web :80")

def test_late(krelay):
    krelay(web="ip/127.0.0.1 :{rig.closed_port()}", timeout=1)
"""
    result = run(pytester, text, "--krelay-embedded")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(['>*krelay("svc/web")', "E*`svc/web` has no port"])
    result.stdout.fnmatch_lines(["E*`svc/web` is in a cluster, but the agent is embedded*"])
    result.stdout.fnmatch_lines(["E*NotReadyError: not ready after 1 s*", "E*web: *", "E*hint: *"])


def test_a_namespace_and_a_context_come_from_the_options(pytester: pytest.Pytester) -> None:
    text = """
def test_options(krelay, monkeypatch):
    import krelay.api as api
    def relay(*texts, **given):
        raise RuntimeError(given)
    monkeypatch.setattr(api, "relay", relay)
    for given in ({}, {"context": "c2", "namespace": "n2", "embedded": True, "timeout": 5}):
        try:
            krelay(web="svc/web :80", **given)
        except RuntimeError as exc:
            (said,) = exc.args
            print({key: said[key] for key in ("context", "namespace", "embedded", "timeout")})
"""
    result = run(pytester, text, "-s", "--krelay-context", "c1", "--krelay-namespace", "n1")
    result.stdout.fnmatch_lines(
        [
            "*{'context': 'c1', 'namespace': 'n1', 'embedded': False, 'timeout': 60.0}",
            "{'context': 'c2', 'namespace': 'n2', 'embedded': True, 'timeout': 5}",
        ]
    )


def test_the_plugin_imports_no_other_module_of_krelay_at_the_start(tmp_path: Path) -> None:
    """Found by its entry point, among all other plugins."""
    (tmp_path / "test_it.py").write_text(
        "import sys\n\ndef test_it():\n"
        "    print('mine:', *sorted(n for n in sys.modules if n.split('.')[0] == 'krelay'))\n"
        "    print('theirs:', *{'aiohttp', 'websockets', 'click', 'yaml'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=environment(PYTHONWARNINGS="default"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "mine: krelay krelay.pytest_plugin\n" in done.stdout
    assert "theirs:\n" in done.stdout


def test_the_fixtures_and_options_are_listed_with_their_help(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("--fixtures")
    result.stdout.fnmatch_lines(["krelay -- *pytest_plugin.py*", "*Forwards until the test ends*"])
    result.stdout.fnmatch_lines(["krelay_session [[]session scope[]] -- *"])
    helped = pytester.runpytest_subprocess("--help")
    helped.stdout.fnmatch_lines(["*--krelay-context=NAME*", "*--krelay-required*"])
