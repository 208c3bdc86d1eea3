"""The payload is run by a real interpreter, as the pod and the embedded agent run it."""

from __future__ import annotations

import base64
import os
import random
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from krelay import payload

pytestmark = pytest.mark.process


def boot(modules: dict[str, str], *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `modules` as the agent, in another interpreter."""
    return subprocess.run(
        [*payload.command(sys.executable), *args],
        env={payload.ENV_NAME: payload.encode(modules), **env},
        capture_output=True,
        text=True,
        timeout=9,
        check=False,
    )


PACKAGE = {"agent/__init__.py": "", "krelay/__init__.py": "__version__ = '9'\n"}


def test_the_boot_program_runs_the_agent_with_its_arguments() -> None:
    done = boot(
        PACKAGE | {"agent/__main__.py": "import sys\nprint(__name__, sys.argv[1:])\n"},
        "--port",
        "9527",
    )
    assert (done.stdout, done.stderr, done.returncode) == ("__main__ ['--port', '9527']\n", "", 0)


def test_modules_import_each_other_and_come_from_memory() -> None:
    done = boot(
        PACKAGE
        | {
            "krelay/wire/__init__.py": "",
            "krelay/wire/frames.py": "SIZE = 8\n",
            "agent/serve.py": "from krelay.wire import frames\nfrom . import __name__ as mine\n",
            "agent/__main__.py": (
                "import krelay\nfrom agent import serve\n"
                "print(serve.frames.SIZE, serve.mine, krelay.__version__, serve.__spec__.origin)\n"
            ),
        }
    )
    assert done.stdout == "8 agent 9 agent/serve.py\n", done.stderr


def test_the_agent_s_environment_no_longer_has_the_source() -> None:
    done = boot(PACKAGE | {"agent/__main__.py": "import os\nprint(sorted(os.environ))\n"}, KEPT="1")
    assert payload.ENV_NAME not in done.stdout
    assert "KEPT" in done.stdout


def test_a_traceback_shows_real_lines() -> None:
    done = boot(
        PACKAGE
        | {
            "agent/serve.py": "def fail():\n    raise RuntimeError('é')  # the very line\n",
            "agent/__main__.py": "from agent.serve import fail\n\nfail()  # called here\n",
        }
    )
    assert done.returncode == 1
    assert 'File "agent/serve.py", line 2, in fail' in done.stderr
    assert "# the very line" in done.stderr
    assert 'File "agent/__main__.py", line 3, in <module>' in done.stderr
    assert "# called here" in done.stderr


def test_a_module_that_was_not_carried_is_not_found_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "krelay").mkdir()
    (tmp_path / "krelay" / "supervisor.py").write_text("")
    monkeypatch.chdir(tmp_path)
    done = boot(PACKAGE | {"agent/__main__.py": "import krelay.supervisor\n"})
    assert "ModuleNotFoundError: No module named 'krelay.supervisor'" in done.stderr


def test_the_agent_s_exit_code_is_the_program_s() -> None:
    assert boot(PACKAGE | {"agent/__main__.py": "raise SystemExit(7)\n"}).returncode == 7


def test_boot_survives_the_kubelet_s_expansion() -> None:
    assert "$" not in payload.BOOT
    assert "$" not in payload.payload()


def test_a_python_that_is_too_old_is_refused() -> None:
    old = payload.BOOT.replace("sys.version_info", "(3, 8, 2)")
    done = subprocess.run([sys.executable, "-I", "-c", old], capture_output=True, text=True)
    assert done.stderr == "krelay: the agent needs Python 3.11 or later, this is 3.8\n"
    assert done.returncode == 1


def test_the_real_program_is_whole_and_fits() -> None:
    modules = payload.sources()
    assert {"krelay/__init__.py", "krelay/wire/__init__.py", "agent/__init__.py"} <= set(modules)
    assert not [path for path in modules if "cluster" in path or "datapath" in path]
    texts = zlib.decompress(base64.b64decode(payload.payload())).decode().split("\0")
    assert dict(zip(texts[::2], texts[1::2], strict=True)) == modules
    assert len(payload.ENV_NAME) + 1 + len(payload.payload()) <= payload.LIMIT


def test_the_digest_is_a_label_and_stable() -> None:
    assert len(payload.digest()) == 12
    int(payload.digest(), 16)
    assert payload.encode(payload.sources()) == payload.payload()


def noise(size: int) -> str:
    """Text that does not compress much."""
    return random.Random(size).randbytes(size).hex()


def test_a_program_that_does_not_fit_is_refused_with_its_size() -> None:
    with pytest.raises(ValueError, match=r"takes \d+ bytes, more than the 131071"):
        payload.encode({"agent/__main__.py": noise(100_000)})


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_linux_takes_a_variable_of_just_the_limit() -> None:
    room = payload.LIMIT - len(payload.ENV_NAME) - 1
    full = {**os.environ, payload.ENV_NAME: "x" * room}
    assert subprocess.run([sys.executable, "-I", "-c", ""], env=full, check=False).returncode == 0
    with pytest.raises(OSError):
        subprocess.run([sys.executable], env=full | {payload.ENV_NAME: "x" * (room + 1)})
