from __future__ import annotations

import os
from pathlib import Path

import pytest

from krelay.config import load, parse
from krelay.config.files import MAX_FILES
from krelay.errors import ConfigError
from krelay.model import Config

HEAD = "apiVersion: krelay/v1\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, so that paths are short to write."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(files: dict[str, str]) -> None:
    """Files by their paths; a krelay.yaml gets its first line, and target lists are short."""
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text if name.endswith(".txt") else HEAD + text)


def failure(path: str = "krelay.yaml", **environ: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(path, environ=environ)
    return caught.value


def told(error: ConfigError) -> list[str]:
    return [f"{p.path or error.path}:{p.line}:{p.column} {p.message}" for p in error.problems]


def names(config: Config) -> list[str]:
    return [target.name for target in config.targets]


def test_targets_in_their_order_and_files_as_opened(folder: Path) -> None:
    write(
        {
            "krelay.yaml": "include: [sub/a.yaml, '${LAST}']\ntargets: {own: svc/a :1}\n",
            "sub/a.yaml": "targets: {a: svc/a :1}\ninclude: [../b.yaml, c.txt]\n",
            "b.yaml": "targets: {b: svc/a :1}\n",
            "sub/c.txt": "svc/c :1\n",
            "last.txt": "svc/last :1\n",
        }
    )
    made = load("krelay.yaml", environ={"LAST": f"{folder}/last.txt"})
    assert names(made) == ["own", "a", "b", "svc/c :1", "svc/last :1"]
    assert made.path == "krelay.yaml"
    assert made.files == (
        "krelay.yaml",
        "sub/a.yaml",
        "sub/../b.yaml",
        "sub/c.txt",
        f"{folder}/last.txt",
    )
    assert [target.file for target in made.targets] == list(made.files)
    assert made == parse(Path("krelay.yaml").read_text(), "krelay.yaml", {"LAST": "last.txt"})


def test_targets_may_all_be_included(folder: Path) -> None:
    write({"krelay.yaml": "include: [a.txt]\n", "a.txt": "svc/a 80\n"})
    assert names(load(None, environ={})) == ["svc/a 80"]


@pytest.mark.usefixtures("folder")
def test_standard_input_includes_from_the_working_directory() -> None:
    write({"a.txt": "svc/a 80\n"})
    text = HEAD.encode() + b"include: [a.txt, none.txt]\n"
    with pytest.raises(ConfigError) as caught:
        load("-", environ={}, text=text)
    assert told(caught.value) == ["<stdin>:2:18 cannot read 'none.txt': no such file or directory"]
    assert caught.value.files == ("a.txt", "none.txt")
    made = load("-", environ={}, text=text.replace(b", none.txt", b""))
    assert (made.path, made.files) == ("<stdin>", ("a.txt",))


@pytest.mark.usefixtures("folder")
def test_what_holds_for_the_targets_of_an_included_file() -> None:
    write(
        {
            "krelay.yaml": "namespace: main\ncontext: main\ndefaults: {listen: '::1'}\n"
            "include: [bare.yaml, own.yaml, lines.txt]\n",
            "bare.yaml": "targets: {bare: svc/a :1}\n",
            "own.yaml": "namespace: own\ncontext: own\ndefaults: {namespace: deeper}\n"
            "targets: {own: svc/a :1}\ninclude: [below.txt]\n",
            "below.txt": "svc/below :1\n",
            "lines.txt": "svc/line :1\nsvc/line :1 -n said -l ::2\n",
        }
    )
    made = load("krelay.yaml", environ={})
    assert [(t.name, t.namespace, t.context, t.listen) for t in made.targets] == [
        ("bare", None, None, "127.0.0.1"),
        ("own", "deeper", "own", "127.0.0.1"),
        ("svc/below :1", "deeper", "own", "127.0.0.1"),
        ("svc/line :1", "main", "main", "::1"),
        ("svc/line :1 -n said -l ::2", "said", "main", "::2"),
    ]
    assert (made.namespace, made.context) == ("main", "main")


MAIN = "include: [a.yaml]\ntargets: {x: svc/x 80}\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (  # every file's problems, each with its place
            {"krelay.yaml": MAIN + "oops: 1\n", "a.yaml": "targets:\n  y: svc/${NO} 81\n"},
            ["krelay.yaml:4:1 unknown key `oops`", "a.yaml:3:10 the variable `NO` is not set"],
        ),
        (
            {"krelay.yaml": MAIN, "a.yaml": 'targets: "\n'},
            ["a.yaml:2:10 the quote that opens here is never closed"],
        ),
        ({"krelay.yaml": MAIN, "a.yaml": "a: b: c"}, ["a.yaml:2:5 unexpected `:`"]),
        (
            {"krelay.yaml": "include: [a.txt]", "a.txt": "# none\n"},
            ["a.txt:1:1 no targets"],
        ),
        (
            {"krelay.yaml": "include: [a.txt]", "a.txt": "svc/a 80\n\nsvc/A 80\n"},
            ["a.txt:3:5 `A` cannot be the name of an object"],
        ),
        (
            {"krelay.yaml": "include: [a.txt]", "a.txt": "svc/a 80\0\n"},
            ["a.txt:1:9 the character U+0000 does not belong in a text file"],
        ),
        (  # what an included file may not say
            {
                "krelay.yaml": MAIN,
                "a.yaml": "agent: {nonsense: 1}\ntunnel:\ntargets: {y: svc/y 81}\n",
            },
            [
                "a.yaml:2:1 `agent` belongs in the file that includes this one",
                "a.yaml:3:1 `tunnel` belongs in the file that includes this one",
            ],
        ),
        (
            {"krelay.yaml": MAIN, "a.yaml": "namespace: n\n"},
            ["a.yaml:1:1 the file has no `targets`"],
        ),
        (
            {"krelay.yaml": MAIN, "a.yaml": "include: [b.txt]\n", "b.txt": "svc/b 81\n"},
            ["a.yaml:1:1 an included file has no `targets`"],
        ),
        (  # a file twice
            {"krelay.yaml": MAIN, "a.yaml": "include: [./krelay.yaml]\ntargets: {y: svc/y 81}\n"},
            ["a.yaml:2:11 `./krelay.yaml` is included a second time"],
        ),
        (
            {
                "krelay.yaml": "include: [a.yaml, b.txt]\n",
                "a.yaml": "include:\n  - 'b.txt'\n  - sub/../a.yaml\ntargets: {y: svc/y 81}\n",
                "b.txt": "svc/b 82\n",
                "sub/c.txt": "",
            },
            [
                "krelay.yaml:2:19 `b.txt` is included a second time",
                "a.yaml:4:5 `sub/../a.yaml` is included a second time",
            ],
        ),
        (  # a file that is not there, by its name and by a block of text
            {"krelay.yaml": "include:\n  - none.yaml\n  - >-\n    none.txt\n"},
            [
                "krelay.yaml:3:5 cannot read 'none.yaml': no such file or directory",
                "krelay.yaml:4:5 cannot read 'none.txt': no such file or directory",
            ],
        ),
        (  # what is one among all files
            {
                "krelay.yaml": MAIN.replace("a.yaml", "a.yaml, b.txt"),
                "a.yaml": "targets:\n  z: svc/y 81\n  x: svc/x 80\n",
                "b.txt": "svc/b 82 81\n",
            },
            [
                "a.yaml:4:3 the name `x` is taken by krelay.yaml, line 3",
                "b.txt:1:10 `127.0.0.1:81/tcp` is taken by target `z`, line 3 of a.yaml",
            ],
        ),
        (
            {
                "krelay.yaml": "agent: {embedded: true}\ninclude: [b.txt]\n",
                "b.txt": "host/b 82\n  svc/b 83\n",
            },
            ["b.txt:2:3 `svc/b` is in a cluster, but the agent is embedded"],
        ),
    ],
)
@pytest.mark.usefixtures("folder")
def test_problems(files: dict[str, str], expected: list[str]) -> None:
    write(files)
    error = failure()
    assert told(error) == expected
    assert all(problem.path != error.path for problem in error.problems)
    assert set(error.files) >= {line.partition(":")[0] for line in expected}


@pytest.mark.parametrize(
    ("name", "text", "hint"),
    [
        ("a.yaml", "targets: {y: svc/y 81}\ntunnel: {}\n", "move it there"),
        ("a.yaml", "include: [krelay.yaml]\ntargets: {y: svc/y 81}\n", "it is the first file"),
        (
            "a.yaml",
            "include: [a.yaml]\ntargets: {y: svc/y 81}\n",
            "krelay.yaml includes it on line 2",
        ),
        ("b.yaml", "", "a path is relative to the directory of the file"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_hints(name: str, text: str, hint: str) -> None:
    write({"krelay.yaml": MAIN, name: text})
    (problem,) = failure().problems
    assert hint in str(problem.hint)


def test_a_link_is_the_file_that_it_leads_to(folder: Path) -> None:
    write({"krelay.yaml": "include: [a.txt, b.txt]\n", "a.txt": "svc/a 80\n"})
    os.symlink("a.txt", "b.txt")
    assert told(failure()) == ["krelay.yaml:2:18 `b.txt` is included a second time"]


@pytest.mark.usefixtures("folder")
def test_the_bytes_of_an_included_file_are_looked_at_as_well() -> None:
    write({"krelay.yaml": "include: [a.txt, b.txt, c.yaml, d.yaml]\n"})
    Path("a.txt").write_bytes(b"svc/a 80\n\xff")
    Path("b.txt").write_bytes(b"#" * 1024 * 1025)
    Path("c.yaml").write_bytes(b"")
    Path("d.yaml").write_bytes(b"- a: 1")
    error = failure()
    assert told(error) == [
        "a.txt:2:1 byte 0xff is not UTF-8",
        "b.txt:0:0 the file is larger than 1 MiB",
        "c.yaml:1:1 the file is empty",
        "d.yaml:1:1 neither a krelay.yaml nor a targets.txt",
    ]


@pytest.mark.parametrize("text", ["", "a: [", "x: 1\n" * 2, "\0"])
@pytest.mark.usefixtures("folder")
def test_the_files_of_every_error(text: str) -> None:
    Path("krelay.yaml").write_text(text)
    assert failure().files == ("krelay.yaml",)


@pytest.mark.usefixtures("folder")
def test_the_files_of_an_error_are_those_that_one_would_mend() -> None:
    write(
        {
            "krelay.yaml": "include: [a.yaml, sub/none.txt]\nagent: {patches: [{file: p}]}\n",
            "a.yaml": "include: [none.yaml]\ntargets: {a: svc/a 80}\n",
        }
    )
    error = failure()
    assert sorted(error.files) == ["a.yaml", "krelay.yaml", "none.yaml", "p", "sub/none.txt"]
    assert error.files[0] == "krelay.yaml"
    assert len(error.problems) == 3


@pytest.mark.usefixtures("folder")
def test_there_is_an_end_to_files() -> None:
    for number in range(MAX_FILES + 1):
        text = f"include: [{number + 1}.yaml]\ntargets: {{t{number}: svc/a :1}}\n"
        write({f"{number}.yaml": text})
    error = failure("0.yaml")
    assert told(error) == ["99.yaml:2:11 more than 100 files"]
    assert len(error.files) == MAX_FILES


@pytest.mark.usefixtures("folder")
def test_there_is_an_end_to_problems() -> None:
    lines = "".join(f"svc/A{n} 80\n" for n in range(60))
    write({"krelay.yaml": "include: [a.txt, b.txt]\n", "a.txt": lines, "b.txt": lines})
    last = failure().problems[-1]
    assert (last.path, last.line) == ("b.txt", 41)
    assert last.message == "more problems from here on; only the first 100 are shown"
