"""docs/config.md, written from the schema: `python -m krelay.config.reference > docs/config.md`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from krelay.config.schema import load_schema

_INTRO = """\
# The file

<!-- Written by `python -m krelay.config.reference` from schema/krelay.schema.json. -->

`krelay up` reads `krelay.yaml` or `krelay.yml` in the current directory, the file of `-f`, or
standard input for `-f -`; a pipe (`<(…)`) is read once, at the start, and not watched. What a file
names (`include`, patches) is a regular file. A targets.txt of the Go krelay works as well: krelay
looks at what is in a file, not at its name. `krelay check` tells every problem of a file with its
line and column.

**YAML** is read by its version 1.2: `8080:53` is text, and only `true` and `false` are booleans.
Anchors, aliases and merge keys (`<<`) work. A key that krelay does not know is an error. A key
without a value is as good as no key, where the table's type has `null`.

**Variables**: `${VAR}` is the environment's, `${VAR:-default}` has a default for one that is
unset or empty, `$$` is a dollar. They work in values, never in keys, and fill in one value each:
what a variable holds cannot add lines or keys. Inside of `[ ]` and `{ }` they need quotes. Where
only text is allowed, what a variable holds is text, also if it looks like a number.

**Secrets** (`token`, `password`: what the schema marks `writeOnly`) are shown nowhere: not in an
error, a plan, a log or the status.

**Bounds**: a file has at most 1 MiB, 50,000 values (aliases and merged keys count for what they
stand for) and 4 MiB of text with its variables filled in; a config has at most 10,000 forwards.

**Durations** are seconds (`30`, `0.5`) or text such as `30s`, `5m`, `1h30m` and `500ms`.

**More files**: `include` lists files, in either format, whose targets follow those of the file
itself. A path starts in the directory of the file that it is written in (for standard input: in
the working directory); `~` is nothing special. Each included krelay.yaml stands on its own: its
`context`, `namespace` and `defaults` hold for its own targets, and those of the including file do
not. The lines of a targets.txt cannot say such things and take them from the including file.
`agent`, `tunnel` and `status` are for the first file alone. An included file may include others;
all are read once, the names of targets and the local addresses are unique across them, and 100
files (those of `agent.patches` too) are the most.

**A target** is `TYPE/NAME`. The types are `svc`, `deploy`, `sts`, `ds`, `rs`, `job` and `pod`, by
any name that kubectl has for them (`service/`, `deployments.apps/`); `host/NAME`, a name that is
resolved inside the cluster; and `ip/ADDRESS`. A bare name is a pod.

**A port** is `[LOCAL:]REMOTE[/PROTOCOL]`, or with `@` before the protocol:

| written | listens on | relays to |
|---|---|---|
| `8080:80` | 8080 | 80 |
| `8080` | 8080 | 8080 |
| `:80` or `0:80` | a free port | 80 |
| `8080:http` | 8080 | the port named http |
| `http` | the number of the port named http | the port named http |
| `5353:53/udp` | 5353, UDP | 53, UDP |

**A line** of targets.txt, or of a text in `targets`, is a target and its ports, with
`-n NAMESPACE` (`--namespace`) and `-l ADDRESS` (`--address`) anywhere in it. A comment starts with
`#` or `//`.

**A check** is what shows that a target works while nothing that is relayed does, every 10 s at
most; `krelay up` probes through the tunnel, as a connection would.

| written | a TCP port | a UDP port |
|---|---|---|
| `dial` | the agent connects, and closes at once | as `none` |
| `http [METHOD] /PATH [-> STATUS]` | a request is answered with that status | as `none` |
| `dns NAME` | as `dial` | a query for NAME is answered, whatever the answer |
| `none` | nothing is asked: bound, resolved and the agent reached is ready | the same |

`http` asks without TLS, waits 10 s, and is content with 200 to 399 where no status is given. Some
servers count a connection that says nothing against who made it (MySQL's `max_connect_errors`):
`none` is for them; a connection that fails makes such a target degraded for 10 s.

## Keys
"""


def markdown() -> str:
    """The whole page."""
    parts = [_INTRO]
    for path, properties in _sections((), load_schema(), load_schema()["definitions"]):
        parts.append(f"\n### {path}\n\n| key | type | default | what it is |\n|---|---|---|---|\n")
        parts += [_row(key, rules) for key, rules in properties.items()]
    return "".join(parts)


def _sections(
    path: tuple[str, ...], rules: dict[str, Any], definitions: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping of the format under its name, outermost first."""
    if properties := rules.get("properties"):
        yield f"`{'.'.join(path)}`" if path else "The file", properties
    for key, child in rules.get("properties", {}).items():
        yield from _sections((*path, key), child, definitions)
    for step in ("items", "additionalProperties"):
        child = rules.get(step)
        if isinstance(child, dict):
            if "$ref" in child:
                child = definitions[child["$ref"].rpartition("/")[2]]
            name = f"{path[-1]}[]" if step == "items" else f"{path[-1]}.NAME"
            yield from _sections((*path[:-1], name), child, definitions)


def _row(key: str, rules: dict[str, Any]) -> str:
    if "enum" in rules:
        kind = ", ".join(word and f"`{word}`" or json.dumps(word) for word in rules["enum"])
    elif "type" in rules:
        kind = rules["type"] if isinstance(rules["type"], str) else " or ".join(rules["type"])
    else:
        kind = "any" if "allOf" not in rules else "as in `ports`"
    default = "" if rules["default"] is None else f"`{json.dumps(rules['default'])}`"
    return f"| `{key}` | {kind} | {default} | {rules['description'].replace('|', '/')} |\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
