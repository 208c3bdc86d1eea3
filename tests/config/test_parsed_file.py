from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.config import parse
from krelay.config.parsed_file import ListenAddress, ParsedFile, conflicts, join
from krelay.errors import ConfigError, Problem
from krelay.model import AgentConfig, Config, Kind, Port, Protocol, Target


def part(
    path: str, *names: str, port: int = 0, protocol: Protocol | None = None, listen: str = "::1"
) -> ParsedFile:
    """Return a file with these targets, each on its own line."""
    targets = [
        Target(name, Kind.SERVICE, "x", (), listen=listen, line=line, column=3, file=path)
        for line, name in enumerate(names, start=2)
    ]
    listen_addresses = [
        ListenAddress(target, Port(80, port, protocol), target.line, 9) for target in targets
    ]
    return ParsedFile(Config(tuple(targets), context=path, path=path), listen_addresses)


def test_joining_gives_the_first_file_the_targets_of_all() -> None:
    config, problems = join([part("a", "one", "two"), part("b"), part("c", "three")])
    assert problems == []
    assert (config.path, config.context) == ("a", "a")
    assert [target.name for target in config.targets] == ["one", "two", "three"]


def test_a_problem_gets_the_path_of_its_file_unless_it_has_another() -> None:
    one, other = part("a"), part("b")
    one.problems.append(Problem(1, 1, "x"))
    other.problems.extend([Problem(2, 2, "y"), Problem(3, 3, "z", path="patch")])
    assert [problem.path for problem in join([one, other])[1]] == ["a", "b", "patch"]


def test_a_name_is_for_one_target() -> None:
    files = [part("a", "x", port=1), part("b", "y", "x", port=2), part("c", "x", port=1)]
    config, problems = join(files)
    assert [target.file for target in config.targets] == ["a", "b"]
    message = "the name `x` is taken by a, line 2"
    hint = "give one of them another name, or remove it"
    # A dropped target takes no port from another.
    assert problems == [Problem(3, 3, message, hint, "b"), Problem(2, 3, message, hint, "c")]


def test_a_local_address_is_for_one_forward() -> None:
    (problem,) = join([part("a", "x", port=1), part("b", "y", port=1, listen="::")])[1]
    assert problem == Problem(
        2,
        9,
        "`[::]:1/tcp` overlaps `[::1]:1/tcp` of target `x`, line 2 of a",
        "give one of them another local port, or add `/udp` to the one that is UDP",
        "b",
    )
    (problem,) = join([part("a", "x", "y", port=1, protocol=Protocol.UDP)])[1]
    assert problem.message == "`[::1]:1/udp` is taken by target `x`, line 2"
    assert problem.hint == "give one of them another local port"


@pytest.mark.parametrize(
    ("listen", "target", "message"),
    [
        ("9527", "svc/x 9527:80", "`127.0.0.1:9527/tcp` is taken by `status.listen`, line 2"),
        (
            "localhost:80",
            "svc/x 80:80 -l ::",
            "`[::]:80/tcp` overlaps `localhost:80/tcp` of `status.listen`, line 2",
        ),
        ("9527", "svc/x 9527:80/udp", None),
        ("9527", "svc/x 9527:80 -l 127.0.0.2", None),
        ("0", "svc/x 0:80", None),
    ],
)
def test_a_forward_on_the_address_of_status_is_a_problem(
    listen: str, target: str, message: str | None
) -> None:
    text = f"apiVersion: krelay/v1\nstatus: {{listen: '{listen}'}}\ntargets: {{x: '{target}'}}"
    try:
        parse(text, "a", {})
    except ConfigError as exc:
        (problem,) = exc.problems
        assert (problem.message, problem.line) == (message, 3)
        assert problem.column >= 14
    else:
        assert message is None


def test_an_embedded_agent_has_no_cluster() -> None:
    host = Target("h", Kind.HOST, "x", (), file="a")
    main = ParsedFile(Config((host,), agent=AgentConfig(embedded=True), path="a"))
    (problem,) = join([main, part("b", "x")])[1]
    assert (problem.path, problem.line, problem.column) == ("b", 2, 3)
    assert problem.message == "`svc/x` is in a cluster, but the agent is embedded"


def test_the_number_of_problems_is_limited() -> None:
    names = [f"t{number}" for number in range(300)]
    assert len(join([part("a", *names), part("b", *names)])[1]) == 101


# -- conflicts -------------------------------------------------------------------------------------


ADDRESSES = ["127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "::", "fd00::1", "localhost"]


def address(listen: str, port: int | None = 80, protocol: Protocol | None = None) -> ListenAddress:
    target = Target("x", Kind.SERVICE, "x", (), listen=listen)
    return ListenAddress(target, Port(80, port, protocol), 1, 1)


def overlap(*listen_addresses: ListenAddress) -> list[tuple[str, str]]:
    return [(str(earlier), str(later)) for earlier, later in conflicts(listen_addresses)]


V4 = {"127.0.0.1", "127.0.0.2", "0.0.0.0", "localhost"}
V6 = {"::1", "::", "fd00::1", "localhost"}


@pytest.mark.parametrize("one", ADDRESSES)
@pytest.mark.parametrize("other", ADDRESSES)
def test_which_addresses_overlap(one: str, other: str) -> None:
    wild4 = "0.0.0.0" in (one, other) and {one, other} <= V4
    wild6 = "::" in (one, other) and {one, other} <= V6
    both = "localhost" in (one, other) and {one, other} & {"127.0.0.1", "::1"}
    assert bool(overlap(address(one), address(other))) == bool(
        one == other or wild4 or wild6 or both
    )


def test_other_ports_and_protocols_never_overlap() -> None:
    tcp, udp = Protocol.TCP, Protocol.UDP
    assert overlap(address("::1", 80, tcp), address("::1", 80, udp), address("::1", 81)) == []
    assert (
        overlap(address("::1", 0), address("::1", 0), address("::1", None), address("::1", None))
        == []
    )


def test_an_open_protocol_counts_as_tcp() -> None:
    assert overlap(address("::1"), address("::1", 80, Protocol.UDP)) == []
    assert overlap(address("::1"), address("::1", 80, Protocol.TCP)) == [("[::1]:80/tcp",) * 2]


def test_each_later_address_is_reported_once_with_the_first_it_overlaps() -> None:
    found = overlap(address("127.0.0.1"), address("::1"), address("localhost"), address("0.0.0.0"))
    assert found == [
        ("127.0.0.1:80/tcp", "localhost:80/tcp"),
        ("127.0.0.1:80/tcp", "0.0.0.0:80/tcp"),
    ]


@given(
    st.lists(st.builds(address, st.sampled_from(ADDRESSES), st.sampled_from([80, 81])), max_size=6)
)
def test_an_address_conflicts_exactly_if_it_overlaps_an_earlier_one(
    listen_addresses: list[ListenAddress],
) -> None:
    later = [id(address) for _, address in conflicts(listen_addresses)]
    expected = [
        id(address)
        for index, address in enumerate(listen_addresses)
        if any(overlap(earlier, address) for earlier in listen_addresses[:index])
    ]
    assert later == expected


@pytest.mark.parametrize(
    ("more", "hint"),
    [
        ("  b: svc/b 80\n", "give one of them another local port, or add `/udp` to the one"),
        ("proxies:\n  p: {port: 80}\n", "give one of them another local port$"),
        ("status:\n  listen: 127.0.0.1:80\n", "give one of them another local port$"),
    ],
)
def test_only_a_conflict_of_targets_may_be_solved_by_udp(more: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"apiVersion: krelay/v1\ntargets:\n  a: svc/a 80\n{more}", "krelay.yaml", {})
    assert re.match(hint, str(caught.value.problems[0].hint))
