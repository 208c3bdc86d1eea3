"""pflag's forms of flags, for a command of click.

kubectl and the Go krelay read their command lines with pflag (github.com/spf13/pflag, flag.go),
which accepts `-n=NS`, `-nNS` and `--flag=false`, and takes any next word as a value, also `-x`.
click reads some of these otherwise. So a command line is read here, and click gets it in the one
form in which both agree: `--flag=value` for each flag, then `--` and the arguments.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field

import click

from krelay.errors import UsageError

_BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
}
"""As strconv.ParseBool."""


class PflagCommand(click.Command):
    """A command whose flags have pflag's forms."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; with `resilient_parsing`, up to the first error."""
        line = CommandLine(self.get_params(ctx))
        try:
            line.read(args)
        except UsageError:
            if not ctx.resilient_parsing:
                raise
        try:
            return super().parse_args(ctx, line.for_click())
        except click.BadParameter as exc:
            if exc.param is None:
                raise
            flag = max(exc.param.opts, key=len)
            raise UsageError(f"{flag}: {exc.message.rstrip('.')}", hint=_SEE) from exc


@dataclass(frozen=True, slots=True)
class _Flag:
    name: str
    is_boolean: bool


@dataclass
class CommandLine:
    """Flags and arguments, as pflag reads them."""

    params: Iterable[click.Parameter]
    words: list[str] = field(default_factory=list)
    _values: list[tuple[str, str]] = field(default_factory=list)
    _booleans: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._long: dict[str, _Flag] = {}
        self._short: dict[str, _Flag] = {}
        self._hidden: set[str] = set()
        for param in self.params:
            if not isinstance(param, click.Option):
                continue
            names = [name.removeprefix("--") for name in param.opts if name.startswith("--")]
            flag = _Flag(names[0], param.is_flag)
            self._long.update(dict.fromkeys(names, flag))
            self._short.update({name[1]: flag for name in param.opts if name[1] != "-"})
            self._hidden.update(names if param.hidden else ())

    def read(self, args: list[str]) -> None:
        """Read the arguments.

        Raises:
            UsageError: no such flag, or a flag without its value.
        """
        rest = iter(args)
        for word in rest:
            if word == "--":
                self.words += rest
            elif word.startswith("--"):
                self._read_long(word, rest)
            elif word.startswith("-") and word != "-":
                self._read_short(word, rest)
            else:
                self.words.append(word)

    def for_click(self) -> list[str]:
        """Return the same command line as click reads it."""
        booleans = [f"--{name}" for name, value in self._booleans.items() if value]
        return [
            *booleans,
            *(f"--{name}={value}" for name, value in self._values),
            "--",
            *self.words,
        ]

    def _read_long(self, word: str, rest: Iterable[str]) -> None:
        name, equals, value = word.removeprefix("--").partition("=")
        if not name or name.startswith("-"):
            raise UsageError(f"bad flag syntax: {word}", hint=_SEE)
        # kubectl takes `_` for `-` (component-base cli/flag, WordSepNormalizeFunc).
        flag = self._long.get(name) or self._long.get(name.replace("_", "-"))
        if flag is None:
            raise UsageError(f"unknown flag: --{name}", hint=self._nearest(name))
        if not equals:
            value = "true" if flag.is_boolean else _next(rest, f"--{name}")
        self._set(flag, value, f"--{name}")

    def _read_short(self, word: str, rest: Iterable[str]) -> None:
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            flag = self._short.get(letter)
            if flag is None:
                raise UsageError(f"unknown shorthand flag: {letter!r} in {word}", hint=_SEE)
            if len(letters) > 1 and letters[0] == "=":
                value, letters = letters[1:], ""
            elif flag.is_boolean:
                value = "true"
            elif letters:
                value, letters = letters, ""
            else:
                value = _next(rest, f"-{letter}")
            self._set(flag, value, f"-{letter}")

    def _set(self, flag: _Flag, value: str, shown: str) -> None:
        if not flag.is_boolean:
            self._values.append((flag.name, value))
        elif value in _BOOLEANS:
            self._booleans[flag.name] = _BOOLEANS[value]
        else:
            raise UsageError(f'invalid argument "{value}" for {shown}', hint="true or false")

    def _nearest(self, name: str) -> str:
        known = [name for name in self._long if name not in self._hidden]
        near = difflib.get_close_matches(name, known, n=1)
        return f"did you mean --{near[0]}?" if near else _SEE


_SEE = "`kubectl relay -h` lists the flags"


def _next(rest: Iterable[str], shown: str) -> str:
    """Return the next word as a value, whatever it looks like."""
    for value in rest:
        return value
    raise UsageError(f"flag needs an argument: {shown}", hint=_SEE)
