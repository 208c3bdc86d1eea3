"""pflag's forms of flags; tests/e2e/test_drop_in.py has the same beside kubectl."""

from __future__ import annotations

from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.cli.flags.pflag import CommandLine, PflagCommand
from krelay.errors import UsageError


@click.command("relay", cls=PflagCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("words", nargs=-1)
@click.option("-n", "--namespace")
@click.option("-f", "--file")
@click.option("-l", "--address", "--listen", "address", multiple=True)
@click.option("-v", "--v", "verbosity", type=int)
@click.option("--server.image", "image")
@click.option("--log-dir", "log_dir", hidden=True)
@click.option("--insecure", is_flag=True)
@click.option("-V", "--version", is_flag=True)
def relay(**found: Any) -> dict[str, Any]:
    """Return what was given."""
    return {name: value for name, value in found.items() if value not in (None, (), False)}


def parse(*args: str) -> dict[str, Any]:
    found: dict[str, Any] = relay.main(list(args), "relay", standalone_mode=False)
    return found


def test_a_value_of_the_wrong_kind_is_an_error_without_the_usage() -> None:
    with pytest.raises(UsageError) as caught:
        parse("-v", "abc")
    assert caught.value.message == "--v: 'abc' is not a valid integer"


@pytest.mark.parametrize(
    ("args", "found"),
    [
        (["-n", "x"], {"namespace": "x"}),
        (["-nx"], {"namespace": "x"}),
        (["-n=x"], {"namespace": "x"}),
        (["-n=x=y"], {"namespace": "x=y"}),
        (["-n="], {"namespace": "="}),  # as pflag: a value of one character
        (["--namespace", "x"], {"namespace": "x"}),
        (["--namespace=x"], {"namespace": "x"}),
        (["--namespace=x=y"], {"namespace": "x=y"}),
        (["--namespace="], {"namespace": ""}),
        (["-n", ""], {"namespace": ""}),
        (["-n", "-h"], {"namespace": "-h"}),
        (["-n", "--"], {"namespace": "--"}),
        (["--namespace", "--file=x"], {"namespace": "--file=x"}),
        (["-n", "x", "-n=y", "--namespace", "z"], {"namespace": "z"}),
        (["-v6"], {"verbosity": 6}),
        (["-v=6"], {"verbosity": 6}),
        (["-v", "-1"], {"verbosity": -1}),
        (["--v=6"], {"verbosity": 6}),
        (["-f=x", "a"], {"file": "x", "words": ("a",)}),
        (["-l=a", "-lb", "--listen", "c"], {"address": ("a", "b", "c")}),
        (["--server.image=x"], {"image": "x"}),
        (["--log_dir=x"], {"log_dir": "x"}),
        (["--insecure"], {"insecure": True}),
        (["--insecure=true"], {"insecure": True}),
        (["--insecure=T", "--insecure=0"], {}),
        (["--insecure=false", "--insecure"], {"insecure": True}),
        (["--insecure", "false"], {"insecure": True, "words": ("false",)}),
        (["-V=false"], {}),
        (["-Vn", "x"], {"version": True, "namespace": "x"}),
        (["-Vnx"], {"version": True, "namespace": "x"}),
        (["a", "-n", "x", "1", "--insecure"], {"insecure": True, "namespace": "x"}),
        (["--", "-n", "x"], {"words": ("-n", "x")}),
        (["-nx", "--", "a", "--", "1"], {"namespace": "x", "words": ("a", "--", "1")}),
        (["-", ""], {"words": ("-", "")}),
        (["-h=false", "a"], {"words": ("a",)}),
    ],
)
def test_a_form_of_pflag_is_read_as_pflag_reads_it(args: list[str], found: dict[str, Any]) -> None:
    words = {"words": tuple(word for word in args if word in ("a", "1"))} if "a" in args else {}
    assert parse(*args) == {**words, **found}


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (["--bogus"], "unknown flag: --bogus", "`kubectl relay -h`"),
        (["--adress=x"], "unknown flag: --adress", "did you mean --address?"),
        (["--log-dirs=x"], "unknown flag: --log-dirs", "`kubectl relay -h`"),
        (["-x"], "unknown shorthand flag: 'x' in -x", "-h"),
        (["-Vx"], "unknown shorthand flag: 'x' in -Vx", "-h"),
        (["-n"], "flag needs an argument: -n", "-h"),
        (["--file"], "flag needs an argument: --file", "-h"),
        (["--=x"], "bad flag syntax: --=x", "-h"),
        (["---file"], "bad flag syntax: ---file", "-h"),
        (["--insecure=maybe"], 'invalid argument "maybe" for --insecure', "true or false"),
        (["-V="], "unknown shorthand flag: '=' in -V=", "-h"),
        (["-h", "--bogus"], "unknown flag: --bogus", "-h"),
    ],
)
def test_a_wrong_flag_is_refused_in_pflags_words(args: list[str], message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(*args)
    assert caught.value.message == message
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    "args", [["-h"], ["a", "-h", "1"], ["--help=true"], ["-Vh"], ["-n", "x", "-h"]]
)
def test_help_is_shown_wherever_it_is_asked_for(
    args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    parse(*args)
    assert capsys.readouterr().out.startswith("Usage: ")


_WORDS = st.text(alphabet="-=nfVvx1a. ", max_size=6)


@given(st.lists(_WORDS, max_size=5))
def test_any_command_line_is_read_or_refused(args: list[str]) -> None:
    line = CommandLine(relay.params)
    try:
        line.read(args)
    except UsageError:
        return
    again = CommandLine(relay.params)
    again.read(line.for_click())
    assert again.for_click() == line.for_click()


@given(st.lists(_WORDS, max_size=5))
def test_an_unfinished_command_line_can_be_completed(args: list[str]) -> None:
    relay.make_context("relay", args, resilient_parsing=True)
