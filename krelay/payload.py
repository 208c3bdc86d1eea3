"""Payload: the agent's program as one environment variable that any Python image can run.

The agent's pod runs a stock Python image, so its spec carries all modules, compressed, in one
variable, and a boot program in `command` that imports them from memory. The embedded agent starts
in the same way, as a child process.

The encoding is base64, not base85: the kubelet expands `$(NAME)` in values (Kubernetes
third_party/forked/golang/expansion), and base85 contains all three of these characters.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path

ENV_NAME = "KRELAY_AGENT_SOURCE"  # the variable that holds `payload()`

LIMIT = 131_071
"""Bytes of one `NAME=value` string; Linux refuses to start a program with a longer one."""

BOOT = f'''\
import base64, importlib.abc, importlib.machinery, json, linecache, os, runpy, sys, traceback, zlib
if sys.version_info < (3, 11):
    sys.exit("krelay: the agent needs Python 3.11 or later, this is %d.%d" % sys.version_info[:2])
class Carried(importlib.abc.MetaPathFinder, importlib.abc.ExecutionLoader):
    def __init__(self, sources):
        self.sources = sources
        for path, text in sources.items():
            linecache.cache[path] = len(text), None, text.splitlines(True), path
    def find_spec(self, name, path=None, target=None):
        file, package = self.get_filename(name), self.is_package(name)
        if file in self.sources:
            return importlib.machinery.ModuleSpec(name, self, origin=file, is_package=package)
    def is_package(self, name):
        return name.replace(".", "/") + "/__init__.py" in self.sources
    def get_filename(self, name):
        return name.replace(".", "/") + ("/__init__.py" if self.is_package(name) else ".py")
    def get_source(self, name):
        return self.sources[self.get_filename(name)]
sys.meta_path.insert(0, Carried(json.loads(zlib.decompress(base64.b64decode(
    os.environ.pop("{ENV_NAME}"))))))
sys.excepthook = traceback.print_exception
runpy.run_module("agent", run_name="__main__", alter_sys=True)
'''
"""The program that `command()` passes to `python -c`: it imports from memory and runs the agent.

It must not contain `$(`, which the kubelet expands. Its hook makes tracebacks show the agent's
source lines; until Python 3.13 the interpreter's own hook looks for files. A package without a
search path has only the carried modules, whatever is in the current directory.
"""


def command(python: str = "python3") -> list[str]:
    """Return the command line that boots the carried agent; append the agent's arguments.

    It is isolated (`-I`): no user site, no `PYTHON*` variables, no current directory on the path.
    """
    return [python, "-I", "-B", "-u", "-c", BOOT]


@functools.cache
def payload() -> str:
    """Return the value of `ENV_NAME`; the first call reads the program's files.

    Raises:
        ValueError: the program does not fit into one environment variable.
    """
    return encode(sources())


@functools.cache
def digest() -> str:
    """Return twelve hex digits that identify the agent's program, fit for a label."""
    return hashlib.sha256(payload().encode()).hexdigest()[:12]


def sources() -> dict[str, str]:
    """Return path (as `krelay/wire/frames.py`) -> text of each module of the agent, sorted.

    The agent's folder is inside the package in a wheel, and beside it in a checkout.
    """
    package = Path(__file__).parent
    shipped = package / "_agent"
    folders = {
        "krelay/wire": package / "wire",
        "krelay/mux": package / "mux",
        "agent": shipped if shipped.is_dir() else package.parent / "agent",
    }
    files = {"krelay/__init__.py": package / "__init__.py"}
    for prefix, folder in folders.items():
        files |= {f"{prefix}/{path.name}": path for path in folder.glob("*.py")}
    return {path: files[path].read_text("utf-8") for path in sorted(files)}


def encode(modules: Mapping[str, str]) -> str:
    """Pack path -> text into a value for `ENV_NAME`; the same modules give the same value.
    Raises ValueError if the value does not fit into one variable."""
    packed = json.dumps(modules, ensure_ascii=False, separators=(",", ":")).encode()
    value = base64.b64encode(zlib.compress(packed, 9)).decode()
    size = len(ENV_NAME) + 1 + len(value)
    if size > LIMIT:
        raise ValueError(f"the agent's program takes {size} bytes, more than the {LIMIT} that fit")
    return value
