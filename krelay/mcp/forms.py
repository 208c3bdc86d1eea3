"""The arguments and results of the tools. Their schemas, which models read, come from here."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.json_schema import GenerateJsonSchema

from krelay.errors import UsageError

MOST_TARGETS = 200
MOST_EVENTS = 200
MOST_LINES = 500
MOST_FINDINGS = 200
MOST_SECONDS = 3_600
_MOST_WORDS = 1_000
_WORDS = {"extra_forbidden": "no such argument"}
"""Errors that pydantic words badly for a model."""


class _Schema(GenerateJsonSchema):
    """Leaves out the titles, which repeat the names."""

    def field_title_should_be_set(self, schema: object) -> bool:
        return False


def schema_of(form: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON Schema of arguments or of a result."""
    return form.model_json_schema(schema_generator=_Schema)


def _from_text(value: object) -> object:
    """Return a list that a client has sent as its JSON text."""
    if isinstance(value, str) and value.startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


Words = Annotated[list[str], BeforeValidator(_from_text), Field(max_length=_MOST_WORDS)]


# -- arguments -------------------------------------------------------------------------------------


class Arguments(BaseModel):
    """The arguments of every tool."""

    model_config = ConfigDict(extra="forbid")
    file: str | None = Field(
        None, description="The file of the krelay to ask; needed only if several krelays run."
    )

    @classmethod
    def read(cls, given: dict[str, Any]) -> Arguments:
        """Return the arguments of a call.

        Raises:
            UsageError: they do not match the schema.
        """
        try:
            return cls.model_validate(given)
        except ValidationError as exc:
            found = exc.errors(include_url=False, include_input=False)
        problems = [
            f"`{'.'.join(map(str, each['loc']))}`: {_WORDS.get(each['type'], each['msg'].lower())}"
            for each in found
        ]
        known = ", ".join(f"`{name}`" for name in cls.model_fields)
        raise UsageError("; ".join(problems), hint=f"the arguments are {known}")


class TargetsArguments(Arguments):
    names: Words = Field([], description="Show only the targets with these names; empty: all.")


class StateArguments(TargetsArguments):
    pass


class EventsArguments(Arguments):
    target: str | None = Field(None, description="Only events about this target.")
    after: int = Field(
        0, ge=0, description="Only events with a higher number: `last` of an earlier answer."
    )
    limit: int = Field(50, ge=1, le=MOST_EVENTS, description="The newest so many events.")


class LogsArguments(Arguments):
    target: str | None = Field(None, description="Only lines about this target.")
    lines: int = Field(50, ge=1, le=MOST_LINES, description="The newest so many lines.")


class RunArguments(Arguments):
    command: Words = Field(
        min_length=1,
        description='The program and its arguments: ["pytest", "-q"]. No shell reads it.',
    )
    timeout: float = Field(
        300, gt=0, le=MOST_SECONDS, description="Seconds after which the command is ended."
    )
    targets: Words = Field(
        [], description="Names of the targets that the command needs; empty: all of the file."
    )


# -- results ---------------------------------------------------------------------------------------


class Result(BaseModel):
    """What every result has."""

    file: str | None = Field(description="The file of the krelay that this is about.")


class Port(BaseModel):
    local: list[str] = Field(description="Where to connect on this machine: HOST:PORT.")
    to: str = Field(description="What in the cluster it leads to.")
    protocol: str | None = Field(description="tcp or udp; null while unknown.")
    state: str = Field(description="pending, ready, degraded, failed or draining.")
    reason: str = Field(description="Why it is in this state.")
    hint: str | None = Field(description="What mends it, if it is not ready and that is known.")
    since: str = Field(description="When it entered this state.")
    connections: int = Field(description="Open connections and UDP flows.")


class TargetState(BaseModel):
    name: str
    ready: bool = Field(description="Whether connections to all of its ports should work now.")
    ports: list[Port]


class Targets(Result):
    ready: bool = Field(description="Whether every target of the file is ready.")
    in_sync: bool = Field(description="Whether the running config is the file as saved now.")
    out_of_sync: str | None = Field(description="Why it is not.")
    targets: list[TargetState] = Field(description="Those that are not ready come first.")
    left_out: int = Field(description="Targets that did not fit.")


class State(Result):
    state: dict[str, Any] = Field(
        description="The snapshot of `krelay status --output json`, without histograms."
    )
    left_out: int = Field(description="Forwards that did not fit.")


class Event(BaseModel):
    number: int
    time: str
    kind: str = Field(description="state, agent, tunnel, context or reload.")
    target: str | None = Field(description="The target that it is about, if it is about one.")
    text: str


class Events(Result):
    events: list[Event] = Field(description="Oldest first.")
    last: int = Field(description="The number of the newest event, as `after` of a later call.")


class Logs(Result):
    lines: list[str] = Field(description="Oldest first.")
    left_out: int = Field(description="Older lines that did not fit.")


class Finding(BaseModel):
    check: str
    status: str = Field(description="ok, warning, failed or skipped.")
    text: str
    hint: str | None = Field(description="What mends it.")
    command: str | None = Field(description="A command line that does so.")
    context: str | None = Field(description="The kubeconfig context, if there are several.")


class Doctor(Result):
    ok: bool = Field(description="Whether nothing has failed.")
    findings: list[Finding]
    left_out: int = Field(description="Findings that did not fit.")


class Change(BaseModel):
    sign: str = Field(description="`+` added, `-` removed, `~` changed.")
    text: str


class Changes(Result):
    running: bool = Field(description="Whether a krelay runs the file; if not, `up` would do this.")
    changes: list[Change] = Field(description="Empty if nothing changes.")
    left_out: int = Field(description="Changes that did not fit.")


class Ran(Result):
    exit_code: int | None = Field(description="As a shell's; null if it did not end in time.")
    seconds: float
    output: str = Field(description="Both of its output streams; a long one lacks its middle.")
    variables: dict[str, str] = Field(
        description="The addresses of the forwards in its environment, if krelay ran already."
    )
