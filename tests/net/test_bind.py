"""Binding real addresses of this machine."""

from __future__ import annotations

import contextlib
import errno
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from krelay.errors import ListenError
from krelay.model import Protocol
from krelay.net import bind as module
from krelay.net.bind import bind, is_free, port_owner, unbound_loopback
from tests import rig

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
KINDS = pytest.mark.parametrize("kind", [TCP, UDP])


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, TCP) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


IPV6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")


@contextmanager
def bound(address: str, port: int, kind: socket.SocketKind) -> Iterator[list[socket.socket]]:
    sockets = bind(address, port, kind)
    try:
        yield sockets
    finally:
        for sock in sockets:
            sock.close()


@KINDS
def test_an_address_is_one_socket_that_does_not_block(kind: socket.SocketKind) -> None:
    with bound("127.0.0.1", 0, kind) as (sock,):
        assert sock.getsockname()[0] == "127.0.0.1"
        assert sock.type == kind
        assert not sock.getblocking()


def test_a_tcp_socket_listens_already() -> None:
    with bound("127.0.0.1", 0, TCP) as (sock,):
        socket.create_connection(sock.getsockname()).close()


@KINDS
def test_a_port_is_free_if_neither_protocol_uses_it(kind: socket.SocketKind) -> None:
    port = rig.closed_port()  # which no other program takes in between
    assert is_free(rig.HOST, port)
    with bound(rig.HOST, port, kind):
        assert not is_free(rig.HOST, port)
    assert is_free(rig.HOST, port)


@pytest.mark.process
@pytest.mark.parametrize(
    ("script", "owner"),
    [("krelay", "another krelay"), ("kubectl-relay", "another krelay"), ("x", "x")],
)
def test_the_owner_of_a_port_is_named(script: str, owner: str, tmp_path: Path) -> None:
    program = tmp_path / script
    program.write_text(
        f"#!{sys.executable}\n"
        "import socket\n"
        "sock = socket.create_server(('127.0.0.1', 0))\n"
        "print(sock.getsockname()[1], flush=True)\n"
        "input()\n"
    )
    program.chmod(0o700)
    with subprocess.Popen(
        [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        assert port_owner(Protocol.TCP, "127.0.0.1", port) == f"{owner} (pid {process.pid})"
        assert port_owner(Protocol.UDP, "127.0.0.1", port) is None
        process.communicate("\n")


@IPV6
@KINDS
def test_an_ipv6_address_is_ipv6_only(kind: socket.SocketKind) -> None:
    with bound("::", 0, kind) as (sock,):
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


@IPV6
@KINDS
def test_localhost_is_both_families_on_one_port(kind: socket.SocketKind) -> None:
    with bound("localhost", 0, kind) as (four, six):
        assert four.getsockname()[:2] == ("127.0.0.1", six.getsockname()[1])
        assert six.getsockname()[0] == "::1"


@IPV6
@KINDS
@pytest.mark.parametrize(("held", "free"), [("::1", "127.0.0.1"), ("127.0.0.1", "::1")])
def test_localhost_is_the_other_family_if_the_port_is_taken_in_one(
    held: str, free: str, kind: socket.SocketKind
) -> None:
    with bound(held, 0, kind) as (sock,):
        port = sock.getsockname()[1]
        with bound("localhost", port, kind) as (only,):
            assert only.getsockname()[:2] == (free, port)
            assert unbound_loopback("localhost", [free]) == held


@IPV6
@KINDS
def test_localhost_is_refused_if_the_port_is_taken_in_both(kind: socket.SocketKind) -> None:
    with bound("localhost", 0, kind) as (four, _):
        port = four.getsockname()[1]
        with pytest.raises(ListenError, match=rf"localhost:{port}: Address already in use"):
            bind("localhost", port, kind)


@pytest.mark.parametrize(
    ("has", "lacks"), [("127.0.0.1", "::1"), pytest.param("::1", "127.0.0.1", marks=IPV6)]
)
def test_localhost_is_one_address_on_a_machine_without_the_other(
    has: str, lacks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module._bind_one

    def bind_one(host: str, port: int, kind: socket.SocketKind) -> socket.socket:
        if host == lacks:
            raise OSError(errno.EADDRNOTAVAIL, "no")
        return real(host, port, kind)

    monkeypatch.setattr(module, "_bind_one", bind_one)
    with bound("localhost", 0, TCP) as (sock,):
        assert sock.getsockname()[0] == has
    assert unbound_loopback("localhost", [has]) is None


def test_only_localhost_lacks_an_address() -> None:
    assert unbound_loopback("localhost", ["127.0.0.1", "::1"]) is None
    assert unbound_loopback("127.0.0.1", ["127.0.0.1"]) is None


@IPV6
def test_a_random_port_taken_in_one_family_is_replaced_by_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, taken = module._bind_one, [True, True]

    def unlucky(host: str, port: int, kind: socket.SocketKind) -> socket.socket:
        if host == "::1" and port and taken and taken.pop():
            raise OSError(errno.EADDRINUSE, "in use")
        return real(host, port, kind)

    monkeypatch.setattr(module, "_bind_one", unlucky)
    with bound("localhost", 0, TCP) as sockets:
        assert len(sockets) == 2
    assert not taken


@IPV6
def test_a_random_port_for_localhost_is_sought_a_limited_number_of_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = module._bind_one

    def unlucky(host: str, port: int, kind: socket.SocketKind) -> socket.socket:
        if host == "::1" and port:
            raise OSError(errno.EADDRINUSE, "in use")
        return real(host, port, kind)

    monkeypatch.setattr(module, "_bind_one", unlucky)
    with bound("localhost", 0, TCP) as (sock,):
        assert sock.getsockname()[0] == "127.0.0.1"


@KINDS
def test_several_addresses_share_one_random_port(kind: socket.SocketKind) -> None:
    with bound("127.0.0.1,127.0.0.2,127.0.0.3", 0, kind) as sockets:
        names = [sock.getsockname() for sock in sockets]
        assert [host for host, _ in names] == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
        assert len({port for _, port in names}) == 1


@IPV6
def test_localhost_may_be_one_of_several_addresses() -> None:
    with bound("127.0.0.2,localhost", 0, TCP) as sockets:
        assert [sock.getsockname()[0] for sock in sockets] == ["127.0.0.2", "127.0.0.1", "::1"]
        assert len({sock.getsockname()[1] for sock in sockets}) == 1
    assert unbound_loopback("127.0.0.2,localhost", ["127.0.0.2", "127.0.0.1"]) == "::1"


def test_a_random_port_taken_at_a_later_address_is_replaced_by_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, taken = module._bind_one, list[int]()
    with contextlib.ExitStack() as stack:

        def take_first(host: str, port: int, kind: socket.SocketKind) -> socket.socket:
            if host == "127.0.0.2" and not taken:
                taken.append(port)
                stack.enter_context(real(host, port, kind))
            return real(host, port, kind)

        monkeypatch.setattr(module, "_bind_one", take_first)
        with bound("127.0.0.1,127.0.0.2", 0, TCP) as (first, second):
            assert first.getsockname()[1] == second.getsockname()[1]
            assert first.getsockname()[1] not in taken


@pytest.mark.parametrize(
    ("number", "tries"), [(errno.EADDRINUSE, 20), (errno.EADDRNOTAVAIL, 1), (errno.EMFILE, 1)]
)
def test_each_of_several_addresses_must_be_bound(
    number: int, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, first = module._bind_one, list[socket.socket]()

    def refuse_second(host: str, port: int, kind: socket.SocketKind) -> socket.socket:
        if host == "127.0.0.2":
            raise OSError(number, "no")
        first.append(real(host, port, kind))
        return first[-1]

    monkeypatch.setattr(module, "_bind_one", refuse_second)
    with pytest.raises(ListenError, match=r"cannot listen on 127\.0\.0\.2:0: "):
        bind("127.0.0.1,127.0.0.2", 0, TCP)
    assert len(first) == tries
    assert all(sock.fileno() == -1 for sock in first)


def test_the_owner_of_a_port_at_one_of_several_addresses_is_named() -> None:
    port = rig.closed_port()  # which no other program takes in between
    with bound("127.0.0.2", port, TCP):
        with pytest.raises(ListenError, match=rf"127\.0\.0\.2:{port}: Address already in use"):
            bind("127.0.0.1,127.0.0.2", port, TCP)
        assert port_owner(Protocol.TCP, "127.0.0.1,127.0.0.2", port) == "this krelay"
        assert port_owner(Protocol.TCP, "127.0.0.1,127.0.0.3", port) is None
        assert not is_free("127.0.0.1,127.0.0.2", port)


@KINDS
def test_a_port_in_use_is_an_error_with_a_hint(kind: socket.SocketKind) -> None:
    with bound("127.0.0.1", 0, kind) as (sock,):
        port = sock.getsockname()[1]
        with pytest.raises(ListenError, match=f"cannot listen on 127.0.0.1:{port}: ") as caught:
            bind("127.0.0.1", port, kind)
    assert caught.value.hint is not None
    assert "stop the program that uses it" in caught.value.hint
    assert isinstance(caught.value.__cause__, OSError)


def test_an_address_of_another_machine_is_an_error_with_a_hint() -> None:
    with pytest.raises(ListenError, match=r"192\.0\.2\.1:0: ") as caught:
        bind("192.0.2.1", 0, TCP)
    assert caught.value.hint == "this machine has no such address"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_privileged_port_is_an_error_with_a_hint(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> socket.socket:
        raise OSError(number, "no")

    monkeypatch.setattr(module, "_bind_one", refuse)
    with pytest.raises(ListenError, match=r"\[::1\]:80: ") as caught:
        bind("::1", 80, TCP)
    assert caught.value.hint is not None
    assert "below 1024" in caught.value.hint


def test_exhausted_descriptors_do_not_count_as_a_machine_without_ipv6(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bind_one = module._bind_one

    def fail(host: str, port: int, kind: socket.SocketKind) -> socket.socket:
        if host == "::1":
            raise OSError(errno.EMFILE, "Too many open files")
        return bind_one(host, port, kind)

    monkeypatch.setattr(module, "_bind_one", fail)
    with pytest.raises(ListenError, match="cannot listen on localhost:0: Too many open files"):
        bind("localhost", 0, TCP)
