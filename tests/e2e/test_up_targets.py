"""Every kind of target, through `krelay up` into the real cluster."""

from __future__ import annotations

import struct

import pytest

from tests.e2e import kit
from tests.e2e.kit import Krelay


@pytest.mark.parametrize(
    ("name", "pods"),
    [
        ("svc", "web-"),
        ("named", "web-"),
        ("headless", "web-"),
        ("bare", "solo"),
        ("elsewhere", "web-"),
        ("deploy", "web-"),
        ("sts", "db-0"),
        ("ds", "node-"),
        ("rs", "set-"),
        ("job", "task-"),
        ("pod", "solo"),
        ("plain", "solo"),
        ("ip", "solo"),
        ("host", "web-"),
    ],
)
def test_an_http_request_reaches_a_pod_of(relay: Krelay, name: str, pods: str) -> None:
    assert kit.http_get(relay.address(name)).decode().startswith(pods)


def test_a_service_balances(relay: Krelay) -> None:
    answered = {kit.http_get(relay.address("svc")) for _ in range(40)}
    assert len(answered) == 2


def test_a_workload_s_pod_stays_the_same(relay: Krelay) -> None:
    answered = {kit.http_get(relay.address("deploy")) for _ in range(10)}
    assert len(answered) == 1


@pytest.mark.parametrize("name", ["svc", "pod"])
def test_udp(relay: Krelay, name: str) -> None:
    assert kit.ask_udp(relay.address(name, "udp"), b"hello") == b"hello"


QUESTION = (
    bytes.fromhex("1234 0100 0001 0000 0000 0000")
    + b"\x0akubernetes\x07default\x03svc\x07cluster\x05local\x00"
    + bytes.fromhex("0001 0001")
)


def test_dns_over_udp(relay: Krelay) -> None:
    answer = kit.ask_udp(relay.address("dns", "udp"), QUESTION)
    assert answer[:2] == QUESTION[:2]
    assert answer[6:8] == b"\x00\x01", "one answer record"


def test_dns_over_tcp(relay: Krelay) -> None:
    with kit.dial(relay.address("dns", "tcp")) as sock:
        sock.sendall(struct.pack(">H", len(QUESTION)) + QUESTION)
        length = struct.unpack(">H", sock.recv(2, 0x100))[0]
        answer = sock.recv(length, 0x100)
    assert answer[6:8] == b"\x00\x01"


def test_a_refused_port_is_a_reset_and_never_an_empty_answer(relay: Krelay) -> None:
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        kit.http_get(relay.address("ip", index=1))
