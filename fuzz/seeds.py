"""Build the corpus from the wire's conformance set, the examples and a few lines of each protocol:
`python -m fuzz.seeds` rewrites it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from fuzz.config import SEPARATOR
from fuzz.targets import TARGETS
from krelay.proxy.socks5 import Reply, reply, write_datagram
from krelay.transport import spdy
from krelay.wire.frames import FrameType

ROOT = Path(__file__).parents[1]
WHOLE, TRICKLE = b"\xff", b"\0"
"""The first byte of input that is fed in pieces: their size minus one."""
_SMALL = 4_096


def seeds(name: str) -> Iterator[bytes]:
    """Yield the target's seeds."""
    yield from _MADE[name]()


def _vectors() -> dict[str, list[dict[str, str]]]:
    loaded: dict[str, list[dict[str, str]]] = json.loads(
        (ROOT / "tests/wire/vectors.json").read_text()
    )
    return loaded


def _hex(entry: dict[str, str], *keys: str) -> bytes:
    return b"".join(bytes.fromhex(entry[key]) for key in keys if key in entry)


def _frames() -> Iterator[bytes]:
    vectors = _vectors()
    every = [_hex(entry, "bytes") for entry in (*vectors["frames"], *vectors["errors"])]
    for frame in every:
        yield WHOLE + frame[:_SMALL]
    for pieces in (WHOLE, TRICKLE, b"\6"):
        yield pieces + b"".join(every)[:_SMALL]


def _session() -> Iterator[bytes]:
    vectors = _vectors()
    every = [_hex(entry, "bytes") for entry in (*vectors["frames"], *vectors["errors"])]
    for side in (b"\0", b"\1"):
        for frame in every:
            if len(frame) < _SMALL:
                yield side + b"\0" + len(frame).to_bytes(2, "big") + frame
    # Steps by their number, as fuzz.wire has them: frames, then what this end does about them.
    opened = b"".join(bytes([2, 0x80 | 0, 2 * n + 1, 0]) for n in range(4))
    data = b"".join(bytes([2, 3, 2 * n + 1, 0xFF]) + b"\x40\0" for n in range(4))
    ends = b"".join(bytes([2, 4, 2 * n + 1, 0]) for n in range(4))
    acts = b"\6\1\6\1\6\0\5\0\7\0\x40\0\5\1\7\1\xff\xff\x0c\xff\x0e\x0c\xff\x08\0\x09\1\x0c\xff"
    tunnels = b"\x0f\1\x0f\0\x0c\xff\x0f\2\x0f\x10\x0c\xff\x0f\4"
    yield b"\1" + opened + acts
    yield b"\1" + opened + data + acts + ends + acts
    yield b"\1" + opened + data + acts + tunnels + ends + acts + tunnels
    blocks = b"".join(bytes([0x10, 1, 2 * n + 1]) + b"compress\x40\0" for n in range(4))
    begin, cut = b"\x10\4\0", b"\x10\x41\1" + b"compress\x40\0"
    yield b"\3" + opened + blocks + begin + acts + tunnels + begin + acts + cut
    mine = b"\x0b\x0b\x0b\x07\0\x40\0\x0c\xff"
    yield b"\0" + mine + bytes([2, 1, 1, 0]) + acts + tunnels
    yield b"\0" + mine + bytes([2, 2, 1, 1, 19]) + bytes([2, 5, 3, 1, 22]) + acts
    for kind in range(len(FrameType)):
        yield b"\1" + opened + bytes([2, kind, 1, 4, 0, 0, 1, 0]) + acts


def _handshake() -> Iterator[bytes]:
    for entry in _vectors()["handshakes"]:
        agent, client = _hex(entry, "hello", "welcome"), _hex(entry, "auth")
        for pieces in (WHOLE, TRICKLE):
            for flags in (0, 1, 4, 8):
                yield bytes([flags]) + pieces + client
            for flags in (2, 3, 6, 10):
                yield bytes([flags]) + pieces + agent
    yield b"\2" + WHOLE + b"\6"
    yield b"\2" + WHOLE + b"\1\x14\0\0\4\0\0\0\0\5no!"


def _header() -> Iterator[bytes]:
    for entry in _vectors()["headers"]:
        yield _hex(entry, "bytes")


def _connection() -> Iterator[bytes]:
    vectors = _vectors()
    for entry in vectors["plain"]:
        for flags in (0, 1):
            yield bytes([flags]) + WHOLE + _hex(entry, "client")
    frames = b"".join(_hex(entry, "bytes") for entry in vectors["frames"])
    for entry in vectors["handshakes"]:
        for flags in range(4):
            for pieces in (WHOLE, b"\x0b"):
                opening = bytes([flags]) + pieces + _hex(entry, "opening", "auth")
                yield opening
                yield opening + frames[:_SMALL]


def _framing() -> Iterator[bytes]:
    datagrams = b"\0\4ping\0\0\0\1x\1\0" + bytes(256) + b"\xff\xffend"
    for pieces in (WHOLE, TRICKLE, b"\4"):
        yield pieces + datagrams


def _door() -> Iterator[bytes]:
    line = b"GET / HTTP/1.1\r\n"
    host, ask = b"Host: 10.244.0.7:10250\r\n", b"Connection: Upgrade\r\nUpgrade: krelay\r\n"
    for head in (
        line + host + ask,
        line
        + host
        + b"connection: keep-alive,\tUPGRADE\r\nUpgrade: websocket\r\nupgrade: Krelay\r\n",
        line + host + ask + b"X-Forwarded-For: 10.99.0.1, \xe9\r\nContent-Length: 0\r\n",
        line + host + ask + b" folded\r\n",
        line + host + ask + b"Content-Length: 1\r\n",
        line + host + ask + b"Transfer-Encoding: chunked\r\n",
        line + host + host + ask,
        line + ask,
        line + host,
        line.replace(b"\r", b"") + host + ask,
        b"GET http://a/ HTTP/1.0\r\n" + host + ask,
    ):
        for pieces in (WHOLE, TRICKLE, b"\x0b"):
            yield pieces + head + b"\r\n" + line
    yield WHOLE + line + host + ask + b"X: " + b"a" * 4_096


def _config_yaml() -> Iterator[bytes]:
    paths = [ROOT / "krelay.yaml.example", *sorted((ROOT / "examples").glob("*.yaml"))]
    paths += sorted((ROOT / "tests/config/data").glob("*/*.yaml"))
    for path in paths:
        yield path.read_bytes()
    head = b"apiVersion: krelay/v1\n"
    yield SEPARATOR.join(
        (
            head + b"include: [a.yaml, ./b.txt, a.yaml]\ntargets: {web: svc/web 8080:80}\n",
            head + b"namespace: team\ntargets:\n  db: {target: sts/db, port: ${PORT}:5432}\n",
            b"-n dev svc/web 8081:80\nhost/db.corp :5432 # a comment\n",
        )
    )
    yield SEPARATOR.join(
        (
            head + b"agent: {patches: [{type: json, file: a.yaml}, {file: b.txt}]}\n"
            b"proxies: {p: {port: 1080, username: me, password: $$}}\ntargets: {}\n",
            b"- {op: add, path: /spec/x, value: 1}\n",
            b"spec: {hostNetwork: true}\n",
        )
    )


def _config_txt() -> Iterator[bytes]:
    paths = [ROOT / "examples/targets.txt", *sorted((ROOT / "tests/config/data").glob("*/*.txt"))]
    for path in paths:
        yield path.read_bytes()
    yield b"-n=dev --address [::1] deployments.apps/web 80:http@tcp :53/udp ip/[fd00::7] 1\n"


def _socks5() -> Iterator[bytes]:
    name = b"\x0fdb.example.test\x01\xbb"
    plain, login = b"\5\1\0", b"\5\2\0\2\1\2me\6secret"
    for flags, hello in ((b"\0", plain), (b"\1", login), (b"\1", plain), (b"\0", b"\4\1")):
        for ask in (
            b"\5\1\0\1\x0a\0\0\1\0\x50",
            b"\5\1\0\3" + name,
            b"\5\3\0\4" + bytes(18),
            b"\5\2\0\1" + bytes(6),
        ):
            yield flags + WHOLE + hello + ask + b"early"
            yield flags + TRICKLE + hello + ask
    yield b"\0" + WHOLE + write_datagram("db.example.test", 53, b"question")
    yield b"\0" + WHOLE + write_datagram("fd00::7", 53, b"question")


def _http_proxy() -> Iterator[bytes]:
    login = b"Proxy-Authorization: Basic bWU6c2VjcmV0\r\n"
    heads = (
        b"CONNECT db.example.test:443 HTTP/1.1\r\nHost: db.example.test:443\r\n%s\r\nearly",
        b"CONNECT [fd00::7]:443 HTTP/1.0\r\n%s\r\n",
        b"GET http://me@web.test:8080/a/b?c=d#e HTTP/1.1\r\nHost: web.test\r\n%s\r\n",
        (
            b"POST http://web.test HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, X-Y\r\nX-Y: 1\r\n"
            b"Transfer-Encoding: chunked\r\nTE: trailers\r\nUpgrade: h2c\r\n%s\r\n0\r\n\r\n"
        ),
        b"GET / HTTP/1.1\r\nHost: web.test\r\n%s\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: web.test\r\n%s\r\n",
    )
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
    chunked = (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"2;x\r\nhi\r\n1\r\n!\r\n0\r\nX: 1\r\n\r\n"
    )
    closed = b"HTTP/1.0 200 OK\r\nConnection: X-Y\r\nX-Y: 1\r\n\r\nhi"
    switch = b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\nhi"
    both = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nhi"
    posted = (
        b"POST http://a.test/\xc3\xa9 HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\n"
        b"Content-Length: 4\r\n%s\r\nbody"
    )
    websocket = (
        b"GET ws://a.test/ HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\n"
        b"Upgrade: websocket\r\n%s\r\n"
    )
    ambiguous = (
        b"POST http://a.test/ HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n"
        b"Content-Length: 3\r\n%s\r\nabc"
    )
    for head in (*heads, posted, websocket, ambiguous):
        for response in (ok, chunked, closed, switch, both, b""):
            yield _conversation(0, head % b"" + heads[2] % b"" + posted % b"", response, ok, closed)
        yield _conversation(1, head % login + heads[2] % login, ok, ok)
    for flags, connect in ((0, heads[0].replace(b"db.example.test:443", b"x", 1)), (2, heads[0])):
        yield _conversation(flags, connect.removesuffix(b"early") % b"" + heads[2] % b"", ok)


def _conversation(flags: int, client: bytes, *answers: bytes) -> bytes:
    parts = [bytes([flags, 6])]
    for part in (client, *answers):
        parts += [len(part).to_bytes(2, "big"), part]
    return b"".join(parts)


def _socks_client() -> Iterator[bytes]:
    for flags in range(6):
        accepted = b"\5\2\1\0" if flags & 1 else b"\5\0"
        for host in ("10.0.0.1", "fd00::7", "db.example.test"):
            yield bytes([flags]) + accepted + reply(Reply.OK, host, 443)
        yield bytes([flags]) + accepted + reply(Reply.REFUSED)
        yield bytes([flags]) + b"\5\xff"


def _events() -> bytes:
    answer = spdy.open_streams(9527).replace(b"\0\1", b"\0\2", 1)
    data = b"".join(spdy.data_frames(spdy.DATA_STREAM, b"hello"))
    error = b"".join(spdy.data_frames(spdy.ERROR_STREAM, b"no such thing"))
    ping = b"\x80\3\0\6\0\0\0\4\0\0\0\1"
    reset = b"\x80\3\0\3\0\0\0\x08\0\0\0\3\0\0\0\5"
    end = spdy.end_frame(spdy.DATA_STREAM)
    return answer + data + ping + error + data + end + reset


def _spdy() -> Iterator[bytes]:
    for flags in (b"\0", b"\1"):
        for pieces in (WHOLE, TRICKLE, b"\4"):
            yield flags + pieces + _events()


def _websocket() -> Iterator[bytes]:
    events = _events()
    message = b"\x82\x7e" + len(events).to_bytes(2, "big") + events
    for pieces in (WHOLE, TRICKLE):
        yield b"\0" + pieces + message
        yield b"\0" + pieces + b"\2\4" + events[:4] + b"\x80\0" + message + b"\x89\4ping\x8a\0"
        yield b"\0" + pieces + message + b"\x88\5\3\xe8bye"
    yield b"\1HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    yield b"\1HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"


def _http_answer() -> Iterator[bytes]:
    for pieces in (WHOLE, TRICKLE):
        yield pieces + b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: SPDY/3.1\r\n\r\n" + _events()
        yield pieces + b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nno!!"
        chunked = b"HTTP/1.0 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n"
        yield pieces + chunked + b"4\r\nno!!\r\n0\r\n\r\n"
        yield pieces + chunked + b"ffffffff\r\nno"
    yield WHOLE + b"HTTP/1.1 " + b"9" * 5_000 + b" many\r\n\r\n"


def _upgrade() -> Iterator[bytes]:
    status = b'{"kind":"Status","message":"pods \\"p\\" not found"}'
    forbidden = b'{"kind":"Status","message":"pods \\"p\\" is forbidden: pods/portforward"}'
    answers = (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: SPDY/3.1\r\n\r\n" + _events(),
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 50\r\n\r\n" + status,
        b"HTTP/1.1 403 Forbidden\r\n\r\n" + forbidden,
        b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n9;x=y\r\n<h1>no</h1\r\n0\r\n\r\n",
        b'HTTP/1.1 500 No\r\n\r\nnetwork namespace for sandbox "ab" is closed',
    )
    for answer in answers:
        for flags in (b"\0", b"\1"):
            yield flags + WHOLE + answer
        yield b"\2" + WHOLE + b"HTTP/1.1 200 OK\r\n\r\n" + answer
        yield b"\4" + b"\x0b" + b"\5\0" + reply(Reply.OK, "10.0.0.1", 443) + answer
    yield b"\2" + WHOLE + b"HTTP/1.1 407 No\r\n\r\n"
    yield b"\0" + WHOLE + b"sandbox ab not found"


_META = {"name": "web-1", "namespace": "x", "uid": "u", "resourceVersion": "5"}
_STATUSES = [
    {
        "name": "krelay-server",
        "image": "i",
        "state": {"waiting": {"reason": "ErrImagePull", "message": "no"}},
        "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "message": "a\nb"}},
    },
    {"name": "web", "state": {"running": {"startedAt": "t"}}},
]
_CONDITIONS = [
    {"type": "Ready", "status": "True"},
    {"type": "Failed", "status": "True", "reason": "r", "message": "m"},
    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "m"},
]
_POD = {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 80}]}]}
_OBJECTS: dict[str, list[dict[str, object]]] = {
    "pods": [
        {
            "spec": {"nodeName": "n", **_POD, "initContainers": [{"restartPolicy": "Always"}]},
            "status": {
                "phase": phase,
                "reason": "Evicted",
                "podIP": "10.0.0.1",
                "conditions": _CONDITIONS,
                "containerStatuses": _STATUSES,
            },
        }
        for phase in ("Running", "Failed")
    ],
    "services": [
        {"spec": {"type": "ExternalName", "externalName": "db.test"}},
        {
            "spec": {
                "clusterIP": "10.0.0.9",
                "ipFamilies": ["IPv4"],
                "ports": [{"name": "web", "port": 80, "protocol": "TCP", "targetPort": "http"}],
            }
        },
    ],
    "endpointslices": [
        {
            "addressType": "IPv4",
            "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
            "endpoints": [
                {"addresses": ["10.0.0.1"], "conditions": {"ready": True, "serving": None}}
            ],
        }
    ],
    "deployments": [
        {
            "spec": {
                "selector": {
                    "matchLabels": {"app": "web"},
                    "matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}],
                },
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": _POD},
            }
        }
    ],
    "jobs": [{"spec": {}, "status": {"conditions": _CONDITIONS}}],
    "events": [
        {
            "type": "Warning",
            "reason": "FailedCreate",
            "message": "exceeded quota: q",
            "involvedObject": {"uid": "u"},
            "series": {"lastObservedTime": "t"},
        }
    ],
    "widgets": [{"metadata": _META, "deep": [[[{}]]]}],
}


def _api_objects() -> Iterator[bytes]:
    for number, (_, items) in enumerate(_OBJECTS.items()):
        whole = [{"metadata": _META, **item} for item in items]
        texts = [(0, {"type": "MODIFIED", "object": item}) for item in whole]
        page = {"metadata": {"resourceVersion": "5", "continue": "t"}, "items": whole}
        texts += [(2, item) for item in whole] + [(3, item) for item in whole] + [(1, page)]
        for form, text in texts:
            yield bytes([number, form]) + json.dumps(text).encode()
    yield b"\0\0" + b'{"type":"ERROR","object":{"kind":"Status","code":410}}'
    yield b"\0\0" + b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9"}}}'
    yield b"\0\3" + b'{"a":' * 500
    yield b"\0\3" + b"[" * 4_000


def _api_refusal() -> Iterator[bytes]:
    for user in ("jane", "system:serviceaccount:a:b", "x; y #"):
        for scope in (' in the namespace \\"n\\"', " at the cluster scope"):
            yield (
                b"\0\3"
                + f'{{"kind":"Status","message":"pods is forbidden: User \\"{user}\\" '
                f'cannot list resource \\"pods/log\\" in API group \\"apps\\"{scope}"}}'.encode()
            )
    for status in (1, 3, 4, 7, 102):
        yield status.to_bytes(2, "big") + b"<html><h1>no</h1></html>"
        yield status.to_bytes(2, "big") + b"<" * 999
        yield status.to_bytes(2, "big") + b'{"message":5}'


def _credentials() -> Iterator[bytes]:
    documents: tuple[tuple[int, object], ...] = (
        (
            0,
            {
                "apiVersion": "v1",
                "status": {"token": "t", "expirationTimestamp": "2026-01-01T00:00:00Z"},
            },
        ),
        (
            0,
            {
                "apiVersion": "v1",
                "status": {"clientCertificateData": "c", "clientKeyData": "k"},
            },
        ),
        (1, {"exp": 1_767_225_600, "iss": "x"}),
        (1, {"exp": 1e308}),
        (2, {"issuer": "https://i", "token_endpoint": "https://i/t"}),
        (2, {"token_endpoint_auth_methods_supported": ["client_secret_post"]}),
        (3, {"id_token": "a.b.c", "refresh_token": "r"}),
        (4, {"server": "https://h", "insecure-skip-tls-verify": True, "extensions": []}),
        (5, {"token": "t", "as-groups": ["a"], "as-user-extra": {"a": ["b"]}}),
        (5, {"exec": {"command": "c", "args": [], "env": [{"name": "A", "value": "b"}]}}),
        (5, {"auth-provider": {"name": "oidc", "config": {"client-id": "x"}}}),
        (6, {"cluster": "c", "user": "u", "namespace": "n"}),
    )
    for form, document in documents:
        yield bytes([form]) + json.dumps(document).encode()
    yield b"\1" + b'{"exp":' + b"9" * 400 + b"}"


_MADE = {
    "frames": _frames,
    "session": _session,
    "handshake": _handshake,
    "header": _header,
    "connection": _connection,
    "framing": _framing,
    "door": _door,
    "config_yaml": _config_yaml,
    "config_txt": _config_txt,
    "socks5": _socks5,
    "http_proxy": _http_proxy,
    "socks_client": _socks_client,
    "spdy": _spdy,
    "websocket": _websocket,
    "http_answer": _http_answer,
    "upgrade": _upgrade,
    "api_objects": _api_objects,
    "api_refusal": _api_refusal,
    "credentials": _credentials,
}


def write() -> None:
    """Write each seed that is not there yet, under a digest of what it holds."""
    for name, target in TARGETS.items():
        target.corpus.mkdir(parents=True, exist_ok=True)
        for seed in seeds(name):
            (target.corpus / hashlib.sha1(seed).hexdigest()[:16]).write_bytes(seed)


if __name__ == "__main__":
    write()
