"""The conformance set, both ways, and the page that quotes it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from krelay.wire.compression import Algorithm, decompress
from krelay.wire.errors import ErrorCode, ProtocolError
from krelay.wire.frames import FrameDecoder, FrameType, encode_frame
from krelay.wire.handshake import OPENING, AgentHandshake, Ask, ClientHandshake, Resume, session_key
from krelay.wire.header import Header, Status, decode_header, header_length
from krelay.wire.session import Session, Side

HERE = Path(__file__).parent
VECTORS = json.loads((HERE / "vectors.json").read_text())
PAGE = (HERE.parents[1] / "docs" / "protocol.md").read_text()


def named(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("vector", [pytest.param(v, id=v["name"]) for v in VECTORS[kind]])


@named("headers")
def test_header(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["bytes"])
    header = Header(
        vector["protocol"], vector["host"], vector["port"], bytes.fromhex(vector["request_id"])
    )
    assert decode_header(data) == header
    assert header_length(data) == len(data)
    if header.host:
        assert header.encode() == data


@named("frames")
def test_frame(vector: dict[str, Any]) -> None:
    data, payload = bytes.fromhex(vector["bytes"]), bytes.fromhex(vector["payload"])
    assert encode_frame(vector["type"], vector["stream"], payload) == data
    [(frame_type, stream, got)] = FrameDecoder().feed(data)
    assert (frame_type, stream, bytes(got)) == (vector["type"], vector["stream"], payload)


def test_every_frame_type_of_a_session_has_a_vector() -> None:
    handshake = {FrameType.HELLO, FrameType.AUTH, FrameType.WELCOME}
    assert {v["type"] for v in VECTORS["frames"]} == set(FrameType) - handshake


@named("plain")
def test_legacy_exchange(vector: dict[str, Any]) -> None:
    """The peers of tests/agent speak it; here the Header and the status are held."""
    client, agent = bytes.fromhex(vector["client"]), bytes.fromhex(vector["agent"])
    length = header_length(client)
    assert length is not None
    decode_header(client[:length])
    assert agent[0] in list(Status)


@named("handshakes")
def test_handshake(vector: dict[str, Any]) -> None:
    resume = None
    if "resume" in vector:
        resume = Resume(
            bytes.fromhex(vector["resume"]["session_id"]),
            bytes.fromhex(vector["resume"]["session_key"]),
            lambda: vector["resume"]["received"],
        )
    key, nonces = bytes.fromhex(vector["key"]), VECTORS["nonces"]
    client = ClientHandshake(
        key,
        bytes.fromhex(nonces["client"]),
        resume=resume,
        private=True,
        highest=vector["client_version"],
    )
    agent = AgentHandshake(
        bytes.fromhex(nonces["agent"]),
        Ask(vector["ask"]),
        vector["agent_version"],
        Algorithm(vector.get("compression", 0)),
    )
    assert client.data_to_send().hex() == vector["opening"] == OPENING.hex()
    assert agent.hello().hex() == vector["hello"]
    assert client.receive_data(agent.hello()) is None
    sent = client.data_to_send()
    assert sent.hex() == vector["auth"]
    auth = agent.receive_data(sent)
    assert auth is not None
    assert auth.version == client.version == min(vector["client_version"], vector["agent_version"])
    chosen = 0 if resume or auth.version < 3 else vector.get("compression", 0)
    assert auth.compression == client.compression == chosen
    assert agent.verify(auth, resume.session_key if resume else key)
    theirs = resume.session_key if resume else session_key(key, agent.nonce, auth.nonce)
    assert theirs.hex() == vector["session_key"]
    welcome = agent.welcome(
        auth, bytes.fromhex(VECTORS["session_id"]), theirs, vector["agent_received"], 4096
    )
    assert welcome.hex() == vector["welcome"]
    told = client.receive_data(welcome)
    assert told is not None
    assert told.session_key == theirs
    assert told.received == vector["agent_received"]


@named("compressed")
def test_compressed_payload(vector: dict[str, Any]) -> None:
    payload = bytes.fromhex(vector["payload"])
    data = bytes.fromhex(vector["data"]) * vector.get("times", 1)
    assert decompress(Algorithm(vector["algorithm"]), payload) == data


@named("errors")
def test_error(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["bytes"])
    if more := vector.get("data"):
        data += encode_frame(FrameType.DATA, more["stream"], b"x" * more["size"]) * more["times"]
    session = Session(Side.AGENT, 0.0)
    session.attach(0, 0.0)
    session.use_compression(Algorithm(vector.get("compression", 0)), float)
    with pytest.raises(ProtocolError) as caught:
        session.receive_data(data, 0.0)
    assert caught.value.code is ErrorCode[vector["code"]]


@pytest.mark.parametrize("example", re.findall(r"`(header|frame): (.+?)` is `([0-9a-f ]+)`", PAGE))
def test_the_page_quotes_it(example: tuple[str, str, str]) -> None:
    kind, name, data = example
    [vector] = [v for v in VECTORS[f"{kind}s"] if v["name"] == name]
    assert data.replace(" ", "") == vector["bytes"]


def test_the_page_has_every_number() -> None:
    for code in ErrorCode:
        assert f"| {code.value} | {code.name} |" in PAGE
    for frame_type in FrameType:
        if frame_type < FrameType.HELLO:
            assert f"| {frame_type.value} | {frame_type.name} |" in PAGE
