"""The handshake, by which a tunnel opens or resumes a session (protocol.md, section 3).

Each end proves to the other that it knows a shared key, by an HMAC over the whole exchange. The key
itself is not sent, with one exception: an agent that has only the key's digest (a pod's spec is no
place for secrets) asks the first client to show it, inside the cluster's TLS. Each session gets its
own key, which a later tunnel needs to resume that session.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

from krelay.wire import compression
from krelay.wire.compression import Algorithm
from krelay.wire.errors import ErrorCode, HandshakeError, ProtocolError
from krelay.wire.frames import (
    HEAD,
    HEAD_SIZE,
    Buffer,
    Frame,
    FrameDecoder,
    FrameType,
    encode_frame,
)
from krelay.wire.header import SESSION, Header, Status

VERSION = 3
"""Highest protocol version of this implementation."""
OLDEST = 1
NONCE_SIZE = 32
SESSION_ID_SIZE = 16

_HELLO = Struct(">BB32s")
_AUTH = Struct(">BB32s16sQB")
_COMPRESSION_SINCE = 3
_WELCOME = Struct(">16sQI")
_PROOF_SIZE = 32
_MAX_KEY = 64
_MAX_AUTH = 1_024
"""Most bytes of AUTH's payload, with fields that a later version may add."""
_NEW = 0
_RESUME = 1
_NO_SESSION = bytes(SESSION_ID_SIZE)

OPENING = Header(SESSION, "krelay", 0).encode()
"""First bytes of a client: a Header whose protocol only an agent with sessions knows."""


class Ask(IntEnum):
    """What an agent's HELLO asks of the client."""

    NOTHING = 0
    PROOF = 1
    KEY = 2


def _mac(key: bytes, *parts: bytes) -> bytes:
    return hmac.digest(key, b"".join(parts), "sha256")


def session_key(key: bytes, agent_nonce: bytes, client_nonce: bytes) -> bytes:
    """Return the key of the session that these two nonces open."""
    return _mac(key, b"krelay session", agent_nonce, client_nonce)


@dataclass(frozen=True, slots=True)
class Resume:
    """The session that a new tunnel resumes.

    `received` returns how many sequenced frames it has received. It is called only when AUTH is
    written, as a tunnel that still works delivers more until then.
    """

    session_id: bytes
    session_key: bytes
    received: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Welcome:
    """The agent's consent. `received` is how many sequenced frames it has of this session; `rest`
    are the session's first bytes, which arrived with WELCOME."""

    session_id: bytes
    session_key: bytes
    received: int
    rest: bytes


class ClientHandshake:
    """The client's half: takes the tunnel's bytes, and returns those to send."""

    def __init__(
        self,
        key: bytes,
        nonce: bytes,
        *,
        resume: Resume | None = None,
        private: bool = False,
        compress: bool = True,
        highest: int = VERSION,
    ) -> None:
        """`nonce` is NONCE_SIZE random bytes. `private`: the path to the agent is encrypted, so an
        agent that asks for the key may be shown it. `compress`: a new session may use compression.
        `highest` limits the protocol version."""
        self._highest = highest
        self._key = key
        self._nonce = nonce
        self._resume = resume
        self._private = private
        self._compress = compress
        self._decoder = FrameDecoder()
        self._out = OPENING
        self._status_seen = False
        self._session_key = b""
        self._proof = b""
        self.version = 0
        """Protocol version of the tunnel; 0 before the agent's HELLO."""
        self.compression = Algorithm.NONE
        """Compression of a new session. One that is resumed keeps its own."""

    def data_to_send(self) -> bytes:
        """Return the bytes that are due, possibly none."""
        out, self._out = self._out, b""
        return out

    def receive_data(self, data: Buffer) -> Welcome | None:
        """Return the agent's WELCOME once it is complete, None before.

        Raises:
            HandshakeError: the agent refused; its code is UNKNOWN_PROTOCOL if the agent knows
                legacy mode only.
            ProtocolError: the agent broke the protocol.
        """
        if not self._status_seen and len(data):
            self._status_seen = True
            if data[0] != Status.OK:
                known = data[0] != Status.UNKNOWN_PROTOCOL
                code = ErrorCode.DENIED if known else ErrorCode.UNKNOWN_PROTOCOL
                raise HandshakeError("the agent does not support sessions", code)
            data = memoryview(data)[1:]
        frames = self._decoder.feed(data)
        for index, (frame_type, _, payload) in enumerate(frames):
            if frame_type == FrameType.GOAWAY and payload:
                code = ErrorCode.of(payload[0])
                raise HandshakeError(bytes(payload[1:]).decode(errors="replace") or code.text, code)
            if frame_type == FrameType.HELLO and not self._proof:
                self._receive_hello(bytes(payload))
            elif frame_type == FrameType.WELCOME and self._proof:
                rest = _rest(self._decoder, frames[index + 1 :])
                return self._receive_welcome(bytes(payload), rest)
            else:
                raise ProtocolError(f"{FrameType(frame_type).name} during the handshake")
        return None

    def _receive_hello(self, hello: bytes) -> None:
        if len(hello) < _HELLO.size:
            raise ProtocolError("a short HELLO")
        version, ask, agent_nonce = _HELLO.unpack_from(hello)
        if version < OLDEST:
            raise HandshakeError(f"the agent speaks version {version}", ErrorCode.VERSION)
        if ask == Ask.NOTHING and self._key:
            # An agent that asks for no proof gives none either: it may be an impostor.
            raise HandshakeError("the agent does not ask for a key", ErrorCode.DENIED)
        shown = b""
        if ask == Ask.KEY:
            if not self._private:
                raise HandshakeError("the agent asks for the key without TLS", ErrorCode.DENIED)
            shown = self._key
        if self._resume:
            kind, session_id, received = _RESUME, self._resume.session_id, self._resume.received()
            proof_key = self._session_key = self._resume.session_key
        else:
            kind, session_id, received = _NEW, _NO_SESSION, 0
            proof_key = self._key
            self._session_key = session_key(self._key, agent_nonce, self._nonce)
        self.version = min(version, self._highest)
        fixed = _AUTH.pack(self.version, kind, self._nonce, session_id, received, len(shown))
        auth = fixed + shown
        if self.version >= _COMPRESSION_SINCE:
            if len(hello) == _HELLO.size:
                raise ProtocolError("a short HELLO")
            if self._compress and not self._resume:
                self.compression = compression.choose(hello[_HELLO.size])
            auth += bytes([self.compression])
        self._proof = _mac(proof_key, b"krelay client", hello, auth)
        self._out += encode_frame(FrameType.AUTH, 0, auth + self._proof)

    def _receive_welcome(self, payload: bytes, rest: bytes) -> Welcome:
        if len(payload) < _WELCOME.size + _PROOF_SIZE:
            raise ProtocolError("a short WELCOME")
        welcome, proof = payload[: _WELCOME.size], payload[_WELCOME.size :][:_PROOF_SIZE]
        expected = _mac(self._session_key, b"krelay agent", self._proof, welcome)
        if not hmac.compare_digest(proof, expected):
            raise HandshakeError("the agent does not know the key", ErrorCode.DENIED)
        session_id, received, _ = _WELCOME.unpack(welcome)
        return Welcome(session_id, self._session_key, received, rest)


@dataclass(frozen=True, slots=True)
class Auth:
    """A client's AUTH, not verified yet. `session_id` is None for a new session."""

    version: int
    session_id: bytes | None
    received: int
    nonce: bytes
    key: bytes
    compression: Algorithm
    signed: bytes
    proof: bytes
    rest: bytes


class AgentHandshake:
    """The agent's half, for one tunnel. Its caller knows the keys and the sessions."""

    def __init__(
        self,
        nonce: bytes,
        ask: Ask,
        highest: int = VERSION,
        offered: Algorithm = compression.KNOWN,
    ) -> None:
        """`nonce` is NONCE_SIZE random bytes; `highest` limits the protocol version, `offered` the
        compression of new sessions."""
        self._highest = highest
        self._offered = offered
        self.nonce = nonce
        self._buffer = bytearray()
        self._hello = _HELLO.pack(highest, ask, nonce)
        if highest >= _COMPRESSION_SINCE:
            self._hello += bytes([offered])

    def hello(self) -> bytes:
        """Return the answer to the opening Header."""
        return bytes([Status.OK]) + encode_frame(FrameType.HELLO, 0, self._hello)

    def receive_data(self, data: Buffer) -> Auth | None:
        """Return the client's AUTH once it is complete, None before; `verify` checks its proof.

        Keeps no more bytes than an AUTH may have, since the client is not authenticated.

        Raises:
            ProtocolError: these bytes are not an AUTH.
        """
        buffer = self._buffer
        buffer += data
        if len(buffer) < HEAD_SIZE:
            return None
        word, _ = HEAD.unpack_from(buffer)
        frame_type, end = word >> 24, HEAD_SIZE + (word & 0xFFFFFF)
        if frame_type != FrameType.AUTH:
            raise ProtocolError(f"a frame of type {frame_type} instead of AUTH")
        if not HEAD_SIZE + _AUTH.size + _PROOF_SIZE <= end <= HEAD_SIZE + _MAX_AUTH:
            raise ProtocolError(f"an AUTH of {end - HEAD_SIZE} bytes")
        if len(buffer) < end:
            return None
        self._buffer = bytearray()
        payload = bytes(buffer[HEAD_SIZE:end])
        version, kind, nonce, session_id, received, key_size = _AUTH.unpack_from(payload)
        keyed = _AUTH.size + key_size
        compressible = version >= _COMPRESSION_SINCE
        signed = keyed + compressible
        if (
            not OLDEST <= version <= self._highest
            or key_size > _MAX_KEY
            or len(payload) < signed + _PROOF_SIZE
            or kind not in (_NEW, _RESUME)
            or (kind == _NEW and received)
        ):
            raise ProtocolError("a malformed AUTH")
        chosen = payload[keyed] if compressible else Algorithm.NONE
        wrong = chosen not in list(Algorithm) or not chosen & self._offered
        if chosen and (kind == _RESUME or wrong):
            raise ProtocolError(f"compression {chosen}, which was not offered")
        return Auth(
            version=version,
            session_id=session_id if kind == _RESUME else None,
            received=received,
            nonce=nonce,
            key=bytes(payload[_AUTH.size : keyed]),
            compression=Algorithm(chosen),
            signed=bytes(payload[:signed]),
            proof=bytes(payload[signed : signed + _PROOF_SIZE]),
            rest=bytes(buffer[end:]),
        )

    def verify(self, auth: Auth, key: bytes) -> bool:
        """Return whether the client knows `key`, in constant time."""
        expected = _mac(key, b"krelay client", self._hello, auth.signed)
        return hmac.compare_digest(expected, auth.proof)

    def welcome(
        self, auth: Auth, session_id: bytes, key: bytes, received: int, max_streams: int
    ) -> bytes:
        """Return WELCOME; `key` is the session's key."""
        welcome = _WELCOME.pack(session_id, received, max_streams)
        proof = _mac(key, b"krelay agent", auth.proof, welcome)
        return encode_frame(FrameType.WELCOME, 0, welcome + proof)


def deny(code: ErrorCode, message: str) -> bytes:
    """Return the GOAWAY that refuses a handshake; the agent then closes the tunnel."""
    return encode_frame(FrameType.GOAWAY, 0, bytes([code]) + message.encode()[:255])


def key_digest(key: bytes) -> str:
    """Return the SHA-256 of a key in hex, which a pod's spec may contain."""
    return hashlib.sha256(key).hexdigest()


def _rest(decoder: FrameDecoder, frames: list[Frame]) -> bytes:
    """Return the bytes after the handshake as they arrived: whole frames, and a partial one."""
    return b"".join(encode_frame(*frame) for frame in frames) + decoder.pending()
