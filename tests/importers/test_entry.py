"""The text of a krelay.yaml that is written from entries."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.config import parse
from krelay.config.parsed_file import MAX_FORWARDS
from krelay.errors import ConfigError
from krelay.importers.entry import Converted, Entry, write
from krelay.model import Config


def read(converted: Converted) -> Config:
    return parse(converted.text, "krelay.yaml", {})


def test_an_entry_is_one_line_if_it_has_no_context() -> None:
    found = write(
        "x",
        [
            Entry("web", "svc/web", ("8080:80", ":http"), "shop", listen="::1"),
            Entry("db", "sts/db", ("5432",), "data", "prod", comments=("mine",)),
        ],
    )
    assert found.warnings == ()
    assert found.text.splitlines()[-3:] == [
        "  web: svc/web 8080:80 :http -n shop -l ::1",
        "  # mine",
        '  db: {target: "sts/db", ports: ["5432"], namespace: "data", context: "prod"}',
    ]
    web, db = read(found).targets
    assert (web.listen, web.namespace, db.context) == ("::1", "shop", "prod")


def test_names_are_made_valid_and_unique() -> None:
    names = ["My App!", "my-app", "---", "", "x" * 100, "x" * 100, "no", "1"]
    found = write("x", [Entry(name, "host/a", (f":{n + 1}",)) for n, name in enumerate(names)])
    assert [target.name for target in read(found).targets] == [
        "my-app",
        "my-app-2",
        "target",
        "target-2",
        "x" * 59,
        "x" * 59 + "-2",
        "no",
        "1",
    ]


def test_an_invalid_entry_is_a_comment_and_a_warning() -> None:
    found = write(
        "x",
        [
            Entry("a", "svc/a", ("80",), notes=("its log was lost",)),
            Entry("b", "svc/b", ("80:81",)),
            Entry("c", "nonsense/c", ("1",)),
            Entry("d", "svc/d", ("99999",)),
            Entry("e", "svc/e", ("80/udp",)),
            Entry("f", "svc/f", ("1",), why="it is not wanted"),
        ],
    )
    assert [target.name for target in read(found).targets] == ["a", "e"]
    assert found.warnings == (
        "a: its log was lost",
        "b: local port 80 is taken by a",
        "c: `nonsense` is not a type of target",
        "d: port 99999 is out of range",
        "f: it is not wanted",
    )
    assert "  # local port 80 is taken by a:\n  # b: svc/b 80:81\n" in found.text


def test_no_entries_make_up_no_target() -> None:
    found = write("x", [Entry("a", "svc/a", ("1",), why="it is not wanted")])
    assert found.targets == 0
    assert found.text.splitlines()[-3:] == [
        "targets:",
        "  # it is not wanted:",
        "  # a: svc/a 1",
    ]


TEXT = st.text(max_size=12)


@given(
    st.lists(
        st.builds(
            Entry,
            name=TEXT,
            target=st.one_of(TEXT, st.sampled_from(["svc/a", "host/b.c", "ip/::1"])),
            ports=st.lists(
                st.sampled_from(["80", "8080:80", ":http", "53/udp", "x y", "$"]), min_size=1
            ).map(tuple),
            namespace=st.sampled_from([None, "shop", "No Such"]),
            context=st.one_of(st.none(), TEXT),
            listen=st.sampled_from([None, "::1", "nowhere"]),
        )
    )
)
def test_any_entries_give_a_valid_file(entries: list[Entry]) -> None:
    found = write("x", entries)
    assert found.targets == len(entries) - len(found.warnings)
    if found.targets:
        assert len(read(found).targets) == found.targets


def test_many_of_one_name_are_told_apart_in_time() -> None:
    found = write("x", [Entry("a" * 70, "host/a", (), why="no")] * MAX_FORWARDS)
    assert len(set(re.findall(r"# (a+-?\d*): ", found.text))) == MAX_FORWARDS
    assert max(map(len, re.findall(r"# (a+-?\d*): ", found.text))) <= 63
    with pytest.raises(ConfigError, match="1 problem"):
        write("x", [Entry("a", "host/a", (), why="no")] * (MAX_FORWARDS + 1))
