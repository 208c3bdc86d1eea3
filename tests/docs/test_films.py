"""The films of the README: how a film is drawn, and those that are there."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from tests.docs.film import Pane, draw
from tests.docs.pages import DOCS

SVG = "{http://www.w3.org/2000/svg}"
FILMS = ("live.svg", "restart.svg")


def test_a_film_moves_each_row_through_its_contents() -> None:
    pane = Pane("a <title>", 20, 3)
    for moment, data in enumerate((b"\x1b[2m$\x1b[0m ls\r\nsame", b"\x1b[1;1H\x1b[1mtwo  words")):
        pane.feed(data)
        pane.note(float(moment))
        pane.note(moment + 0.5)  # nothing has changed
    assert pane.text == "two  words\nsame\n"
    drawn = draw([pane], 6.0, "about", speed=2.0)
    root = ElementTree.fromstring(drawn)
    strips = list(root.iter(f"{SVG}g"))
    texts = [[(t.text, t.get("class"), t.get("y")) for t in strip] for strip in strips]
    assert texts == [
        [
            ("$", "dim", "13"),
            ("ls", None, "13"),
            ("two", "bold", "31"),
            ("words", "bold", "31"),
        ],
        [("same", None, "13")],
    ]
    # 6 s and 4 s for the last picture, at twice the speed: 7 s. The second content is there at 1 s.
    assert "animation: p0r0 7.0s step-end infinite" in drawn
    assert "0%{transform:translateY(0px)}7.14%{transform:translateY(-18px)}" in drawn
    assert "p0r1 {" not in drawn
    titles = [text.text for text in root.iter(f"{SVG}text") if text.get("class") == "title"]
    assert titles == ["a <title>"]


@pytest.mark.parametrize("name", FILMS)
def test_a_film_is_small_and_names_nothing_of_the_machine_that_made_it(name: str) -> None:
    text = (DOCS / name).read_text("utf-8")
    assert len(text.encode()) < 150_000
    ElementTree.fromstring(text)
    assert re.findall(r"/tmp/|/root|/home|/work|[a-z]+@[a-z]+", text) == []
    assert "@media (prefers-reduced-motion: reduce)" in text
    assert "<script" not in text
