"""The handshake: which clients and agents are accepted, and the errors of the others."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.wire.compression import Algorithm
from krelay.wire.errors import ErrorCode, HandshakeError, WireError
from krelay.wire.frames import FrameType, encode_frame
from krelay.wire.handshake import (
    AgentHandshake,
    Ask,
    Auth,
    ClientHandshake,
    Resume,
    Welcome,
    deny,
    key_digest,
    session_key,
)

KEY, OTHER = b"k" * 32, b"o" * 32
AGENT, CLIENT, SESSION = b"a" * 32, b"c" * 32, b"s" * 16
REST = encode_frame(FrameType.PING, 0, b"12345678") + b"\x04\x00\x00"


def client(
    key: bytes = KEY, *, resume: Resume | None = None, private: bool = True
) -> ClientHandshake:
    made = ClientHandshake(key, CLIENT, resume=resume, private=private)
    made.data_to_send()
    return made


def auth_of(ours: ClientHandshake, agent: AgentHandshake) -> Auth:
    assert ours.receive_data(agent.hello()) is None
    auth = agent.receive_data(ours.data_to_send())
    assert auth is not None
    return auth


@pytest.mark.parametrize("ask", [Ask.PROOF, Ask.KEY])
def test_a_client_with_the_key_is_accepted(ask: Ask) -> None:
    ours, agent = client(), AgentHandshake(AGENT, ask)
    auth = auth_of(ours, agent)
    assert agent.verify(auth, KEY)
    assert not agent.verify(auth, OTHER)
    assert auth.session_id is None
    assert auth.key == (KEY if ask is Ask.KEY else b"")
    theirs = session_key(KEY, AGENT, CLIENT)
    welcome = ours.receive_data(agent.welcome(auth, SESSION, theirs, 0, 7) + REST)
    assert welcome == Welcome(SESSION, theirs, 0, REST)


def test_an_agent_without_the_key_is_detected() -> None:
    ours, agent = client(), AgentHandshake(AGENT, Ask.PROOF)
    auth = auth_of(ours, agent)
    with pytest.raises(HandshakeError, match="does not know the key"):
        ours.receive_data(agent.welcome(auth, SESSION, session_key(OTHER, AGENT, CLIENT), 0, 7))


def test_a_key_is_not_shown_on_an_unencrypted_connection() -> None:
    with pytest.raises(HandshakeError, match="without TLS"):
        client(private=False).receive_data(AgentHandshake(AGENT, Ask.KEY).hello())


def test_a_client_with_a_key_rejects_an_agent_that_asks_for_none() -> None:
    with pytest.raises(HandshakeError, match="does not ask for a key"):
        client().receive_data(AgentHandshake(AGENT, Ask.NOTHING).hello())
    ours, agent = client(b""), AgentHandshake(AGENT, Ask.NOTHING)
    assert agent.verify(auth_of(ours, agent), b"")


def test_a_session_is_resumed_with_its_own_key() -> None:
    mine = session_key(KEY, b"x" * 32, b"y" * 32)
    ours, agent = client(resume=Resume(SESSION, mine, lambda: 42)), AgentHandshake(AGENT, Ask.PROOF)
    auth = auth_of(ours, agent)
    assert (auth.session_id, auth.received) == (SESSION, 42)
    assert agent.verify(auth, mine)
    assert not agent.verify(auth, KEY), "the run's key resumes nobody's session"
    welcome = ours.receive_data(agent.welcome(auth, SESSION, mine, 9, 7))
    assert welcome is not None
    assert welcome.received == 9


def test_an_auth_cannot_be_replayed() -> None:
    auth = auth_of(client(), AgentHandshake(AGENT, Ask.PROOF))
    assert not AgentHandshake(b"b" * 32, Ask.PROOF).verify(auth, KEY)


def test_a_refusal_has_its_code_and_message() -> None:
    ours = client()
    ours.receive_data(AgentHandshake(AGENT, Ask.PROOF).hello())
    with pytest.raises(HandshakeError, match="too many") as caught:
        ours.receive_data(deny(ErrorCode.LIMIT, "too many"))
    assert caught.value.code is ErrorCode.LIMIT
    with pytest.raises(HandshakeError, match="unknown session"):
        client().receive_data(b"\x01" + deny(ErrorCode.UNKNOWN_SESSION, ""))


def test_an_agent_without_sessions_is_recognized() -> None:
    with pytest.raises(HandshakeError) as caught:
        client().receive_data(b"\x06")
    assert caught.value.code is ErrorCode.UNKNOWN_PROTOCOL


def test_an_agent_of_an_unknown_version_is_refused() -> None:
    hello = b"\x01" + encode_frame(FrameType.HELLO, 0, b"\x00\x01" + AGENT)
    with pytest.raises(HandshakeError) as caught:
        client().receive_data(hello)
    assert caught.value.code is ErrorCode.VERSION


@pytest.mark.parametrize(
    "data",
    [
        encode_frame(FrameType.HELLO, 0, b"short"),
        encode_frame(FrameType.WELCOME, 0, bytes(100)),
        encode_frame(FrameType.DATA, 1, b"x"),
        encode_frame(FrameType.GOAWAY, 0),
    ],
)
def test_garbage_from_an_agent_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(WireError):
        client().receive_data(b"\x01" + data)


def test_a_short_welcome_or_a_second_hello_is_a_protocol_error() -> None:
    for data in (
        encode_frame(FrameType.WELCOME, 0, b"x"),
        AgentHandshake(AGENT, Ask.PROOF).hello()[1:],
    ):
        ours = client()
        ours.receive_data(AgentHandshake(AGENT, Ask.PROOF).hello())
        with pytest.raises(WireError):
            ours.receive_data(data)


@pytest.mark.parametrize(
    "payload",
    [
        b"short",
        b"\x01\x07" + bytes(57) + b"\x00" + bytes(32),
        b"\x01\x00" + bytes(55) + b"\x01" + b"\x00" + bytes(32),
        b"\x01\x00" + bytes(56) + b"\x41" + bytes(97),
        b"\x01\x00" + bytes(56) + b"\x20" + bytes(40),
    ],
)
def test_garbage_from_a_client_is_a_protocol_error(payload: bytes) -> None:
    with pytest.raises(WireError):
        AgentHandshake(AGENT, Ask.PROOF).receive_data(encode_frame(FrameType.AUTH, 0, payload))
    with pytest.raises(WireError):
        AgentHandshake(AGENT, Ask.PROOF).receive_data(encode_frame(FrameType.DATA, 1, payload))


@given(st.lists(st.integers(1, 60), max_size=12))
def test_the_handshake_works_however_the_reads_fall(cuts: list[int]) -> None:
    ours, agent = client(), AgentHandshake(AGENT, Ask.PROOF)

    def fed(end: ClientHandshake | AgentHandshake, data: bytes) -> Auth | Welcome | None:
        at = 0
        for size in [*cuts, len(data)]:
            piece, at = data[at : at + size], at + size
            told = end.receive_data(piece)
            if told is not None:
                return told
        return None

    assert fed(ours, agent.hello()) is None
    auth = fed(agent, ours.data_to_send())
    assert isinstance(auth, Auth)
    welcome = fed(ours, agent.welcome(auth, SESSION, session_key(KEY, AGENT, CLIENT), 0, 7))
    assert isinstance(welcome, Welcome)
    assert ours.data_to_send() == b""


@given(st.binary(max_size=120))
def test_any_bytes_give_an_answer_or_an_error(data: bytes) -> None:
    for end in (client(), AgentHandshake(AGENT, Ask.PROOF)):
        try:
            end.receive_data(data)
        except WireError:
            continue


def test_a_hello_of_version_3_without_its_compression_is_an_error() -> None:
    hello = struct.pack(">BB32s", 3, Ask.PROOF, AGENT)
    with pytest.raises(WireError, match="a short HELLO"):
        client().receive_data(b"\x01" + encode_frame(FrameType.HELLO, 0, hello))


@pytest.mark.parametrize("compress", [True, False])
def test_the_agent_accepts_the_compression_that_it_offered_only(compress: bool) -> None:
    ours = ClientHandshake(KEY, CLIENT, private=True, compress=compress)
    ours.data_to_send()
    ours.receive_data(AgentHandshake(AGENT, Ask.PROOF).hello())
    silent = AgentHandshake(AGENT, Ask.PROOF, offered=Algorithm.NONE)
    if compress:
        with pytest.raises(WireError, match="which was not offered"):
            silent.receive_data(ours.data_to_send())
    else:
        assert silent.receive_data(ours.data_to_send()) is not None


def test_a_resumed_session_cannot_choose_another_compression() -> None:
    ours = client(resume=Resume(SESSION, session_key(KEY, AGENT, CLIENT), lambda: 0))
    agent = AgentHandshake(AGENT, Ask.PROOF)
    ours.receive_data(agent.hello())
    auth = bytearray(ours.data_to_send())
    auth[-33] = Algorithm.DEFLATE
    with pytest.raises(WireError, match="compression 1"):
        agent.receive_data(bytes(auth))


def test_a_digest_is_sha256_in_hex() -> None:
    assert key_digest(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
