"""The effect of a plan on listeners, connections and agents."""

from __future__ import annotations

import asyncio
import hashlib
import random
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from krelay.datapath.tcp import TcpListener
from krelay.supervisor.warming import WarmingConfig
from tests import rig
from tests.supervisor.agents import FakeAgent
from tests.supervisor.world import HEAD, Talk, named, text, world

HOST = "ip/127.0.0.1"
LONG = HEAD.replace("0.05", "1h")


async def test_an_edit_adds_and_removes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with named(b"a") as a, world(monkeypatch, tmp_path, text(f"one: {HOST} :{a}")) as w:
        port = w.port("one")
        changed = await w.edit(text(f"one: {HOST} :{a}", f"two: {HOST} :{a}"))
        assert changed == [f"two: added 127.0.0.1:<free> -> {HOST}:{a}"]
        assert w.port("one") == port
        assert w.lines[-1] == f"two: 127.0.0.1:{w.port('two')} -> {HOST}:{a} (tcp)"
        for name in ("one", "two"):
            talk = await Talk.to(w.port(name))
            assert talk.name == b"a"
            await talk.close()
        await w.edit(text(f"two: {HOST} :{a}"))
        assert set(w.listening) == {"two"}
        with pytest.raises(ConnectionRefusedError):
            await Talk.to(port)


async def test_a_removed_forward_is_closed_before_its_change_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one, two = f"one: {HOST} :1", f"two: {HOST} :1"
    async with world(monkeypatch, tmp_path, text(one, two)) as w:
        sockets = [forward.listener for forward in w.supervisor.active.forwards.values()]
        real = w.supervisor.active.commit
        open_after: list[bool] = []

        def commit(stage: WarmingConfig) -> None:
            real(stage)
            open_after.append(any(isinstance(s, TcpListener) and s.accepting for s in sockets[:1]))

        monkeypatch.setattr(w.supervisor.active, "commit", commit)
        await w.edit(text(two))
        assert open_after == [False]


async def test_a_comment_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "krelay.supervisor")
    async with named(b"a") as a, world(monkeypatch, tmp_path, text(f"one: {HOST} :{a}")) as w:
        before = dict(w.supervisor.active.forwards)
        caplog.clear()
        assert await w.edit("# a comment\n" + text(f"'one': {HOST} :{a}  # another")) == []
        assert w.supervisor.active.forwards == before
        assert [(r.levelname, r.message) for r in caplog.records] == [
            ("DEBUG", "nothing changed (an edit)")
        ]


async def test_a_removed_forward_drains_then_resets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one, two = f"one: {HOST} :1", f"two: {HOST} :1"
    async with named(b"a") as a:
        one, two = f"one: {HOST} :{a}", f"two: {HOST} :{a}"
        async with world(monkeypatch, tmp_path, text(one, two, head=LONG)) as w:
            talk = await Talk.to(w.port("one"))
            changed = await w.edit(text(two, head=LONG))
            assert changed[0].endswith("1 live connection given 3600 s to finish")
            assert await talk.alive()
            await w.edit(text(two))  # a shorter drain is for forwards that are removed from now on
            assert await talk.alive()
            other = await Talk.to(w.port("two"))
            await w.edit(text(one))
            await other.cut()
            assert await talk.alive()
            await talk.close()
            await other.close()
            await rig.until(lambda: not w.supervisor.active.draining_forwards)


async def test_without_a_drain_it_is_cut(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    head = HEAD.replace("0.05", "0")
    async with named(b"a") as a:
        one, two = f"one: {HOST} :{a}", f"two: {HOST} :{a}"
        async with world(monkeypatch, tmp_path, text(one, two, head=head)) as w:
            talk = await Talk.to(w.port("one"))
            assert (await w.edit(text(two, head=head)))[0].endswith("1 live connection cut")
            await talk.cut()
            await talk.close()


async def test_rerouting_keeps_the_socket_and_its_connections(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    free = rig.closed_port()
    async with named(b"a") as a, named(b"b") as b:
        async with world(monkeypatch, tmp_path, text(f"one: {HOST} {free}:{a}")) as w:
            (forward,) = w.supervisor.active.forwards.values()
            listener = forward.listener
            old = await Talk.to(free)
            changed = await w.edit(text(f"one: {HOST} {free}:{b}"))
            assert changed == [f"one: re-routed {HOST}:{a} -> {HOST}:{b}, 1 live connection stays"]
            assert forward.listener is listener
            new = await Talk.to(free)
            assert (old.name, new.name) == (b"a", b"b")
            await asyncio.sleep(0.1)  # longer than the drain: it is none
            assert await old.alive()
            await old.close()
            await new.close()


async def test_rebinding_keeps_the_connections(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one, two = rig.closed_port(), rig.closed_port()
    async with named(b"a") as a:
        async with world(monkeypatch, tmp_path, text(f"one: {HOST} {one}:{a}")) as w:
            old = await Talk.to(one)
            assert await w.edit(text(f"one: {HOST} {two}:{a}")) == [
                f"one: rebound 127.0.0.1:{one} -> 127.0.0.1:{two}, 1 live connection stays"
            ]
            new = await Talk.to(two)
            with pytest.raises(ConnectionRefusedError):
                await Talk.to(one)
            assert await old.alive()
            assert await new.alive()
            await old.close()
            await new.close()


async def test_two_targets_can_swap_their_ports_in_one_edit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one, two = rig.closed_port(), rig.closed_port()
    async with named(b"a") as a, named(b"b") as b:

        def lines(x: int, y: int) -> str:
            return text(f"a: {HOST} {x}:{a}", f"b: {HOST} {y}:{b}")

        async with world(monkeypatch, tmp_path, lines(one, two)) as w:
            talks = [await Talk.to(one), await Talk.to(two)]
            for _ in range(3):
                for x, y in ((two, one), (one, two)):
                    await w.edit(lines(x, y))
                    assert w.listening == {"a": {x}, "b": {y}}
                    for port, name in ((x, b"a"), (y, b"b")):
                        talk = await Talk.to(port)
                        assert talk.name == name
                        await talk.close()
            # From one that goes to one that comes.
            await w.edit(text(f"a: {HOST} {one}:{a}", f"c: {HOST} {two}:{b}"))
            assert w.listening == {"a": {one}, "c": {two}}
            assert await talks[0].alive()
            await talks[1].cut()
            for talk in talks:
                await talk.close()


async def test_tcp_turns_into_udp_and_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    free = rig.closed_port()
    async with named(b"a") as a, rig.udp_echo() as udp:
        tcp_line, udp_line = f"one: {HOST} {free}:{a}", f"one: {HOST} {free}:{udp}/udp"
        async with world(monkeypatch, tmp_path, text(tcp_line)) as w:
            old = await Talk.to(free)
            for _ in range(2):
                await w.edit(text(udp_line))
                async with rig.udp_socket(connect=free) as sock:
                    sock.send(b"x")
                    assert await rig.recv(sock) == b"x"
                with pytest.raises(ConnectionRefusedError):
                    await Talk.to(free)
                await w.edit(text(tcp_line))
                new = await Talk.to(free)
                await new.close()
            assert await old.alive()
            await old.close()


async def test_datagrams_go_where_the_route_leads_now(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    free = rig.closed_port()
    async with rig.udp_echo(b"a") as a, rig.udp_echo(b"b") as b:
        async with world(monkeypatch, tmp_path, text(f"one: {HOST} {free}:{a}/udp")) as w:
            async with rig.udp_socket(connect=free) as sock:
                sock.send(b"x")
                assert await rig.recv(sock) == b"ax"
                await w.edit(text(f"one: {HOST} {free}:{b}/udp"))
                sock.send(b"x")
                assert await rig.recv(sock) == b"bx"


# -- proxies -----------------------------------------------------------------------------------


async def test_an_edit_of_which_pods_serve_is_followed_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with named(b"a") as port:
        target = f"target: ip/127.0.0.1, port: ':{port}'"
        async with world(monkeypatch, tmp_path, text(f"web: {{{target}}}")) as running:
            watcher = running.supervisor.active.watchers["web"]
            talk = await Talk.to(running.port("web"))
            edited = text(f"web: {{{target}, ready: false, affinity: client}}")
            assert await running.edit(edited) == [
                "web.ready: set true -> false",
                "web.affinity: set none -> client",
            ]
            assert running.supervisor.active.watchers["web"] is not watcher
            assert running.supervisor.active.watchers["web"].target.ready is False
            assert await talk.alive()
            await talk.close()


async def test_a_proxy_follows_edits_as_targets_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one, two = rig.closed_port(), rig.closed_port()

    def content(entry: str, head: str = HEAD) -> str:
        return f"{head}proxies: {{px: {{{entry}}}}}\n"

    async def through(port: int, target: int) -> Talk:
        reader, writer = await asyncio.open_connection(rig.HOST, port)
        writer.write(b"\5\1\0\5\1\0\1\x7f\0\0\1" + target.to_bytes(2, "big"))
        assert (await reader.readexactly(12))[3] == 0
        talk = Talk(reader, writer)
        talk.name = await reader.readexactly(1)
        return talk

    async with named(b"a") as a:
        async with world(monkeypatch, tmp_path, content(f"port: {one}")) as w:
            assert w.lines == [f"px: 127.0.0.1:{one} -> proxy/socks5+http (tcp)"]
            live = await through(one, a)
            assert live.name == b"a"
            assert await w.edit(content(f"port: {two}")) == [
                f"px: rebound 127.0.0.1:{one}/tcp -> 127.0.0.1:{two}/tcp, 1 live connection stays"
            ]
            with pytest.raises(ConnectionRefusedError):
                await through(one, a)
            # Another agent takes new streams; live ones keep the drain of the former one.
            await w.edit(content(f"port: {two}", LONG.replace("sessions: 1", "sessions: 2")))
            new = await through(two, a)
            assert w.supervisor.active.groups[None].pool.streams == 1
            assert await live.alive()
            head = LONG.replace("sessions: 1", "sessions: 2")
            (line,) = await w.edit(content(f"port: {two}, username: me, password: pw", head))
            assert line.startswith("px: re-routed proxy/socks5+http")
            reader, writer = await asyncio.open_connection(rig.HOST, two)
            writer.write(b"\5\1\0")
            assert await reader.read() == b"\5\xff"
            writer.close()
            assert await new.alive()
            await live.close()
            await new.close()


# -- agents ------------------------------------------------------------------------------------


async def test_a_replaced_agent_drains_after_the_new_one_is_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with named(b"a") as a:
        line = f"one: {HOST} :{a}"
        async with world(monkeypatch, tmp_path, text(line, head=LONG)) as w:
            old = await Talk.to(w.port("one"))
            port = w.port("one")
            changed = await w.edit(text(line, head=LONG.replace("sessions: 1", "sessions: 2")))
            assert changed == [
                "agent: replaced tunnel.sessions 1 -> 2, 1 live connection given 3600 s to finish"
            ]
            assert w.port("one") == port
            assert [agent.stopped for agent in w.agents] == [False, False]
            new = await Talk.to(port)
            assert len(w.agents[1].server.sessions) == 2
            assert await old.alive()
            await old.close()
            await rig.until(lambda: w.agents[0].stopped)
            assert await new.alive()
            await new.close()


async def test_streams_of_a_replaced_agent_are_cut_after_the_drain(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with named(b"a") as a:
        line = f"one: {HOST} :{a}"
        async with world(monkeypatch, tmp_path, text(line)) as w:
            old = await Talk.to(w.port("one"))
            await w.edit(text(line, head=HEAD.replace("sessions: 1", "sessions: 2")))
            await old.cut()
            await old.close()
            await rig.until(lambda: w.agents[0].stopped)


async def test_a_queued_connection_follows_a_changed_route(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its agent is gone and none comes; an edit brings another one."""
    async with named(b"a") as a:
        line = f"one: {HOST} :{a}"
        async with world(monkeypatch, tmp_path, text(line)) as w:
            lost = w.agents[0]

            async def fail(protocol: asyncio.Protocol) -> asyncio.Transport:
                raise ConnectionRefusedError("gone")

            monkeypatch.setattr(lost, "dial", fail)
            group = w.supervisor.active.groups[None]
            lost.server.stop("the test")
            await rig.until(lambda: group.pool.pick() is None)
            async with asyncio.TaskGroup() as tasks:
                talk = tasks.create_task(Talk.to(w.port("one")))
                forward = next(iter(w.supervisor.active.forwards.values()))
                await rig.until(lambda: forward.live)
                await w.edit(text(line, head=HEAD.replace("sessions: 1", "sessions: 2")))
            assert talk.result().name == b"a"
            await talk.result().close()


async def test_an_edit_whose_agent_cannot_start_is_retried_and_changes_nothing_meanwhile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from krelay.errors import AgentError
    from krelay.supervisor.transitions import edits as module

    monkeypatch.setattr(module, "_RETRY_FIRST", 0.01)
    async with named(b"a") as a:
        one, two = f"one: {HOST} :{a}", f"two: {HOST} :{a}"
        async with world(monkeypatch, tmp_path, text(one)) as w:
            real = FakeAgent.start

            async def fail(reach: FakeAgent) -> None:
                raise AgentError("no image", hint="build one")

            monkeypatch.setattr(FakeAgent, "start", fail)
            with pytest.raises(AgentError, match="no image"):
                await w.edit(text(one, two, head=HEAD.replace("sessions: 1", "sessions: 2")))
            assert set(w.listening) == {"one"}
            drift = w.supervisor.out_of_sync
            assert drift is not None
            assert str(drift.error) == "no image"
            assert "not applied, the active config stays: no image; hint: build one" in caplog.text
            monkeypatch.setattr(FakeAgent, "start", real)
            await rig.until(lambda: set(w.listening) == {"one", "two"})
            await rig.until(lambda: w.supervisor.out_of_sync is None)
            assert caplog.text.count("no image") == 1


async def test_a_newer_edit_supersedes_one_that_is_warming(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An agent that takes for ever to start is given up when the file no longer wants it."""
    async with named(b"a") as a:
        one, two = f"one: {HOST} :{a}", f"two: {HOST} :{a}"
        async with world(monkeypatch, tmp_path, text(one)) as w:
            starting = asyncio.Event()

            async def forever(reach: FakeAgent) -> None:
                starting.set()
                await asyncio.get_running_loop().create_future()

            with monkeypatch.context() as patch:
                patch.setattr(FakeAgent, "start", forever)
                async with asyncio.TaskGroup() as tasks:
                    changed = HEAD.replace("sessions: 1", "sessions: 2")
                    slow = tasks.create_task(w.edit(text(one, two, head=changed)))
                    await starting.wait()
                    # The same again is no newer one.
                    same = text(one, two, head=changed + "# same\n")
                    await asyncio.to_thread(w.file.write_text, same)
                    again = await w.reloader.load("the same")
                    assert not slow.done()
                    assert not again.done.is_set()
                    drift = w.supervisor.out_of_sync
                    assert drift is not None
                    assert drift.error is None  # it is on its way
                    newest = await w.edit(text(one, two))
                # The former request must not succeed before the newer one has.
                assert len(newest) == 1
                assert slow.result() == newest
                assert again.newer is w.supervisor.edits.request
            assert w.supervisor.out_of_sync is None
            assert set(w.listening) == {"one", "two"}
            assert [agent.stopped for agent in w.agents] == [False, True]


# -- what must not be felt ---------------------------------------------------------------------


async def test_transfers_through_a_hundred_edits_of_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chance = random.Random(4)
    ports = [rig.closed_port() for _ in range(4)]
    block = rig.noise(1 << 16)
    done = asyncio.Event()

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        whole = hashlib.sha256()
        while not done.is_set():
            writer.write(block)
            whole.update(block)
            await writer.drain()
        writer.write(whole.digest())
        writer.write_eof()
        await writer.drain()

    async with AsyncExitStack() as stack:
        source = await stack.enter_async_context(rig.tcp_target(pour))
        udp = await stack.enter_async_context(rig.udp_echo())
        a = await stack.enter_async_context(named(b"a"))
        b = await stack.enter_async_context(named(b"b"))
        ours = [f"bulk: {HOST} :{source}", f"dns: {HOST} :{udp}/udp"]
        w = await stack.enter_async_context(world(monkeypatch, tmp_path, text(*ours)))

        async def receive() -> tuple[bytes, bytes]:
            async with rig.connect(w.port("bulk")) as (reader, _):
                whole, tail = hashlib.sha256(), b""
                while data := await reader.read(1 << 16):
                    data = tail + data
                    whole.update(data[:-32])
                    tail = data[-32:]
                return whole.digest(), tail

        async def ask() -> int:
            count = 0
            async with rig.udp_socket(connect=w.port("dns")) as sock:
                while not done.is_set():
                    sock.send(count.to_bytes(4, "big"))
                    assert await rig.recv(sock) == count.to_bytes(4, "big")
                    count += 1
            return count

        async with asyncio.TaskGroup() as tasks:
            transfer = tasks.create_task(receive())
            asking = tasks.create_task(ask())
            for _ in range(100):
                others = [
                    f"t{n}: {HOST} {local}:{chance.choice((a, b))}"
                    for n, local in enumerate(chance.sample(ports, chance.randint(0, 4)))
                ]
                await w.edit(text(*chance.sample([*ours, *others], 2 + len(others))))
                assert set(w.listening) == {"bulk", "dns", *(line.split(":")[0] for line in others)}
            done.set()
        digest, expected = transfer.result()
        assert digest == expected
        assert asking.result() > 0
