from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.config import load, parse, parse_target
from krelay.config.files import MAX_FILES
from krelay.config.grammar import parse_line, split, target_of
from krelay.config.load import read_lines
from krelay.errors import ConfigError, UsageError
from krelay.model import Config, Kind, Port, Protocol, Target

YAML = b"apiVersion: krelay/v1\ntargets: {web: 'svc/web ${PORT:-80}'}\n"


def test_the_file_of_the_directory_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no krelay.yaml"):
        load(None, environ={})
    Path("krelay.yaml").write_bytes(YAML)
    made = load(None, environ={"PORT": "81"})
    assert made.path == "krelay.yaml"
    assert made.targets == (Target("web", Kind.SERVICE, "web", (Port(81, 81),)),)


def test_standard_input_is_loaded() -> None:
    assert load("-", environ={}, text=YAML).path == "<stdin>"
    assert load("-", environ={}, text=b"svc/a 80\n").targets[0].name == "svc/a 80"
    with pytest.raises(ConfigError, match="<stdin>: 1 problem$"):
        load("-", environ={}, text=b"")


def test_a_text_may_come_with_its_mark_and_line_ends() -> None:
    text = "\ufeff" + YAML.decode().replace("\n", "\r\n")
    assert parse(text, "x", {}).targets[0].ports == (Port(80, 80),)


def test_problems_of_all_stages_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(
            "apiVersion: krelay/v1\nnope: ${X}\ncontext: ${X}\ntargets:\n"
            "  a: svc/a 80\n  b: svc/b 80\n  c: svc/c http/x\n",
            "x.yaml",
            {},
        )
    assert [(p.line, p.column) for p in caught.value.problems] == [
        (2, 1), (2, 7), (3, 10), (6, 12), (7, 17)
    ]  # fmt: skip
    assert str(caught.value) == "x.yaml: 5 problems"


def test_a_problem_of_an_alias_is_reported_once() -> None:
    text = "apiVersion: krelay/v1\ntargets:\n  a: &a {x: 1, target: svc/a, port: ':1'}\n  b: *a\n"
    with pytest.raises(ConfigError) as caught:
        parse(text, "x.yaml", {})
    assert [problem.message for problem in caught.value.problems] == ["unknown key `x`"]


def test_overlapping_addresses_are_problems() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("svc/a 80\nsvc/b 80/tcp\nsvc/c 80/tcp -l 0.0.0.0\n", "t.txt", {})
    first, second = caught.value.problems
    assert first.message == "`127.0.0.1:80/tcp` is taken by target `svc/a 80`, line 1"
    assert "/udp" in str(first.hint)
    assert "overlaps `127.0.0.1:80/tcp`" in second.message
    with pytest.raises(ConfigError) as caught:
        parse("svc/a 80/udp\nsvc/b 80/udp\n", "t.txt", {})
    assert caught.value.problems[0].hint == "give one of them another local port"


def test_the_number_of_problems_is_limited() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("".join(f"svc/A{n} 80\n" for n in range(300)), "t.txt", {})
    assert len(caught.value.problems) == 101
    last = caught.value.problems[-1]
    assert (last.line, last.message) == (
        101,
        "more problems from here on; only the first 100 are shown",
    )


@pytest.mark.parametrize("text", ["- a: 1\n", "apiVersion\n", "5"])
def test_a_document_that_is_no_mapping_is_a_problem(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "x.yaml", {})
    assert "neither a krelay.yaml nor a targets.txt" in caught.value.problems[0].message


def test_a_file_with_a_broken_root_has_one_problem() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("[a]: 1\napiVersion: krelay/v1\n", "x.yaml", {})
    assert [problem.message for problem in caught.value.problems] == ["a key must be plain text"]


def test_a_target_of_the_command_line() -> None:
    target = parse_target(["-n", "dns", "svc/dns", ":53@udp", "http"], listen="::1", context="c")
    assert target == Target(
        "svc/dns :53/udp http -n dns",
        Kind.SERVICE,
        "dns",
        (Port(53, 0, Protocol.UDP), Port("http")),
        "dns",
        "c",
        "::1",
    )
    assert parse_target(["web", "80", "-l", "localhost"], namespace="n").namespace == "n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no target"),
        (["svc/a"], "`svc/a` has no port"),
        (["svc/a", "80", "80"], "`127.0.0.1:80/tcp` is used twice"),
        (["svc/a", "80 81"], "`80 81` is neither a port nor a port's name"),
    ],
)
def test_an_invalid_command_line_is_a_usage_error(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_target(words)
    assert caught.value.message == message
    assert caught.value.hint


LINE = """apiVersion: krelay/v1 targets: agent: tunnel: defaults: web: svc/a 80 8080:http - { } [
] , ${X} ${X:-1} *a &a << : port: ports: listen: ::1 -n -l # !!str ' " | > null true 1e9"""
WORDS = st.sampled_from([*LINE.split(), "\n", "\n  ", "\n    ", " "])
TEXTS = st.lists(WORDS, max_size=40).map("".join) | st.lists(WORDS, max_size=40).map(" ".join)


def outcome_of(text: str, path: str) -> Config | ConfigError:
    try:
        return parse(text, path, {"X": "1"})
    except ConfigError as error:
        return error


@given(TEXTS | st.text(max_size=200))
def test_any_text_is_a_config_or_its_problems(text: str) -> None:
    for path in ("x.yaml", "x.txt"):
        outcome = outcome_of(text, path)
        if isinstance(outcome, ConfigError):
            assert outcome.problems
            for problem in outcome.problems:
                assert problem.message
                assert "\n" not in problem.message + str(problem.hint)


@given(TEXTS)
def test_any_targets_mapping_is_a_config_or_its_problems(text: str) -> None:
    body = text.replace("\n", "\n  ")
    with contextlib.suppress(ConfigError):
        parse(f"apiVersion: krelay/v1\ntargets:\n  {body}\n", "x.yaml", {})


@given(st.binary(max_size=200))
def test_any_bytes_are_a_config_or_an_error(data: bytes) -> None:
    with contextlib.suppress(ConfigError):
        load("-", environ={}, text=data)


@pytest.mark.parametrize(
    "text",
    [
        "apiVersion: krelay/v1\n" + "".join(f"key{n}: 1\n" for n in range(60_000)),
        "apiVersion: krelay/v1\ntargets:\n" + "".join(f"  t{n}: 1\n" for n in range(40_000)),
        "apiVersion: krelay/v1\ntargets:\n" + "".join(f"  t{n}: svc/a 80\n" for n in range(40_000)),
        "".join(f"svc/a 80 -l ::{n:x}\n" for n in range(40_000)),
        "svc/a " + "80 " * 300_000,
        "[" * 1_000_000,
        "a: &a " + "[&b " * 100_000,
        "a: " + "${" * 500_000,
        "a: " + "${X:-" * 200_000,
        "a" * 1_000_000 + ": 1",
        "- " * 500_000,
        "9" * 1_000_000,
        "svc/" + "a." * 400_000 + " 80",
        "svc/a " + "a-" * 400_000,
        "{" + "'" + "a" * 1_000_000,
        "? " * 500_000,
        "apiVersion: krelay/v1\ninclude: [" + "none, " * 40_000 + "]",
        "apiVersion: krelay/v1\nagent: {patches: [" + "{file: none}, " * 15_000 + "]}",
    ],
    ids=range(18),
)
def test_a_hostile_file_takes_bounded_time(text: str) -> None:
    with contextlib.suppress(ConfigError):
        parse(text, "x", {})


@pytest.mark.process
def test_the_libraries_are_not_imported_before_they_are_needed() -> None:
    code = "import sys, krelay.config; print({'yaml', 'jsonschema', 'asyncio'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# -- include ---------------------------------------------------------------------------------------


HEAD = "apiVersion: krelay/v1\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory, so that paths are short."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(files: dict[str, str]) -> None:
    """Write files by their paths; a krelay.yaml gets its first line, and target lists are short."""
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text if name.endswith(".txt") else HEAD + text)


def failure(path: str = "krelay.yaml", **environ: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(path, environ=environ)
    return caught.value


def messages(error: ConfigError) -> list[str]:
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
    assert messages(caught.value) == [
        "<stdin>:2:18 cannot read 'none.txt': no such file or directory"
    ]
    assert caught.value.files == ("a.txt", "none.txt")
    made = load("-", environ={}, text=text.replace(b", none.txt", b""))
    assert (made.path, made.files) == ("<stdin>", ("a.txt",))


@pytest.mark.usefixtures("folder")
def test_an_included_file_has_its_own_defaults() -> None:
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
        (  # the problems of every file, each with its place
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
        (  # keys that an included file may not have
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
        (  # a missing file, by its name and by a block of text
            {"krelay.yaml": "include:\n  - none.yaml\n  - >-\n    none.txt\n"},
            [
                "krelay.yaml:3:5 cannot read 'none.yaml': no such file or directory",
                "krelay.yaml:4:5 cannot read 'none.txt': no such file or directory",
            ],
        ),
        (  # names and addresses are unique across files
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
def test_a_problem_is_reported_at_its_place(files: dict[str, str], expected: list[str]) -> None:
    write(files)
    error = failure()
    assert messages(error) == expected
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
def test_a_problem_has_a_hint(name: str, text: str, hint: str) -> None:
    write({"krelay.yaml": MAIN, name: text})
    (problem,) = failure().problems
    assert hint in str(problem.hint)


def test_a_link_is_the_file_that_it_leads_to(folder: Path) -> None:
    write({"krelay.yaml": "include: [a.txt, b.txt]\n", "a.txt": "svc/a 80\n"})
    os.symlink("a.txt", "b.txt")
    assert messages(failure()) == ["krelay.yaml:2:18 `b.txt` is included a second time"]


@pytest.mark.usefixtures("folder")
def test_the_bytes_of_an_included_file_are_looked_at_as_well() -> None:
    write({"krelay.yaml": "include: [a.txt, b.txt, c.yaml, d.yaml]\n"})
    Path("a.txt").write_bytes(b"svc/a 80\n\xff")
    Path("b.txt").write_bytes(b"#" * 1024 * 1025)
    Path("c.yaml").write_bytes(b"")
    Path("d.yaml").write_bytes(b"- a: 1")
    error = failure()
    assert messages(error) == [
        "a.txt:2:1 byte 0xff is not UTF-8",
        "b.txt:0:0 the file is larger than 1 MiB",
        "c.yaml:1:1 the file is empty",
        "d.yaml:1:1 neither a krelay.yaml nor a targets.txt",
    ]


@pytest.mark.parametrize("text", ["", "a: [", "x: 1\n" * 2, "\0"])
@pytest.mark.usefixtures("folder")
def test_every_error_names_its_files(text: str) -> None:
    Path("krelay.yaml").write_text(text)
    assert failure().files == ("krelay.yaml",)


@pytest.mark.usefixtures("folder")
def test_an_error_names_the_files_to_fix() -> None:
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
def test_the_number_of_files_is_limited() -> None:
    for number in range(MAX_FILES + 1):
        text = f"include: [{number + 1}.yaml]\ntargets: {{t{number}: svc/a :1}}\n"
        write({f"{number}.yaml": text})
    error = failure("0.yaml")
    assert messages(error) == ["99.yaml:2:11 more than 100 files"]
    assert len(error.files) == MAX_FILES


@pytest.mark.usefixtures("folder")
def test_the_problems_of_included_files_are_limited() -> None:
    lines = "".join(f"svc/A{n} 80\n" for n in range(60))
    write({"krelay.yaml": "include: [a.txt, b.txt]\n", "a.txt": lines, "b.txt": lines})
    last = failure().problems[-1]
    assert (last.path, last.line) == ("b.txt", 41)
    assert last.message == "more problems from here on; only the first 100 are shown"


# -- targets.txt -----------------------------------------------------------------------------------


def test_the_arguments_supply_what_a_line_leaves_out() -> None:
    line, _ = parse_line(split("svc/a 80"))
    assert line is not None
    target = target_of(
        line, name="x", namespace="n", context="c", listen="::1", place=(3, 2), file="f"
    )
    assert target == Target("x", Kind.SERVICE, "a", (Port(80, 80),), "n", "c", "::1")
    assert (target.file, target.line, target.column) == ("f", 3, 2)
    line, _ = parse_line(split("svc/a 80 -n own -l 127.0.0.2"))
    assert line is not None
    target = target_of(line, namespace="n", listen="::1")
    assert (target.namespace, target.listen) == ("own", "127.0.0.2")
    assert target.name == "svc/a 80 -n own -l 127.0.0.2"


def test_targets_with_their_lines_and_listen_addresses() -> None:
    part = read_lines("\n# x\n deploy/a 80 53@udp\nweb 81 -l ::1\n", "t.txt")
    assert part.problems == []
    assert [(t.name, t.file, t.line, t.column) for t in part.config.targets] == [
        ("deploy/a 80 53/udp", "t.txt", 3, 2),
        ("pod/web 81 -l ::1", "t.txt", 4, 1),
    ]
    assert part.config.path == "t.txt"
    assert [(c.port, c.line, c.column) for c in part.listen_addresses] == [
        (Port(80, 80), 3, 11),
        (Port(53, 53, Protocol.UDP), 3, 14),
        (Port(81, 81), 4, 5),
    ]


def test_the_defaults_apply_to_every_line() -> None:
    part = read_lines("svc/a 80\nsvc/b 81 -n own -l ::2\n", "t.txt", namespace="n", listen="::1")
    assert [(t.namespace, t.listen) for t in part.config.targets] == [("n", "::1"), ("own", "::2")]


def test_every_line_problem_is_reported_with_its_place() -> None:
    part = read_lines("svc/a 80\nsvc/A x:y\n service/a   80\n", "t.txt")
    assert len(part.config.targets) == len(part.listen_addresses) == 1
    assert [(p.line, p.column, p.message) for p in part.problems] == [
        (2, 5, "`A` cannot be the name of an object"),
        (2, 7, "the local port `x` is not a number"),
        (3, 2, "`svc/a 80` is defined twice"),
    ]


def test_a_file_without_targets_is_a_problem() -> None:
    for text in ("", "\n\n", "# a\n// b\n"):
        (problem,) = read_lines(text, "t.txt").problems
        assert problem.message == "no targets"
