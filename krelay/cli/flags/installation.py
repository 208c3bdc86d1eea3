"""Install a shell's completion script where the shell looks for it, and say what remains to do."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from krelay.cli.flags.scripts import SCRIPTS
from krelay.cli.output import echo
from krelay.errors import KrelayError, UsageError

_PATIENCE = 10.0
"""Seconds for a shell to start with its user's settings."""
_MARK = "krelay loads "
_LOADS = {
    "bash": "{ complete -p krelay || declare -F _comp_load || declare -F _completion_loader; }"
    f" >/dev/null 2>&1 && echo '{_MARK}'",
    "zsh": f'(( $+functions[compdef] )) && print -rl -- "{_MARK}"${{^fpath}}',
}
"""What makes an interactive shell print the folders that it loads completions from; bash's line
names none."""


def install(shell: str | None, environ: Mapping[str, str] = os.environ) -> int:
    """Write the script of `shell`, by default that of $SHELL, and print what was done."""
    shell = shell or _login_shell(environ)
    path = _path(shell, environ)
    echo(f"{'wrote' if _write(path, shell) else 'already there:'} {path}")
    where, lines = _to_add(shell, path, environ)
    if lines:
        echo(f"{shell} does not load it yet; add to {where}:")
        echo("\n".join(f"  {line}" for line in lines))
    else:
        echo(f"every new {shell} completes krelay")
    echo(f"to uninstall it: rm {shlex.quote(str(path))}")
    return 0


def _login_shell(environ: Mapping[str, str]) -> str:
    name = Path(environ.get("SHELL", "")).name
    if name in SCRIPTS:
        return name
    known = ", ".join(SCRIPTS)
    raise UsageError(
        f"$SHELL is {name}, which krelay does not complete" if name else "$SHELL is not set",
        hint=f"name the shell: `krelay completion --install SHELL` with one of {known}",
    )


def _path(shell: str, environ: Mapping[str, str]) -> Path:
    """Return the path of the script in the folder that the shell's users have for completions."""
    home = Path(environ.get("HOME") or Path.home()).absolute()
    data = _folder(environ, "XDG_DATA_HOME") or home / ".local" / "share"
    if shell == "fish":
        config = _folder(environ, "XDG_CONFIG_HOME") or home / ".config"
        return config / "fish" / "completions" / "krelay.fish"
    if shell == "zsh":
        return data / "zsh" / "site-functions" / "_krelay"
    folder, *_ = environ.get("BASH_COMPLETION_USER_DIR", "").split(":")
    return Path(folder or data / "bash-completion").absolute() / "completions" / "krelay"


def _folder(environ: Mapping[str, str], name: str) -> Path | None:
    """Return the folder that a variable of XDG names; a relative one does not count."""
    path = Path(environ.get(name, ""))
    return path if path.is_absolute() else None


def _write(path: Path, shell: str) -> bool:
    """Write the script, unless it is there already; return whether it was not."""
    text = SCRIPTS[shell].strip() + "\n"
    try:
        if path.is_file() and path.read_bytes() == text.encode():
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        # A shell that starts meanwhile reads the old script or the new one.
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(text)
        try:
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except OSError:
            os.unlink(file.name)
            raise
    except OSError as exc:
        line = {
            "bash": 'eval "$(krelay completion bash)"` to ~/.bashrc',
            "zsh": 'eval "$(krelay completion zsh)"` to ~/.zshrc, after compinit',
            "fish": "krelay completion fish | source` to config.fish",
        }[shell]
        raise KrelayError(f"cannot write {path}: {exc.strerror}", hint=f"add `{line}") from None
    return True


def _to_add(shell: str, path: Path, environ: Mapping[str, str]) -> tuple[str, list[str]]:
    """Return the file and the lines to add to it, so that the shell loads the script."""
    if shell == "fish":  # it loads all scripts of this folder
        return "", []
    loaded = _folders(shell, environ)
    if shell == "bash":
        return "~/.bashrc", [] if loaded else [f". {shlex.quote(str(path))}"]
    if str(path.parent) in loaded:
        return "~/.zshrc", []
    line = f"fpath=({shlex.quote(str(path.parent))} $fpath)"
    if loaded:
        return "~/.zshrc, above the line that runs compinit", [line]
    return "~/.zshrc", [line, "autoload -Uz compinit && compinit"]


def _folders(shell: str, environ: Mapping[str, str]) -> list[str]:
    """Return the folders from which an interactive shell loads completions; bash names none.

    The list is empty if the shell loads no completions, or if it cannot be asked.
    """
    program = shutil.which(shell, path=environ.get("PATH"))
    if program is None or sys.platform == "win32":
        return []
    # On macOS, terminals start login shells.
    login = ["-l"] if sys.platform == "darwin" else []
    with tempfile.TemporaryFile() as found:
        process = subprocess.Popen(
            [program, *login, "-i", "-c", _LOADS[shell]],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=found,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # so that it cannot take the terminal
        )
        with suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        found.seek(0)
        lines = found.read(1 << 20).decode(errors="replace").splitlines()
    return [line.removeprefix(_MARK) for line in lines if line.startswith(_MARK)]
