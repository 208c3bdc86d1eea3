"""What a command line says over a file, or instead of one."""

from __future__ import annotations

import pytest

from krelay.config.sources import Overlay, Proxy, Words
from krelay.errors import UsageError
from krelay.model import (
    AgentConfig,
    Check,
    CheckKind,
    Config,
    Kind,
    Patch,
    Port,
    Target,
    proxy_target,
)

PATCH = Patch({"spec": {}})
WEB = Target("web", Kind.SERVICE, "web", (Port(80, 8080),))
DB = Target("db", Kind.SERVICE, "db", (Port(5432, 5432),), namespace="data", listen="::1")


def test_nothing_said_is_nothing_changed() -> None:
    config = Config((WEB, DB), context="c", namespace="n", agent=AgentConfig(image="i"))
    assert Overlay().over(config) == config


def test_a_namespace_is_for_those_that_have_none() -> None:
    config = Overlay(namespace="n", context="c").over(Config((WEB, DB)))
    assert [target.namespace for target in config.targets] == ["n", "data"]
    assert [target.context for target in config.targets] == ["c", "c"]
    # The agent goes where the context says, as the targets' namespace may allow no pods.
    assert (config.context, config.namespace) == ("c", None)


def test_addresses_are_for_those_that_listen_where_all_do() -> None:
    config = Overlay(listens=("0.0.0.0",)).over(Config((WEB, DB)))
    assert [(target.name, target.listen) for target in config.targets] == [
        ("web", "0.0.0.0"),
        ("db", "::1"),
    ]
    config = Overlay(listens=("127.0.0.1", "::1")).over(Config((WEB, DB)))
    assert [(target.name, target.listen) for target in config.targets] == [
        ("web -l 127.0.0.1", "127.0.0.1"),
        ("web -l ::1", "::1"),
        ("db", "::1"),
    ]


def test_patches_come_after_the_file_s() -> None:
    first = Patch({"metadata": {}})
    config = Config((WEB,), agent=AgentConfig(patches=(first,)))
    agent = Overlay(image="i", patches=(PATCH,)).over(config).agent
    assert (agent.image, agent.patches) == ("i", (first, PATCH))


def test_words_are_a_target() -> None:
    words = Words(("service/my-service", "8080:http"), Overlay(namespace="n", image="i"))
    config = words.load()
    (target,) = config.targets
    assert (target.kind, target.resource, target.namespace) == (Kind.SERVICE, "my-service", "n")
    assert target.ports == (Port("http", 8080),)
    assert target.check == Check(CheckKind.NONE)
    assert config.agent.image == "i"
    assert words.file is None
    with pytest.raises(UsageError, match="has no port"):
        Words(("svc/web",)).load()


@pytest.mark.parametrize(
    ("listen", "address", "port"),
    [
        ("127.0.0.1:1080", "127.0.0.1", 1080),
        ("0.0.0.0:0", "0.0.0.0", 0),
        ("[::1]:9050", "::1", 9050),
        (":9050", "127.0.0.1", 9050),
        ("9050", "127.0.0.1", 9050),
        ("localhost", "localhost", 1080),
    ],
)
def test_a_proxy_is_a_target_too(listen: str, address: str, port: int) -> None:
    config = Proxy(listen, ("me", "pw"), True, Overlay(context="c")).load()
    (target,) = config.targets
    assert (target.listen, target.ports[0].local) == (address, port)
    assert target.credentials == ("me", "pw")
    assert (config.agent.embedded, target.context) == (True, "c")
    assert Proxy().file is None
    assert "pw" not in repr(config)


@pytest.mark.parametrize("listen", ["nowhere:80", "127.0.0.1:99999", "127.0.0.1:x", "::1"])
def test_a_proxy_that_can_listen_nowhere(listen: str) -> None:
    with pytest.raises(UsageError):
        Proxy(listen).load()


@pytest.mark.parametrize("listen", ["0.0.0.0:1080", "[::]:0", "10.0.0.1"])
def test_a_proxy_that_other_machines_reach_takes_a_password(listen: str) -> None:
    with pytest.raises(UsageError, match="is open to other machines") as caught:
        Proxy(listen).load()
    assert "--insecure" in str(caught.value.hint)
    assert Proxy(listen, ("me", "pw")).load()
    (target,) = Proxy(listen, overlay=Overlay(insecure=True)).load().targets
    assert target.insecure


def test_an_address_of_the_command_line_opens_no_proxy_of_a_file() -> None:
    config = Config((WEB, proxy_target("p")))
    with pytest.raises(UsageError, match=r"p: `0\.0\.0\.0` is open"):
        Overlay(listens=("0.0.0.0",)).over(config)
    assert len(Overlay(listens=("127.0.0.2", "::1")).over(config).targets) == 4
    assert Overlay(listens=("0.0.0.0",), insecure=True).over(config)


def test_a_password_is_not_shown() -> None:
    assert "pw" not in repr(Proxy(credentials=("me", "pw")))
