"""The tables, the charts, and the page that they go to."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from benchmarks import page, report, svg
from benchmarks.results import BASE, DIRECT, Results

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def results() -> Results:
    """Return a small run: krelay twice as fast, and four times as quick."""
    results = Results(about={"cores": 2, "kernel": "6.1"})
    results.add("one stream down", "MB/s", DIRECT, 4000)
    for value in (190, 200, 210):
        results.add("one stream down", "MB/s", "krelay", value)
    results.add("one stream down", "MB/s", BASE, 100)
    results.add("echo of 64 bytes", "ms", "krelay", 0.25)
    results.add("echo of 64 bytes", "ms", BASE, 1)
    results.add("CPU down: whole chain", "s/GiB", "krelay", 5)
    results.add("CPU down: whole chain", "s/GiB", BASE, 10)
    results.add("UDP questions, 32 clients", "1/s", "krelay", 9000)
    for number, value in ((1, 50), (1000, 60)):
        results.grow("streams: client's memory, MB", "krelay", number, value)
    return results


def test_a_table_has_medians_spread_and_ratios(results: Results) -> None:
    assert report.table(results, ["one stream down", "echo of 64 bytes"]).splitlines() == [
        "| | krelay | kubectl | direct |",
        "|---|---|---|---|",
        "| one stream down, MB/s | 200 (190 to 210) **2x** | 100 | 4,000 |",
        "| echo of 64 bytes, ms | 0.25 **0.25x** | 1 |  |",
    ]


def test_a_contender_that_failed_is_a_cell_and_a_line(results: Results) -> None:
    results.fail("one stream down", "peer", "died")
    results.add("echo of 64 bytes", "ms", "peer", 2)
    table = report.table(results, ["one stream down", "echo of 64 bytes"])
    assert "| died |" in table
    assert report.failures(results) == "- one stream down: peer: died"


def test_each_figure_is_in_one_section(results: Results) -> None:
    sections = report.sections(results)
    assert list(sections) == ["about", "figures", "cpu", "udp", "growth of streams", "failures"]
    assert sections["about"] == "cores 2, kernel 6.1"
    assert "whole chain" in sections["cpu"]
    assert "kubectl" not in sections["udp"]
    assert sections["growth of streams"].splitlines() == [
        "| streams: client's memory, MB | 1 | 1,000 |",
        "|---|---|---|",
        "| krelay | 50 | 60 |",
    ]


def test_better_is_above_one_whatever_the_unit(results: Results) -> None:
    assert report.better(results, "one stream down", "krelay") == 2
    assert report.better(results, "echo of 64 bytes", "krelay") == 4
    assert report.better(results, "UDP questions, 32 clients", "krelay") is None


def test_charts_are_svg_with_every_label(results: Results) -> None:
    charts = report.charts(results)
    assert list(charts) == ["ratios.svg", "streams.svg"]
    words = [node.text for node in ET.fromstring(charts["ratios.svg"]).iter(f"{SVG}text")]
    assert {"one stream down", "CPU down: whole chain", "2x", "4x"} <= set(words)
    line = ET.fromstring(charts["streams.svg"]).find(f"{SVG}polyline")
    assert line is not None
    assert len(line.attrib["points"].split()) == 2


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("values", [[0.0, 40.0, 200.0], [1.0, 1.0], [0.0], [], [0.003, 5e6]])
def test_an_axis_places_all_values_between_its_ends(values: list[float], log: bool) -> None:
    scale = svg.Scale(values, 100, 700, log=log)
    assert len(scale.ticks) >= 2
    assert all(99.9 <= scale(place) <= 700.1 for place in [*values, *scale.ticks])


def test_labels_are_escaped() -> None:
    chart = svg.bars("<b>", {"a & b": {"<x>": 2.0}}, svg.colours(["<x>"]))
    assert "a &amp; b" in chart
    ET.fromstring(chart)


def test_a_section_is_replaced_and_the_rest_of_the_page_kept(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text("before\n<!-- one -->\nold\n<!-- end of one -->\nafter\n")
    page.replace(file, "one", "new")
    assert file.read_text() == "before\n<!-- one -->\n\nnew\n\n<!-- end of one -->\nafter\n"
    page.replace(file, "one", "newer")
    assert file.read_text() == "before\n<!-- one -->\n\nnewer\n\n<!-- end of one -->\nafter\n"


def test_a_section_that_the_page_lacks_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text("<!-- one -->\n")
    for name in ("one", "two"):
        with pytest.raises(SystemExit, match=name):
            page.replace(file, name, "new")


def test_the_page_has_every_section(results: Results) -> None:
    text = page.PAGE.read_text()
    names = ["about", "figures", *report.PREFIXES, "failures", "reload", "scale"]
    names += [f"growth of {prefix}" for prefix in report.GROWTH]
    for name in names:
        assert f"<!-- {name} -->" in text
        assert f"<!-- end of {name} -->" in text
