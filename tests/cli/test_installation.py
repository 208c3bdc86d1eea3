"""`krelay completion --install`: what it writes and says, and what the shells make of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from krelay.cli.flags import installation
from krelay.cli.flags.scripts import SCRIPTS
from krelay.cli.main import cli
from krelay.errors import KrelayError, UsageError
from tests.cli import shells

CASES = [("krelay relo", "krelay reload"), ("krelay up -f not", "krelay up -f notes.yaml")]
Install = Callable[..., list[str]]
SETTINGS = {
    "bash": (".bashrc", shells.BASH_RC),
    "zsh": (".zshrc", shells.ZSH_RC),
    "fish": (".config/fish/config.fish", ""),
}
PLACES = {
    "bash": ".local/share/bash-completion/completions/krelay",
    "zsh": ".local/share/zsh/site-functions/_krelay",
    "fish": ".config/fish/completions/krelay.fish",
}


@pytest.fixture
def install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Install:
    """Run the command for a user whose home is `tmp_path`; return the lines that it prints."""
    monkeypatch.setattr(installation, "_PATIENCE", 100)  # for a busy machine

    def run(shell: str | None, **environ: str) -> list[str]:
        assert installation.install(shell, {**shells.environment(tmp_path), **environ}) == 0
        return capsys.readouterr().out.splitlines()

    return run


@pytest.mark.process
@pytest.mark.parametrize("shell", shells.SHELLS)
def test_a_shell_completes_what_was_installed_for_it(
    shell: str, tmp_path: Path, install: Install
) -> None:
    shells.needs(shell)
    (tmp_path / "notes.yaml").touch()
    name, text = SETTINGS[shell]
    settings = tmp_path / name
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(text)
    place = tmp_path / PLACES[shell]
    first = install(None, SHELL=f"/bin/{shell}")
    assert (first[0], first[-1]) == (f"wrote {place}", f"to uninstall it: rm {place}")
    assert place.read_text() == SCRIPTS[shell].strip() + "\n"
    if shell == "zsh":
        assert first[1:-1] == [
            "zsh does not load it yet; add to ~/.zshrc, above the line that runs compinit:",
            f"  fpath=({place.parent} $fpath)",
        ]
        settings.write_text(f"{first[2]}\n{text}")
    second = install(shell)
    assert second[:-1] == [f"already there: {place}", f"every new {shell} completes krelay"]
    asyncio.run(shells.complete(shell, tmp_path, CASES, os.devnull, own_settings=True))


@pytest.mark.process
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_without_settings_completes_after_the_lines_that_were_advised(
    shell: str, tmp_path: Path, install: Install
) -> None:
    shells.needs(shell)
    (tmp_path / "notes.yaml").touch()
    wrote, *advised, _ = install(shell)
    settings = SETTINGS[shell][0]
    assert advised[0] == f"{shell} does not load it yet; add to ~/{settings}:"
    (tmp_path / settings).write_text("PS1='ready> '\n" + "\n".join(advised[1:]) + "\n")
    assert install(shell)[1] == f"every new {shell} completes krelay"
    asyncio.run(shells.complete(shell, tmp_path, CASES, os.devnull, own_settings=True))


@pytest.mark.parametrize(
    ("shell", "environ", "place"),
    [
        ("bash", {"XDG_DATA_HOME": "/d"}, "/d/bash-completion/completions/krelay"),
        ("bash", {"BASH_COMPLETION_USER_DIR": "/a:/b"}, "/a/completions/krelay"),
        ("zsh", {"XDG_DATA_HOME": "/d"}, "/d/zsh/site-functions/_krelay"),
        ("fish", {"XDG_CONFIG_HOME": "/c"}, "/c/fish/completions/krelay.fish"),
    ],
)
def test_the_place_is_the_one_that_the_user_chose(
    shell: str, environ: dict[str, str], place: str
) -> None:
    assert installation._path(shell, environ) == Path(place)


@pytest.mark.parametrize("variable", ["HOME", "XDG_DATA_HOME"])
def test_a_relative_place_does_not_depend_on_the_directory_of_a_shell(
    tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.chdir(tmp_path)
    first, *_ = install("bash", **{variable: "relative"})
    assert first.startswith(f"wrote {tmp_path}/")
    assert first.endswith(PLACES["bash"])


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_the_script_replaces_a_link_or_a_pipe_and_leaves_what_is_behind_it(
    tmp_path: Path, install: Install, kind: str
) -> None:
    place, target = tmp_path / PLACES["bash"], tmp_path / "target"
    place.parent.mkdir(parents=True)
    target.write_text("mine")
    if kind == "link":
        place.symlink_to(target)
    else:
        os.mkfifo(place)
    assert install("bash")[0] == f"wrote {place}"
    assert place.is_file()
    assert not place.is_symlink()
    assert [each.name for each in place.parent.iterdir()] == ["krelay"]
    assert target.read_text() == "mine"


def test_an_older_script_is_replaced(tmp_path: Path) -> None:
    place = tmp_path / "fish" / "completions" / "krelay.fish"
    place.parent.mkdir(parents=True)
    place.write_text("# an older one\n")
    environ = {"SHELL": "/usr/bin/fish", "XDG_CONFIG_HOME": str(tmp_path)}
    assert installation.install(None, environ) == 0
    assert "__krelay_complete" in place.read_text()


@pytest.mark.parametrize(
    ("environ", "said"),
    [({"SHELL": "/bin/tcsh"}, "$SHELL is tcsh"), ({}, "$SHELL is not set")],
)
def test_an_unknown_shell_is_named(environ: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("$", r"\$")) as caught:
        installation.install(None, environ)
    assert "bash, zsh, fish" in str(caught.value.hint)


@pytest.mark.parametrize("shell", shells.SHELLS)
def test_a_folder_that_cannot_be_written_is_named_with_another_way(
    shell: str, tmp_path: Path
) -> None:
    (tmp_path / ".local").touch()
    (tmp_path / ".config").touch()
    with pytest.raises(KrelayError, match="cannot write .*: Not a directory") as caught:
        installation.install(shell, {"HOME": str(tmp_path)})
    assert f"krelay completion {shell}" in str(caught.value.hint)


def test_a_shell_that_does_not_answer_costs_no_more_than_the_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "zsh"
    program.write_text("#!/bin/sh\nsleep 600 &\nsleep 600\n")
    program.chmod(0o755)
    monkeypatch.setattr(installation, "_PATIENCE", 0.1)
    assert installation._folders("zsh", {"PATH": f"{tmp_path}:{os.environ['PATH']}"}) == []


def test_a_shell_that_is_not_installed_cannot_be_asked() -> None:
    assert installation._folders("zsh", {"PATH": ""}) == []


def test_no_shell_at_all_is_an_error_with_both_ways_out() -> None:
    done = CliRunner().invoke(cli, ["completion"])
    assert isinstance(done.exception, UsageError)
    assert "completion --install" in str(done.exception.hint)


def test_the_command_installs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    done = CliRunner().invoke(cli, ["completion", "fish", "--install"], standalone_mode=False)
    assert done.return_value == 0
    assert (tmp_path / "fish/completions/krelay.fish").exists()
