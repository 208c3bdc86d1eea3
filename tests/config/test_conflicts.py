from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.config.parsed_file import ListenAddress, conflicts
from krelay.model import Kind, Port, Protocol, Target

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


def test_what_never_overlaps() -> None:
    tcp, udp = Protocol.TCP, Protocol.UDP
    assert overlap(address("::1", 80, tcp), address("::1", 80, udp), address("::1", 81)) == []
    assert (
        overlap(address("::1", 0), address("::1", 0), address("::1", None), address("::1", None))
        == []
    )


def test_an_open_protocol_counts_as_tcp() -> None:
    assert overlap(address("::1"), address("::1", 80, Protocol.UDP)) == []
    assert overlap(address("::1"), address("::1", 80, Protocol.TCP)) == [("[::1]:80/tcp",) * 2]


def test_each_later_claim_is_told_once_with_the_first_it_meets() -> None:
    found = overlap(address("127.0.0.1"), address("::1"), address("localhost"), address("0.0.0.0"))
    assert found == [
        ("127.0.0.1:80/tcp", "localhost:80/tcp"),
        ("127.0.0.1:80/tcp", "0.0.0.0:80/tcp"),
    ]


@given(
    st.lists(st.builds(address, st.sampled_from(ADDRESSES), st.sampled_from([80, 81])), max_size=6)
)
def test_a_claim_conflicts_exactly_if_it_does_with_one_before_it(
    listen_addresses: list[ListenAddress],
) -> None:
    later = [id(address) for _, address in conflicts(listen_addresses)]
    expected = [
        id(address)
        for index, address in enumerate(listen_addresses)
        if any(overlap(earlier, address) for earlier in listen_addresses[:index])
    ]
    assert later == expected
