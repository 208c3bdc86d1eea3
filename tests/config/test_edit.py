"""Edits of a krelay.yaml's text: a target more or less, and all other bytes as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.config import parse
from krelay.config.edit import Value, append_line, insert, remove
from krelay.errors import UsageError

CORPUS = Path(__file__).parent / "data" / "valid"
HEAD = "apiVersion: krelay/v1\n"
DB = "-n data svc/db 5432:x"
LONG = {"target": "svc/db", "ports": [5432, "1:2"], "context": "my prod"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # Below the last target, before comments that may belong to what follows.
        ("targets:\n  a: svc/a 80 # x\n  # b: y\n\nproxies: {}", None),
        ("targets:\n    a:\n        target: svc/a\n        port: 80", None),
        ("targets:\n  a: >-\n    svc/a\n    80\n\n  # end\nagent: {}\n", None),
        ("targets: {}\n", "targets: {db: -n data svc/db 5432:x}\n"),
        ("targets: { } # none", "targets: { db: -n data svc/db 5432:x} # none"),
        ("targets: {a: svc/a 80,}\n", "targets: {a: svc/a 80, db: -n data svc/db 5432:x}\n"),
        ("targets: {a: svc/a 80}\n", "targets: {a: svc/a 80, db: -n data svc/db 5432:x}\n"),
        (
            "targets: {\n  a: svc/a 80, # one\n  b: svc/b 81 # two, three\n}\n",
            (
                "targets: {\n  a: svc/a 80, # one\n  b: svc/b 81, # two, three\n"
                "  db: -n data svc/db 5432:x\n}\n"
            ),
        ),
        (
            "targets: {\n  a: svc/a 80, # one\n}\n",
            "targets: {\n  a: svc/a 80, # one\n  db: -n data svc/db 5432:x,\n}\n",
        ),
        ("targets:\n", "targets:\n  db: -n data svc/db 5432:x\n"),
        (
            "targets: ~ # none\n    # a: x\n    # b: y\n\n# c\ntunnel: {}",
            (
                "targets:  # none\n    # a: x\n    # b: y\n    db: -n data svc/db 5432:x\n"
                "\n# c\ntunnel: {}"
            ),
        ),
        ("include: [x]", "include: [x]\ntargets:\n  db: -n data svc/db 5432:x\n"),
        (
            "agent:\n    replicas: 2\n# end\n",
            "agent:\n    replicas: 2\ntargets:\n    db: -n data svc/db 5432:x\n# end\n",
        ),
        ("targets:\n  a: svc/a ${P:-80}\n...\n", None),
    ],
)
def test_a_target_is_added_at_the_end_of_the_targets(before: str, after: str | None) -> None:
    result = insert(HEAD + before, "db", DB)
    if after is not None:
        assert result == HEAD + after
        return
    lines = [line for line in result.splitlines() if line.strip().startswith("db: ")]
    assert len(lines) == 1
    rest = result.replace(lines[0] + "\n", "")
    assert rest.rstrip("\n") == (HEAD + before).rstrip("\n")
    assert remove(result, "db").rstrip("\n") == (HEAD + before).rstrip("\n")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            '{"apiVersion": "krelay/v1",\n  "targets": {\n    "a": "svc/a 80"\n  }\n}\n',
            (
                '{"apiVersion": "krelay/v1",\n  "targets": {\n    "a": "svc/a 80",\n'
                '    "db": "-n data svc/db 5432:x"\n  }\n}\n'
            ),
        ),
        (
            '{"apiVersion": "krelay/v1"}',
            '{"apiVersion": "krelay/v1", "targets": {"db": "-n data svc/db 5432:x"}}',
        ),
        (
            "{apiVersion: krelay/v1, targets: }",
            "{apiVersion: krelay/v1, targets: {db: -n data svc/db 5432:x}}",
        ),
        ("{apiVersion: x, targets: null}", "{apiVersion: x, targets: {db: -n data svc/db 5432:x}}"),
    ],
)
def test_a_file_in_json_or_on_one_line_stays_so(before: str, after: str) -> None:
    assert insert(before, "db", DB) == after


def test_a_target_may_be_a_mapping() -> None:
    text = HEAD + "targets:\n  a: svc/a 80\n"
    added = insert(text, "db", LONG)
    assert added == text + ("  db: {target: svc/db, ports: [5432, '1:2'], context: my prod}\n")
    (_, target) = parse(added, "krelay.yaml", {}).targets
    assert (str(target), target.context) == ("svc/db", "my prod")
    json = '{"targets": {"a": "svc/a 80"}}'
    assert insert(json, "db", LONG).endswith(
        ', "db": {"target": "svc/db", "ports": [5432, "1:2"], "context": "my prod"}}}'
    )


def test_line_ends_and_a_byte_order_mark_stay() -> None:
    before = "\ufeffapiVersion: krelay/v1\r\ntargets:\r\n  ä: x\r\n# ü"
    assert insert(before, "db", DB) == before.replace("# ü", f"  db: {DB}\r\n# ü")
    assert insert("a: 1\rtargets:\r", "db", DB) == f"a: 1\rtargets:\r  db: {DB}\r"


@pytest.mark.parametrize("name", ["on", "null", "1", "1.5", "0x1", "~"])
def test_a_name_that_yaml_would_type_is_quoted(name: str) -> None:
    added = insert(HEAD + "targets: {}", name, "svc/a 80")
    assert f"{'' if name == 'on' else chr(34)}{name}" in added


@pytest.mark.parametrize(
    "text",
    [
        *("", "# x\n", "a: [", "- a\n", "targets: [a]\n", "text", "a: 1\n---\nb: 2\n"),
        HEAD + "targets: &t\n  a: svc/a 80\nx: *t\n",
        HEAD + "x: &t {a: svc/a 80}\ntargets: *t\n",
        HEAD + "targets:\n  a: |+\n    svc/a 80\n\n",
        HEAD + "targets:\n  db: svc/db 1\n",
        HEAD + "targets: text\n",
    ],
)
def test_a_text_that_cannot_be_edited_gets_the_line_to_add(text: str) -> None:
    with pytest.raises(UsageError, match="cannot edit this file") as caught:
        insert(text, "db", DB)
    assert caught.value.hint == "add `db: -n data svc/db 5432:x` by hand"


@pytest.mark.parametrize(
    ("before", "name", "after"),
    [
        (
            "targets:\n  a: svc/a 80 # x\n  # c\n  b: svc/b 81\n",
            "a",
            "targets:\n  # c\n  b: svc/b 81\n",
        ),
        (
            "targets:\n  a: svc/a 80\n  b:\n    target: svc/b\n    port: 81\n# c",
            "b",
            "targets:\n  a: svc/a 80\n# c",
        ),
        ("targets:\n  a: svc/a 80", "a", "targets:\n"),
        ("targets: {a: svc/a 80, b: svc/b 81}", "a", "targets: {b: svc/b 81}"),
        ("targets: {a: svc/a 80, b: svc/b 81}", "b", "targets: {a: svc/a 80}"),
        ("targets: {a: svc/a 80}", "a", "targets: {}"),
    ],
)
def test_a_target_is_removed_with_its_line(before: str, name: str, after: str) -> None:
    assert remove(HEAD + before, name) == HEAD + after


@pytest.mark.parametrize(
    "text",
    [
        *("", "a: [", "targets: {b: svc/b 80}", "x: 1", "targets: text"),
        "targets:\n  a: &a svc/a 80\n  b: *a\n",
        "x: &x\n  a: svc/a 80\ntargets:\n  <<: *x\n  b: svc/b 1\n",
    ],
)
def test_a_target_that_cannot_be_removed_is_an_error(text: str) -> None:
    with pytest.raises(UsageError, match="cannot remove `a`") as caught:
        remove(text, "a")
    assert caught.value.hint


def test_a_line_is_appended_to_a_targets_txt() -> None:
    assert append_line("svc/a 80", "svc/b 81") == "svc/a 80\nsvc/b 81\n"
    assert append_line("svc/a 80\r\n", "svc/b 81") == "svc/a 80\r\nsvc/b 81\r\n"
    assert append_line("", "svc/b 81") == "svc/b 81\n"


ROOT = Path(__file__).parents[2]
FILES = [
    ROOT / "krelay.yaml.example",
    *ROOT.glob("examples/**/krelay.yaml"),
    *(path for path in CORPUS.glob("*.yaml") if path.name != "disguised-targets.yaml"),
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_real_files_can_be_edited_and_get_back(path: Path) -> None:
    text = path.read_bytes().decode()
    added = insert(text, "zz-new", "svc/zz :1")
    assert added != text
    assert remove(added, "zz-new") == text


NAMES = st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,8}[a-z0-9])?", fullmatch=True)
COMMENTS = st.sampled_from(["", " # c", " # a: {b, c}", "  # ü"])
LINES = st.builds(
    lambda n, p: f"svc/{n.replace('_', 'x').replace('.', 'x').replace('-', 'x')} :{p}",
    NAMES,
    st.integers(1, 65535),
)
LONGS = LINES.map(lambda line: {"target": line.split()[0], "ports": [line.split()[1]]})


@st.composite
def documents(draw: st.DrawFn) -> str:
    """A valid file in one of many layouts."""
    targets = draw(st.dictionaries(NAMES, LINES, max_size=4))
    step = " " * draw(st.integers(1, 6))
    lines = [draw(st.sampled_from(["apiVersion: krelay/v1", "apiVersion: 'krelay/v1' # v"]))]
    layout = draw(st.sampled_from(["block", "long", "flow", "lines", "trailing"]))
    if not targets:
        lines.append(
            draw(st.sampled_from(["targets:", "targets: {}", "targets: ~", "targets: { }"]))
        )
    elif layout in ("block", "long"):
        lines.append("targets:" + draw(COMMENTS))
        for name, line in targets.items():
            lines += draw(st.sampled_from([[], [""], [f"{step}# c"]]))
            if layout == "block":
                lines.append(f'{step}"{name}": {line}{draw(COMMENTS)}')
                continue
            resource, port = line.split()
            lines += [f'{step}"{name}":{draw(COMMENTS)}', f"{step}  target: {resource}"]
            lines += [f"{step}  ports:{draw(COMMENTS)}", f'{step}  - "{port}"{draw(COMMENTS)}']
    else:
        inside = [f'"{name}": "{line}"' for name, line in targets.items()]
        if layout == "flow":
            lines.append(f"targets: {{{', '.join(inside)}}}{draw(COMMENTS)}")
        else:
            end = "," if layout == "trailing" else ""
            each = [f"{step}{one}," for one in inside[:-1]] + [f"{step}{inside[-1]}{end}"]
            lines += ["targets: {", *(line + draw(COMMENTS) for line in each), "}"]
    lines += draw(st.sampled_from([[], ["# end"], ["", "tunnel: {sessions: 3}"], ["  # in", ""]]))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    return (
        draw(st.sampled_from(["", "\ufeff"])) + end.join(lines) + draw(st.sampled_from(["", end]))
    )


@given(documents(), NAMES, LINES | LONGS)
def test_an_edit_changes_nothing_but_the_target(text: str, name: str, value: Value) -> None:
    def config(text: str) -> dict[str, str]:
        clean = text.removeprefix("\ufeff").replace("\r\n", "\n")
        found = parse(clean, "krelay.yaml", {})
        assert found.tunnel.sessions == (3 if "sessions" in text else 2)
        return {t.name: f"{t} {' '.join(map(str, t.ports))}" for t in found.targets}

    empty = "svc/" not in text
    before = {} if empty else config(text)
    if name in before:
        with pytest.raises(UsageError):
            insert(text, name, value)
        return
    added = insert(text, name, value)
    shown = value if isinstance(value, str) else f"{value['target']} {value['ports'][0]}"
    assert list(config(added).items()) == [*before.items(), (name, shown)]
    # All other lines are there, in their order.
    kept = iter(added.splitlines())
    for line in text.splitlines():
        changed = line.split("#")[0].rstrip().rstrip(",}~ {")
        assert any(other == line or other.startswith(changed) for other in kept)
    if not empty:
        assert config(remove(added, name)) == before
        if "targets: {" not in text and text.endswith("\n"):
            assert remove(added, name) == text
