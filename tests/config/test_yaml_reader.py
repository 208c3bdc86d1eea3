from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from yaml.parser import ParserError

from krelay.config.yaml_reader import MAX_DEPTH, Node, documents, expand, explain, read, typed
from krelay.errors import Problem


def plain(text: str, **environ: str) -> Any:
    node, problems = read(text, environ)
    assert problems == []
    return None if node is None else node.plain()


def problems(text: str, **environ: str) -> list[str]:
    return [f"{p.line}:{p.column} {p.message}" for p in read(text, environ)[1]]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("off", "off"),
        ("0", 0),
        ("-12", -12),
        ("+12", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("8080:53", "8080:53"),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1.", 1.0),
        ("1e3", 1000.0),
        ("9" * 20, 1e20),
        ("9" * 5000, "9" * 5000),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("2024-01-01", "2024-01-01"),
        ("٣", "٣"),
    ],
)
def test_plain_scalars_by_the_core_schema(text: str, value: object) -> None:
    assert typed(text) == value
    assert type(typed(text)) is type(value)


def test_every_node_has_its_position() -> None:
    node, _ = read('a: 1\nb:\n  - x\n  - {c: "y"}\n', {})
    assert isinstance(node, Node)
    assert node.keys == {"a": (1, 1), "b": (2, 1)}
    assert isinstance(node.value, dict)
    items = node.value["b"].value
    assert isinstance(items, list)
    assert (items[0].line, items[0].column, items[0].inside) == (3, 5, 5)
    assert items[1].keys == {"c": (4, 6)}
    assert isinstance(items[1].value, dict)
    assert (items[1].value["c"].column, items[1].value["c"].inside) == (9, 10)


@pytest.mark.parametrize(
    "text", ['"a\\tb"', "'a''b'", "|\n  ab", ">-\n  ab", '"a\n  b"', "${V}", "a\n  b"]
)
def test_a_text_that_is_not_verbatim_has_no_place_inside(text: str) -> None:
    node, found = read(f"k: {text}\n", {"V": "x"})
    assert found == []
    assert isinstance(node, Node)
    assert isinstance(node.value, dict)
    assert node.value["k"].inside is None


def test_variables_are_typed_where_the_scalar_is_plain() -> None:
    assert plain("[8${P}, '8${P}', !!str 8${P}, ! 1]".replace("${P}", "0")) == [80, "80", "80", "1"]
    text = "a: ${P}\nb: '${P}'\nc: ${E}\nd: ${P}:80\ne: ${N:-true}\n${P}: 1\n"
    assert plain(text, P="80", E="") == {
        "a": 80,
        "b": "80",
        "c": None,
        "d": "80:80",
        "e": True,
        "${P}": 1,
    }


def test_a_variable_never_adds_structure() -> None:
    evil = "x\nb: 1\n- {c: d} #"
    assert plain("a: ${EVIL}\n", EVIL=evil) == {"a": evil}


def test_merge_keys_are_followed() -> None:
    assert plain("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {<<: [{x: 0}, *a]}\n") == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
        "c": {"x": 0, "y": 2},
    }
    assert plain('{"<<": 1}') == {"<<": 1}
    assert problems("a: {<<: 1}\nb: {<<: [[], {}]}") == [
        "1:9 `<<` merges mappings only",
        "2:10 `<<` merges mappings only",
    ]


def test_an_anchor_may_be_set_again() -> None:
    assert plain("[&a 1, *a, &a 2, *a]") == [1, 1, 2, 2]


def test_an_empty_document_is_none() -> None:
    for text in ("", "# only a comment\n", "---\n", "~\n"):
        assert plain(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "a: 1\na: 2\n? [x]\n: 1\nc: ${X}",
            [
                "2:1 `a` is written twice",
                "3:3 a key must be plain text",
                "5:4 the variable `X` is not set",
            ],
        ),
        ("a: 'b ${X}'", ["1:7 the variable `X` is not set"]),
        ("a: |\n  ${X}", ["1:4 the variable `X` is not set"]),
        ("*a : 1", ["1:1 a key must be plain text", "1:1 `*a` has no anchor before it"]),
        ("a: 0644", ["1:4 `0644` is octal in YAML 1.1 and decimal in YAML 1.2"]),
        ("a: !!int 1", ["1:4 the tag `!!int` is not supported"]),
        ("a: !x [1]", ["1:4 the tag `!x` is not supported"]),
        ("a: !!seq {b: 1}", ["1:4 the tag `!!seq` is not supported"]),
        ("&a [*a]", ["1:5 `*a` refers to a value that contains it"]),
        ("a: 1\n--- b", ["2:1 a second document"]),
        ("[" * 50, ["1:41 nested more than 40 levels deep"]),
        ("a: @", ["1:4 `@` cannot start a value"]),
    ],
)
def test_a_problem_is_reported_at_its_place(text: str, expected: list[str]) -> None:
    assert problems(text) == expected


def test_a_variable_that_is_not_utf_8_is_a_problem() -> None:
    assert problems("a: ${X}", X="caf\udce9") == ["1:4 `caf\\udce9` is not valid text"]


def test_aliases_count_as_their_values() -> None:
    wide = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
    )
    (problem,) = problems(wide)
    assert "more than 50000 values" in problem
    deep = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 2 * MAX_DEPTH))
    (problem,) = problems(deep)
    assert "40 levels" in problem


@pytest.mark.parametrize("text", ["a: [b\n", 'a: "\\U00110000"\n', "a: 1\na: 2\n", "a: b: c\n"])
def test_both_parsers_read_the_same(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = bool(problems(text))
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    assert bool(problems(text)) is fast is True


TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="$"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_json_is_read_as_yaml(value: object) -> None:
    assert plain(json.dumps({"value": value})) == {"value": value}


@given(st.text(alphabet="ab:- \n#&*[]{}?|>'\"!%@`,$~<1\t", max_size=60))
def test_any_text_is_a_node_or_problems(text: str) -> None:
    node, found = read(text, {})
    if node is not None:
        node.plain()
    assert all(problem.line > 0 and problem.column > 0 for problem in found)


# -- variables -------------------------------------------------------------------------------------


ENVIRON = {"NAME": "web", "EMPTY": "", "DOLLAR": "${NAME}$$"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("plain", "plain"),
        ("${NAME}", "web"),
        ("a-${NAME}-${NAME}", "a-web-web"),
        ("${NAME:-x}", "web"),
        ("${EMPTY}", ""),
        ("${EMPTY:-x}", "x"),
        ("${NONE:-}", ""),
        ("${NONE:-a b:c-d\n}", "a b:c-d\n"),
        ("$$", "$"),
        ("$${NAME}", "${NAME}"),
        ("$$$$", "$$"),
        ("$NAME $ $1 cost$", "$NAME $ $1 cost$"),
        ("${DOLLAR}", "${NAME}$$"),
    ],
)
def test_variables_are_expanded(text: str, expected: str) -> None:
    assert expand(text, ENVIRON) == (expected, [])


@pytest.mark.parametrize(
    ("text", "offset", "message"),
    [
        ("a${NONE}", 1, "the variable `NONE` is not set"),
        ("${}", 0, "`${}` is not a variable"),
        ("${1}", 0, "`${1}` is not a variable"),
        ("${A-b}", 0, "`${A-b}` is not a variable"),
        ("${ NAME }", 0, "`${ NAME }` is not a variable"),
        ("xy${NAME", 2, "`${NAME` is not closed by `}`, or holds another brace"),
        ("${A:-${NAME}}", 0, "`${A:-$` is not closed by `}`, or holds another brace"),
    ],
)
def test_an_invalid_text_is_an_error_at_its_offset(text: str, offset: int, message: str) -> None:
    (error, *_) = expand(text, ENVIRON)[1]
    assert (error.offset, error.message) == (offset, message)
    assert error.hint


def test_every_error_of_a_line_is_reported() -> None:
    text, errors = expand("${A} ${NAME} ${B}", ENVIRON)
    assert text == " web "
    assert [error.offset for error in errors] == [0, 13]


@given(st.text())
def test_a_text_with_doubled_dollars_is_itself(text: str) -> None:
    assert expand(text.replace("$", "$$"), {}) == (text, [])


# -- syntax errors ---------------------------------------------------------------------------------


def problem(text: str, loader: type) -> Problem:
    with pytest.raises(yaml.YAMLError) as caught:
        list(yaml.parse(text, Loader=loader))
    return explain(caught.value, text)


@pytest.fixture(params=["CSafeLoader", "SafeLoader"])
def loader(request: pytest.FixtureRequest) -> Any:
    if not hasattr(yaml, request.param):
        pytest.skip("PyYAML without libyaml")
    return getattr(yaml, request.param)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:\n\tb: 1\n", "2:1 a tab indents this line"),
        ("a: `b`\n", "1:4 '`' cannot start a value"),
        ("a: b: c\n", "1:5 unexpected `:`"),
        ("a: 1\n b: 2\n", "2:3 unexpected `:`"),
        ('a: "b\n', "1:4 the quote that opens here is never closed"),
        ("a: 'b\n", "1:4 the quote that opens here is never closed"),
        ('a: "\\q"\n', "1:4 an unknown escape"),
        ('a: "\\xZZ"\n', "1:4 an unknown escape"),
        ("a: [${X}:1]\n", "1:6 `{` is unexpected"),
        ("a: [1}\n", "1:6 `}` is unexpected"),
        ("a: {b: 1]\n", "1:9 `]` is unexpected"),
        ("a: [b\n", "1:4 the bracket that opens here is never closed"),
        ("a: 1\n\tb: 2\n", "2:1 a tab indents this line"),
        ('a: 1\n"b"\nc: 2\n', "2:1 neither `key: value` nor a list item"),
        ("a: 'b' c\n", "1:8 `c` is unexpected"),
        ("a: 1\nb\n", "2:1 neither `key: value` nor a list item"),
        ("- a\nb: 1\n", "2:1 `b` is unexpected"),
        ("  a: 1\n b: 2\n", "2:2 text outside the document"),
        ("a: ]\n", "1:4 `]` is unexpected"),
        ("a: &\n", "1:5 a name must follow `&` and `*`"),
        ("a: - b\n", "1:4 a list cannot start here"),
        ("a: 1\n...\nb\n", "3:1 text outside the document"),
    ],
)
def test_both_parsers_give_the_same_problem(text: str, expected: str, loader: type) -> None:
    found = problem(text, loader)
    assert f"{found.line}:{found.column} {found.message}" == expected


def test_a_problem_has_a_hint(loader: type) -> None:
    assert "quote `${...}`" in str(problem("a: [${X}:1]\n", loader).hint)
    assert "closing bracket" in str(problem("a: [1}\n", loader).hint)
    assert "same column" in str(problem("- a\nb: 1\n", loader).hint)


def test_a_directive_is_outside_whichever_line_the_parser_names(loader: type) -> None:
    assert problem("%FOO\na: 1\n", loader).message == "text outside the document"


def test_an_unknown_syntax_error_keeps_its_own_text() -> None:
    error = yaml.MarkedYAMLError(problem="Found a Heffalump")
    assert explain(error, "") == Problem(1, 1, "not YAML: found a heffalump")
    assert explain(yaml.YAMLError(), "") == Problem(1, 1, "not YAML")


def test_a_mark_beyond_the_text_is_explained() -> None:
    start, lost = yaml.Mark("", 0, 0, 0, None, 0), yaml.Mark("", 9, 9, 9, None, 0)
    assert explain(ParserError("", start, "expected", lost), "a").message == "wrong indentation"
    assert explain(ParserError("", lost, "expected", lost), "a").message == "not YAML: expected"


# -- documents -------------------------------------------------------------------------------------


def test_documents_in_their_order_without_aliases() -> None:
    shared = {"z": 1, "a": ["x"]}
    text = documents([{"b": shared, "a": shared}, {"on": "yes", "n": None}])
    assert text == (
        "---\nb:\n  z: 1\n  a:\n  - x\na:\n  z: 1\n  a:\n  - x\n---\n'on': 'yes'\nn: null\n"
    )
    assert list(yaml.safe_load_all(text))[0]["b"] == shared
