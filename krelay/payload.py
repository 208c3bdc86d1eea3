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
import zlib
from collections.abc import Mapping
from pathlib import Path

ENV_NAME = "KRELAY_AGENT_SOURCE"  # the variable that holds `payload()`

LIMIT = 131_071
"""Bytes of one `NAME=value` string; Linux refuses to start a program with a longer one."""

BOOT = f'''\
import sys
if sys.version_info < (3, 11):
    sys.exit("krelay: the agent needs Python 3.11 or later, this is %d.%d" % sys.version_info[:2])
import binascii, os, zlib
from importlib.machinery import ModuleSpec
class Carried:
    def __init__(self, texts):
        self.sources = dict(zip(texts[::2], texts[1::2]))
    def find_spec(self, name, path=None, target=None):
        folder = name.replace(".", "/")
        package = folder + "/__init__.py" in self.sources
        file = folder + ("/__init__.py" if package else ".py")
        if file in self.sources:
            return ModuleSpec(name, self, origin=file, is_package=package)
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        self.run(module.__spec__.origin, module.__dict__)
    def run(self, file, scope):
        exec(compile(self.sources[file], file, "exec", dont_inherit=True), scope)
    def get_source(self, name):
        return self.sources[self.find_spec(name).origin]
    def show(self, *error):
        import linecache, traceback
        for path, text in self.sources.items():
            linecache.cache[path] = len(text), None, text.splitlines(True), path
        traceback.print_exception(*error)
packed = binascii.a2b_base64(os.environ.pop("{ENV_NAME}"))
carried = Carried(zlib.decompress(packed).decode().split("\\0"))
sys.meta_path.insert(0, carried)
sys.excepthook = carried.show
sys.modules["ssl"] = None
carried.run("agent/__main__.py", globals())
'''
"""The program that `command()` passes to `python -c`: it imports from memory and runs the agent.

It must not contain `$(`, which the kubelet expands. Its hook makes tracebacks show the agent's
source lines; until Python 3.13 the interpreter's own hook looks for files. A package without a
search path has only the carried modules, whatever is in the current directory.

Each import delays the start: `importlib.abc`, `json`, `runpy` and `base64` load many others, and
asyncio does without `ssl` if that cannot be imported.
"""


def command(python: str = "python3") -> list[str]:
    """Return the command line that boots the carried agent; append the agent's arguments.

    It is isolated (`-I`): no user site, no `PYTHON*` variables, no current directory on the path.
    It does without `site` (`-S`): it needs no installed packages.
    """
    return [python, "-I", "-S", "-B", "-u", "-c", BOOT]


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
    packed = "\0".join(text for item in modules.items() for text in item).encode()
    value = base64.b64encode(zlib.compress(packed, 9)).decode()
    size = len(ENV_NAME) + 1 + len(value)
    if size > LIMIT:
        raise ValueError(f"the agent's program takes {size} bytes, more than the {LIMIT} that fit")
    return value
