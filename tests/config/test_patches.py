from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from krelay.config import load
from krelay.errors import ConfigError, Problem
from krelay.model import Patch

ENTRY_LINE = 5


def config(folder: Path, entry: str) -> Path:
    path = folder / "krelay.yaml"
    path.write_text(
        f"apiVersion: krelay/v1\ntargets: {{a: svc/a 80}}\nagent:\n  patches:\n    - {entry}\n"
    )
    return path


def problems(path: Path) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        load(str(path), environ={})
    assert caught.value.files[0] == str(path)
    return caught.value.problems


OPERATIONS = [{"op": "add", "path": "/spec/x", "value": {"y": None}}]


@pytest.mark.parametrize(
    ("words", "text", "patch"),
    [
        ("", "spec:\n  name: ${NAME}\n", Patch({"spec": {"name": "high"}})),
        ("type: merge, target: job", "{}", Patch({}, "merge", "job")),
        ("type: json", "- {op: add, path: /a}", Patch(({"op": "add", "path": "/a"},), "json")),
        ("type: json", json.dumps(OPERATIONS, indent=2), Patch(tuple(OPERATIONS), "json")),
        ("", json.dumps({"spec": {"a": 1}}, indent="\t"), Patch({"spec": {"a": 1}})),
    ],
)
def test_a_patch_from_a_file(tmp_path: Path, words: str, text: str, patch: Patch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "p").write_text(text)
    path = config(tmp_path, f"{{file: 'sub/${{FILE}}', {words}}}")
    made = load(str(path), environ={"NAME": "high", "FILE": "p"})
    assert made.agent.patches == (patch,)
    assert made.files == (str(path), f"{tmp_path}/sub/p")


def test_one_file_may_serve_several_patches(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("metadata: {labels: {a: b}}")
    path = config(tmp_path, "file: p\n    - {file: ./p, target: job}\n    - {file: p, type: merge}")
    made = load(str(path), environ={})
    assert [patch.target for patch in made.agent.patches] == ["pod", "job", "pod"]
    assert made.files == (str(path), f"{tmp_path}/p", f"{tmp_path}/./p")


@pytest.mark.parametrize(
    ("words", "text", "expected"),
    [
        ("", "spec:\n  a: ]", [(2, 6, "`]` is unexpected")]),
        ("", b"a: b\nc: \xff", [(2, 4, "byte 0xff is not UTF-8")]),
        ("", b"#" * 1024 * 1025, [(0, 0, "the file is larger than 1 MiB")]),
        ("", "# nothing\n", [(1, 1, "the file is empty")]),
        ("", "a: 1\n---\nb: 2\n", [(2, 1, "a second document")]),
        ("", "a:\n  b: x${NO}y", [(2, 7, "the variable `NO` is not set")]),
        ("", "text", [(1, 1, "the file must be a mapping or a list, not the text `text`")]),
        ("", "\n- {op: add, path: /a}", [(2, 1, "a list is a patch of type json")]),
        ("type: json", "\n\na: b", [(3, 1, "a patch of type json is a list")]),
        (
            "type: json",
            "- {op: put, path: a}\n- {value: 1}\n- op: test\n  path: /a\n  values: 1\n",
            [
                (1, 8, "`[0].op` cannot be `put`"),
                (1, 19, "`[0].path` cannot be `a`"),
                (2, 3, "`[1]` has no `op`"),
                (2, 3, "`[1]` has no `path`"),
                (5, 3, "unknown key `values`"),
            ],
        ),
    ],
)
def test_what_is_wrong_in_the_file(
    tmp_path: Path, words: str, text: str | bytes, expected: list[Any]
) -> None:
    patch = tmp_path / "p.yaml"
    patch.write_bytes(text.encode() if isinstance(text, str) else text)
    found = problems(config(tmp_path, f"{{file: p.yaml, {words}}}"))
    assert {problem.path for problem in found} == {str(patch)}
    assert [(p.line, p.column, p.message) for p in found] == expected


@pytest.mark.parametrize("name", ["none.yaml", ".", "~/p.yaml"])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    path = config(tmp_path, f"{{type: json, file: {name}}}")
    with pytest.raises(ConfigError) as caught:
        load(str(path), environ={})
    (problem,) = caught.value.problems
    assert (problem.path, problem.line, problem.column) == (None, ENTRY_LINE, 26)
    assert problem.message.startswith(f"cannot read '{tmp_path}/")
    assert ("`~`" in str(problem.hint)) == name.startswith("~")
    assert caught.value.files == (str(path), str(tmp_path) + f"/{name}")


def test_neither_here_nor_in_a_file(tmp_path: Path) -> None:
    (problem,) = problems(config(tmp_path, "{type: json}"))
    assert problem.message == "`agent.patches[0]` has neither `patch` nor `file`"


def test_there_is_an_end_to_files(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("{}")
    path = config(tmp_path, "\n    - ".join(["file: p"] * 101))
    found = problems(path)
    assert [(p.line, p.message) for p in found] == [
        (ENTRY_LINE + 99, "more than 100 files"),
        (ENTRY_LINE + 100, "more than 100 files"),
    ]
