"""Targets that a program names itself."""

from __future__ import annotations

import pytest

from krelay.config.sources import Lines, named
from krelay.errors import ConfigError
from krelay.model import AgentConfig, Config, Kind, Port, Target


def problems(*targets: tuple[str, str], embedded: bool = False) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Lines(targets, embedded=embedded).load()
    return caught.value.details()


def test_what_they_say_and_the_file_around_them() -> None:
    lines = Lines((("web", "svc/nginx 8080:80 -n shop"), ("db", "sts/pg :5432")), "c", "n")
    web = Target("web", Kind.SERVICE, "nginx", (Port(80, 8080),), namespace="shop")
    db = Target("db", Kind.STATEFULSET, "pg", (Port(5432, 0),))
    assert lines.load() == Config((web, db), context="c", namespace="n")
    assert lines.file is None
    local = Lines((("a", "ip/127.0.0.1 :1"),), embedded=True).load()
    assert local.agent == AgentConfig(embedded=True)


def test_every_problem_at_once_and_whose_it_is() -> None:
    found = problems(("a", "svc/x"), ("b", "nope"), ("c", ""), ("d", "svc/x :80 -n A_B"))
    told = [line for line in found if not line.startswith("  hint")]
    assert [line.split("`")[1] for line in told] == ["a", "b", "c", "d"]
    assert "<lines>: `c`: no target" in told
    assert len(found) == 2 * len(told)


def test_no_two_have_one_name_or_one_address() -> None:
    assert problems(("a", "svc/x :80"), ("a", "svc/y :80"))[0] == "<lines>: `a`: defined twice"
    assert problems(("a", "svc/x 80"), ("b", "svc/y 80")) == [
        "<lines>: `b`: `127.0.0.1:80/tcp` is taken by `a`",
        "  hint: leave the local port empty (`:80`) for a free one",
    ]


def test_none_at_all() -> None:
    assert problems()[0] == "<lines>: no targets"


def test_an_embedded_agent_has_no_cluster() -> None:
    assert "is in a cluster" in problems(("a", "svc/x :80"), embedded=True)[0]


def test_a_text_is_its_own_name() -> None:
    text = "svc/nginx   8080:80\n\n  # no target\nsts/pg :5432  # the database\n"
    assert named([text, "ip/1.2.3.4 :1", " "], {"web": "svc/web :80"}) == (
        ("svc/nginx 8080:80", "svc/nginx 8080:80"),
        ("sts/pg :5432", "sts/pg :5432"),
        ("ip/1.2.3.4 :1", "ip/1.2.3.4 :1"),
        ("web", "svc/web :80"),
    )
