"""The Go krelay's Header: identity, and an error for everything that is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.wire.errors import ErrorCode, ProtocolError
from krelay.wire.header import (
    HEARTBEAT,
    TCP,
    Header,
    Status,
    code_of,
    decode_header,
    header_length,
    status_of,
)

hosts = st.one_of(
    st.ip_addresses().map(str),
    st.from_regex(r"[a-z][a-z0-9.-]{0,60}[a-z]", fullmatch=True),
)


@given(st.integers(0, 255), hosts, st.integers(0, 65535), st.binary(min_size=5, max_size=5))
def test_an_encoded_header_decodes_to_itself(
    protocol: int, host: str, port: int, request_id: bytes
) -> None:
    header = Header(protocol, host, port, request_id)
    data = header.encode()
    assert decode_header(data) == header
    assert header_length(data) == len(data)
    assert header_length(data[:3]) == len(data)


@given(st.binary(max_size=300))
def test_any_bytes_give_a_header_or_an_error(data: bytes) -> None:
    try:
        length = header_length(data)
        if length is None:
            assert len(data) < 3
            return
        header = decode_header(data)
    except ProtocolError:
        return
    assert length == len(data)
    if header.host:
        assert decode_header(header.encode()).host == header.host


@pytest.mark.parametrize("size", [0, 11, 268, 65535])
def test_an_impossible_length_of_a_header_is_an_error(size: int) -> None:
    with pytest.raises(ProtocolError):
        header_length(b"\0" + size.to_bytes(2, "big"))


def test_heartbeat_and_session_need_no_address() -> None:
    data = b"\0\0\x0cabcde\x02\0\0\0"
    assert decode_header(data) == Header(HEARTBEAT, "", 0, b"abcde")
    with pytest.raises(ProtocolError):
        decode_header(b"\0\0\x0cabcde\x00\0\x50\0")


@pytest.mark.parametrize(
    ("kind", "address"), [(0, b"123"), (2, b"1234"), (1, b"\xff\xfe"), (1, b"a\nb"), (1, b"a\0")]
)
def test_a_malformed_address_is_an_error(kind: int, address: bytes) -> None:
    data = b"\0" + (12 + len(address)).to_bytes(2, "big") + b"abcde\x00\0\x50" + bytes([kind])
    with pytest.raises(ProtocolError):
        decode_header(data + address)


@pytest.mark.parametrize("host", ["", "x" * 256])
def test_a_host_that_does_not_fit_is_a_value_error(host: str) -> None:
    with pytest.raises(ValueError, match="1 to 255"):
        Header(TCP, host, 80).encode()


def test_a_truncated_header_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="truncated"):
        decode_header(Header(TCP, "10.0.0.1", 80).encode()[:-1])


def test_every_code_has_a_status() -> None:
    assert {code: status_of(code) for code in ErrorCode} == {
        code: {
            ErrorCode.NO_SUCH_HOST: Status.NO_SUCH_HOST,
            ErrorCode.RESOLVE_TIMEOUT: Status.RESOLVE_TIMEOUT,
            ErrorCode.CONNECT_TIMEOUT: Status.CONNECT_TIMEOUT,
            ErrorCode.UNKNOWN_PROTOCOL: Status.UNKNOWN_PROTOCOL,
        }.get(code, Status.UNKNOWN_ERROR)
        for code in ErrorCode
    }


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("", 80),
        ("x" * 256, 80),
        ("\u00e9" * 128, 80),
        ("web\n", 80),
        ("web\udc80", 80),
        ("10.0.0.1", -1),
        ("10.0.0.1", 65_536),
    ],
)
def test_a_host_that_an_agent_would_refuse_is_not_encoded(host: str, port: int) -> None:
    """An agent ends the whole session for a Header that is none."""
    with pytest.raises(ValueError):
        Header(TCP, host, port).encode()


@pytest.mark.parametrize(
    "status", [s for s in Status if s not in (Status.OK, Status.UNKNOWN_ERROR)]
)
def test_a_v0_status_has_a_code_that_leads_back_to_it(status: Status) -> None:
    assert status_of(code_of(status)) is status


def test_an_unknown_v0_status_is_a_refusal() -> None:
    assert code_of(Status.UNKNOWN_ERROR) is code_of(99) is ErrorCode.REFUSED
