from __future__ import annotations

import subprocess
import sys


def run(script: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


USE = """
import sys
from krelay.cluster.lean import kube_config
merger = kube_config().KubeConfigMerger
stamp = kube_config().parse_rfc3339('2020-01-01T00:00:00Z').timestamp()
print(merger.__name__, stamp, end=' ')
"""


def test_the_models_stay_out() -> None:
    """Fails when a release of the library asks for more than the stand-in has."""
    script = USE + "print([name for name in sys.modules if name.startswith('kubernetes_asyncio')])"
    assert run(script) == "KubeConfigMerger 1577836800.0 []"
    script = USE + "print('kubernetes_asyncio.client.models' in str(vars(kube_config())))"
    assert run(script) == "KubeConfigMerger 1577836800.0 False"


def test_the_whole_library_can_be_imported_after() -> None:
    script = USE + "import kubernetes_asyncio; print(kubernetes_asyncio.client.CoreV1Api.__name__)"
    assert run(script).endswith(" CoreV1Api")


def test_the_whole_library_is_taken_where_it_is_there() -> None:
    script = (
        "import kubernetes_asyncio.config.kube_config as theirs\n"
        + USE
        + "print(kube_config() is theirs)"
    )
    assert run(script).endswith(" True")


def test_a_library_that_does_not_bear_it_is_imported_whole() -> None:
    script = (
        "import krelay.cluster.lean as lean\n"
        "def fails(): raise AttributeError\n"
        "lean._alone = fails\n" + USE + "print('kubernetes_asyncio.client' in sys.modules)"
    )
    assert run(script) == "KubeConfigMerger 1577836800.0 True"


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    script = "import sys, krelay.cluster; print('aiohttp' in sys.modules)"
    assert run(script) == "False"
