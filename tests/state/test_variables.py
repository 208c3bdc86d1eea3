"""The variables of a command: prefixes, names of ports, and where to connect."""

from __future__ import annotations

import pytest

from krelay.errors import UsageError
from krelay.model import Config, Kind, Port, Protocol, Target
from krelay.state.variables import ports_of, prefixes, variables
from tests.cli.reports import forward


def config(**targets: tuple[Port, ...]) -> Config:
    return Config(
        tuple(
            Target(name.replace("__", "-"), Kind.HOST, "a", ports)
            for name, ports in targets.items()
        )
    )


def test_a_port_and_its_address() -> None:
    found = variables(ports_of(config(web=(Port(80),))), [forward()])
    assert found == {
        "KRELAY_WEB_HOST": "127.0.0.1",
        "KRELAY_WEB_PORT": "8080",
        "KRELAY_WEB_ADDR": "127.0.0.1:8080",
    }


@pytest.mark.parametrize(
    ("listen", "host", "address"),
    [
        ("0.0.0.0:80", "127.0.0.1", "127.0.0.1:80"),
        ("[::]:80", "::1", "[::1]:80"),
        ("[::1]:80", "::1", "[::1]:80"),
        ("192.0.2.1:80", "192.0.2.1", "192.0.2.1:80"),
    ],
)
def test_where_to_connect(listen: str, host: str, address: str) -> None:
    found = variables(ports_of(config(web=(Port(80),))), [forward(listen=(listen, "[::1]:80"))])
    assert (found["KRELAY_WEB_HOST"], found["KRELAY_WEB_ADDR"]) == (host, address)


def test_names_become_words() -> None:
    found = prefixes(ports_of(config(my__web=(Port(80),), db=(Port("http-alt"), Port(81)))))
    assert found == {
        ("my-web", 0): ["KRELAY_MY_WEB"],
        ("db", 0): ["KRELAY_DB", "KRELAY_DB_HTTP_ALT"],
        ("db", 1): ["KRELAY_DB_81"],
    }


def test_a_port_of_both_protocols() -> None:
    ports = Port(53, 0, Protocol.UDP), Port(53, 0, Protocol.TCP)
    assert list(prefixes(ports_of(config(dns=ports))).values()) == [
        ["KRELAY_DNS", "KRELAY_DNS_53", "KRELAY_DNS_53_UDP"],
        ["KRELAY_DNS_53_TCP"],
    ]


def test_two_of_the_same_name_are_one_too_many() -> None:
    for other in ("a_b", "a"):
        targets = {"a__b": (Port(1),), "a_b": (Port(1),), "a": (Port("b"), Port(2))}
        with pytest.raises(UsageError, match="would both be KRELAY_A_B_ADDR"):
            prefixes(ports_of(config(**{name: targets[name] for name in ("a__b", other)})))


def test_one_that_is_not_bound_has_none() -> None:
    assert variables(ports_of(config(web=(Port(80),))), [forward(listen=())]) == {}
