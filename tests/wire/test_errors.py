"""Codes: frozen numbers, words for each."""

from __future__ import annotations

from krelay.wire.errors import ErrorCode, FlowControlError, HandshakeError, ProtocolError, WireError


def test_every_code_has_words() -> None:
    assert len({code.text for code in ErrorCode}) == len(ErrorCode)


def test_a_code_of_a_newer_peer_is_internal() -> None:
    assert ErrorCode.of(200) is ErrorCode.INTERNAL
    assert ErrorCode.of(19) is ErrorCode.REFUSED


def test_an_error_has_the_code_of_its_kind_or_its_own() -> None:
    assert WireError("x").code is ErrorCode.INTERNAL
    assert ProtocolError("x").code is ErrorCode.PROTOCOL
    assert FlowControlError("x").code is ErrorCode.FLOW_CONTROL
    assert HandshakeError("x", ErrorCode.VERSION).code is ErrorCode.VERSION
