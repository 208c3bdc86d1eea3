"""Real shells with the completion of krelay and of kubectl loaded."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.cli.emulator import terminal

SHELLS = ("bash", "zsh", "fish")
_EXEC = "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"
BASH_RC = """
PS1='ready> '
for file in /usr/share/bash-completion/bash_completion; do
    [ -r $file ] && . $file
done
"""
_BASH = f"""{BASH_RC}
eval "$(krelay completion bash)"
command -v kubectl >/dev/null && . <(kubectl completion bash)
"""
ZSH_RC = """
PS1='ready> '
autoload -U compinit && compinit -u -D
"""
_ZSH = f"""{ZSH_RC}
eval "$(krelay completion zsh)"
command -v kubectl >/dev/null && . <(kubectl completion zsh)
"""
_FISH_RC = """
krelay completion fish | source
command -q kubectl; and kubectl completion fish | source
"""
_FISH = """
for line in $argv
    complete --do-complete $line | string replace -r '\\t.*' '' | string join ' '
end
"""
Case = tuple[str, str]
"""A line as typed, and what the key Tab makes of it."""


def needs(*programs: str) -> None:
    """Skip the test if this machine has no such program."""
    missing = [program for program in programs if not shutil.which(program)]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)} here; apt has them")


def environment(folder: Path) -> dict[str, str]:
    """Return the variables of a user whose home is `folder`."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(folder), "ZDOTDIR": str(folder)}


async def complete(
    shell: str, folder: Path, cases: list[Case], kubeconfig: str, *, own_settings: bool = False
) -> None:
    """Complete each line in a shell that runs in `folder`.

    With `own_settings`, the shell reads what the folder has, as a user's shell does.
    """
    environ = {**environment(folder), "KUBECONFIG": kubeconfig}
    if shell == "fish":
        await _complete_in_fish(folder, cases, environ, own_settings=own_settings)
        return
    if not own_settings:
        (folder / ".bashrc").write_text(_BASH)
        (folder / ".zshrc").write_text(_ZSH)
    async with terminal(
        *(shell, "-i"),
        cwd=folder,
        columns=200,
        script=_EXEC,
        PATH=environ["PATH"],
        HOME=environ["HOME"],
        ZDOTDIR=environ["ZDOTDIR"],
        KUBECONFIG=kubeconfig,
    ) as shown:
        await shown.shows("ready>")
        for typed, completed in cases:
            shown.type(f"{typed}\t")
            await shown.shows(f"> {completed}")
            shown.type("\x15\x0c")  # kill the line, clear the screen
            await shown.hides(completed)
        shown.type("exit\r")
        await shown.process.wait()


async def _complete_in_fish(
    folder: Path, cases: list[Case], environ: dict[str, str], *, own_settings: bool
) -> None:
    """Complete each line without a terminal: fish lists the last word's completions."""
    (folder / "script.fish").write_text(_FISH if own_settings else _FISH_RC + _FISH)
    options = [] if own_settings else ["--no-config"]
    process = await asyncio.create_subprocess_exec(
        *("fish", *options, "script.fish", *(typed for typed, _ in cases)),
        cwd=folder,
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert err == b""
    last = [completed.rpartition(" ")[2] for _, completed in cases]
    found = out.decode().splitlines()
    assert found == last, (found, last)
