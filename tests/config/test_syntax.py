from __future__ import annotations

from typing import Any

import pytest
import yaml
from yaml.parser import ParserError

from krelay.config.yaml_reader import explain
from krelay.errors import Problem


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
        ('a: "\\q"\n', "1:4 an escape that YAML does not know"),
        ('a: "\\xZZ"\n', "1:4 an escape that YAML does not know"),
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
def test_the_same_words_for_both_parsers(text: str, expected: str, loader: type) -> None:
    found = problem(text, loader)
    assert f"{found.line}:{found.column} {found.message}" == expected


def test_hints(loader: type) -> None:
    assert "quote `${...}`" in str(problem("a: [${X}:1]\n", loader).hint)
    assert "closing bracket" in str(problem("a: [1}\n", loader).hint)
    assert "same column" in str(problem("- a\nb: 1\n", loader).hint)


def test_a_directive_is_outside_whichever_line_the_parser_names(loader: type) -> None:
    assert problem("%FOO\na: 1\n", loader).message == "text outside the document"


def test_an_error_without_words_here_keeps_its_own() -> None:
    error = yaml.MarkedYAMLError(problem="Found a Heffalump")
    assert explain(error, "") == Problem(1, 1, "not YAML: found a heffalump")
    assert explain(yaml.YAMLError(), "") == Problem(1, 1, "not YAML")


def test_a_mark_beyond_the_text_is_explained() -> None:
    start, lost = yaml.Mark("", 0, 0, 0, None, None), yaml.Mark("", 9, 9, 9, None, None)
    assert explain(ParserError("", start, "expected", lost), "a").message == "wrong indentation"
    assert explain(ParserError("", lost, "expected", lost), "a").message == "not YAML: expected"
