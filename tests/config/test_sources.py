"""Sources of a config: a file, a command line, lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from krelay.config.sources import Lines, Overlay, Proxy, Selection, Words, named
from krelay.errors import ConfigError, UsageError
from krelay.model import (
    AgentConfig,
    Check,
    CheckKind,
    Config,
    Kind,
    Origin,
    Patch,
    Port,
    Target,
    Via,
    proxy_target,
)

TEXT = """\
apiVersion: krelay/v1
targets:
  web: svc/web 8080:80
  db: sts/postgres 5432
  cache: host/redis.test ${PORT:-6379}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "krelay.yaml"
    path.write_text(TEXT)
    return path


def names(selection: Selection) -> list[str]:
    return [target.name for target in selection.load().targets]


def test_no_names_select_every_target(file: Path) -> None:
    assert names(Selection(str(file))) == ["web", "db", "cache"]


def test_named_targets_keep_the_order_of_the_file(file: Path) -> None:
    assert names(Selection(str(file), ("cache", "web", "web"))) == ["web", "cache"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("wbe", "did you mean `web`?"), ("nothing", "it has: `web`, `db`, `cache`")],
)
def test_an_unknown_target_name_is_a_usage_error(name: str, hint: str, file: Path) -> None:
    with pytest.raises(UsageError, match=f"krelay.yaml has no target `{name}`") as caught:
        Selection(str(file), ("web", name)).load()
    assert caught.value.hint == hint


def test_an_embedded_agent_reaches_no_cluster(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Selection(str(file), embedded=True).load()
    assert [(p.line, p.message) for p in caught.value.problems] == [
        (3, "`svc/web` is in a cluster, but the agent is embedded"),
        (4, "`sts/postgres` is in a cluster, but the agent is embedded"),
    ]
    assert all(p.hint for p in caught.value.problems)
    # The user fixes the file, which is watched.
    assert caught.value.files == (str(file),)


def test_an_embedded_agent_needs_only_the_named_targets_outside_the_cluster(file: Path) -> None:
    assert Selection(str(file), ("cache",), embedded=True).load().agent == AgentConfig(
        embedded=True
    )


def test_a_selection_reads_the_file_at_each_load(file: Path) -> None:
    selection = Selection(str(file), environ={"PORT": "1"})
    assert selection.load().targets[2].ports[0].remote == 1
    file.write_text(TEXT.replace("8080:80", "8081:80"))
    assert selection.load().targets[0].ports[0].local == 8081
    file.unlink()
    with pytest.raises(UsageError, match="cannot read"):
        selection.load()


def test_a_selection_names_its_file(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert Selection(str(file)).file == str(file)
    assert Selection("-", text=TEXT.encode()).file is None
    assert names(Selection("-", text=TEXT.encode())) == ["web", "db", "cache"]
    monkeypatch.chdir(tmp_path)
    assert Selection(None).file == "krelay.yaml"
    file.unlink()
    with pytest.raises(UsageError, match="no krelay.yaml in this directory"):
        _ = Selection(None).file


GENERAL = """\
apiVersion: krelay/v1
context: here
namespace: shop
defaults: {namespace: data}
include: [more.yaml, lines.txt]
targets:
  web: svc/web 8080:80
  own: {target: svc/own, port: 81, namespace: mine, context: there}
  line: -n mine svc/line 82
proxies:
  socks:
"""
MORE = "apiVersion: krelay/v1\ncontext: there\nnamespace: team\ntargets: {more: svc/more 83}\n"
LINES = "svc/a 84\n-n mine svc/b 85\n"


def test_the_context_and_namespace_of_a_selection_replace_those_of_the_file(
    tmp_path: Path,
) -> None:
    path = tmp_path / "krelay.yaml"
    path.write_text(GENERAL)
    (tmp_path / "more.yaml").write_text(MORE)
    (tmp_path / "lines.txt").write_text(LINES)

    def places(**given: str) -> list[tuple[str | None, str | None]]:
        config = Selection(str(path), **given).load()  # type: ignore[arg-type]
        targets = {target.name: target for target in config.targets}
        names = ("web", "own", "line", "more", "svc/a 84", "svc/b 85 -n mine", "socks")
        found = [(targets[name].context, targets[name].namespace) for name in names]
        return [(config.context, config.namespace), *found]

    own, mine = ("there", "mine"), ("here", "mine")
    unset = places()
    assert unset[:4] == [("here", "shop"), ("here", "data"), own, mine]
    assert unset[4:] == [("there", "team"), ("here", "data"), mine, ("here", None)]
    new, mine = ("new", "ns"), ("new", "mine")
    replaced = places(context="new", namespace="ns")
    assert replaced == [new, new, own, mine, ("there", "team"), new, mine, ("new", None)]
    assert places(namespace="ns")[0] == ("here", "ns")
    assert places(context="new", namespace="")[0] == ("new", "shop")


def test_a_selection_with_a_namespace_knows_the_words_of_krelay_rbac(file: Path) -> None:
    origin = Selection(str(file), ("web",), namespace="ns").load().origin
    assert origin == Origin(("-f", str(file), "web"), "ns")


def test_an_invalid_namespace_of_a_selection_is_a_usage_error(file: Path) -> None:
    with pytest.raises(UsageError, match="`My_Shop` cannot be a namespace") as caught:
        Selection(str(file), namespace="My_Shop").load()
    assert caught.value.hint


# -- overlay, words and proxy ----------------------------------------------------------------------


PATCH = Patch({"spec": {}})
WEB = Target("web", Kind.SERVICE, "web", (Port(80, 8080),))
DB = Target("db", Kind.SERVICE, "db", (Port(5432, 5432),), namespace="data", listen="::1")


def test_an_empty_overlay_changes_nothing() -> None:
    config = Config((WEB, DB), context="c", namespace="n", agent=AgentConfig(image="i"))
    assert Overlay().over(config) == config


def test_the_namespace_option_applies_to_targets_without_one() -> None:
    config = Overlay(namespace="n", context="c").over(Config((WEB, DB)))
    assert [target.namespace for target in config.targets] == ["n", "data"]
    assert [target.context for target in config.targets] == ["c", "c"]
    # The agent uses the context's namespace, since that of the targets may allow no pods.
    assert (config.context, config.namespace) == ("c", None)


def test_the_listen_option_applies_to_targets_with_the_default_address() -> None:
    config = Overlay(listens=("0.0.0.0",)).over(Config((WEB, DB)))
    assert [(target.name, target.listen) for target in config.targets] == [
        ("web", "0.0.0.0"),
        ("db", "::1"),
    ]
    config = Overlay(listens=("127.0.0.1", "::1")).over(Config((WEB, DB)))
    assert [(target.name, target.listen) for target in config.targets] == [
        ("web", "127.0.0.1,::1"),
        ("db", "::1"),
    ]


def test_patches_come_after_the_file_s() -> None:
    first = Patch({"metadata": {}})
    config = Config((WEB,), agent=AgentConfig(patches=(first,)))
    agent = Overlay(image="i", patches=(PATCH,)).over(config).agent
    assert (agent.image, agent.patches) == ("i", (first, PATCH))


def test_words_give_one_target_without_a_check() -> None:
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
    ("words", "via", "expected"),
    [
        ("pod/x 80", None, Via.DIRECT),
        ("pod/x 80 53@tcp", None, Via.DIRECT),
        ("pod/x 80 53@udp", None, Via.AUTO),
        ("svc/x 80", None, Via.AUTO),
        ("host/x 80", None, Via.AUTO),
        ("pod/x 80", Via.AGENT, Via.AGENT),
        ("svc/x 80", Via.DIRECT, Via.DIRECT),
    ],
)
def test_a_pod_of_the_command_line_is_reached_as_kubectl_reaches_it(
    words: str, via: Via | None, expected: Via
) -> None:
    (target,) = Words(tuple(words.split()), Overlay(via=via)).load().targets
    assert target.via is expected


@pytest.mark.parametrize("words", ["pod/x 53@udp", "host/x 80", "proxy"])
def test_what_needs_an_agent_cannot_go_directly(words: str) -> None:
    overlay = Overlay(via=Via.DIRECT)
    source = Proxy(overlay=overlay) if words == "proxy" else Words(tuple(words.split()), overlay)
    with pytest.raises(UsageError, match="via: direct"):
        source.load()


def test_a_config_knows_the_words_of_krelay_rbac_that_select_it(tmp_path: Path) -> None:
    overlay = Overlay(namespace="n", agent_namespace="a", flags=True)
    config = Words(("svc/web", "8080:http"), overlay).load()
    assert config.origin == Origin(("svc/web", "8080:http"), "n", True)
    assert config.agent.namespace == "a"
    direct = Words(("svc/web", "80"), Overlay(via=Via.DIRECT)).load()
    assert direct.origin.words == ("svc/web", "80", "--via", "direct")
    assert Proxy(overlay=Overlay()).load().origin == Origin(("proxy",))
    path = tmp_path / "krelay.yaml"
    path.write_text("apiVersion: krelay/v1\ntargets: {a: svc/a 80, b: svc/b 81}\n")
    assert Selection(str(path)).load().origin.words == ("-f", str(path))
    assert Selection(str(path), ("b",)).load().origin.words == ("-f", str(path), "b")
    text = path.read_bytes()
    assert Selection("/dev/fd/9", text=text).load().origin.words == ("-f", "-")
    assert Lines((("w", "-n x svc/web 80"),)).load().origin == Origin(("svc/web", "80"), "x")
    assert Lines((("a", "svc/a 80"), ("b", "svc/b 81"))).load().origin.words == ()


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
def test_an_invalid_proxy_address_is_a_usage_error(listen: str) -> None:
    with pytest.raises(UsageError):
        Proxy(listen).load()


@pytest.mark.parametrize("listen", ["0.0.0.0:1080", "[::]:0", "10.0.0.1"])
def test_a_proxy_beyond_loopback_requires_a_password(listen: str) -> None:
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
    assert Overlay(listens=("127.0.0.2", "::1")).over(config)
    with pytest.raises(UsageError, match=r"p: `127\.0\.0\.2,0\.0\.0\.0` is open"):
        Overlay(listens=("127.0.0.2", "0.0.0.0")).over(config)
    assert Overlay(listens=("0.0.0.0",), insecure=True).over(config)


def test_a_password_is_not_shown() -> None:
    assert "pw" not in repr(Proxy(credentials=("me", "pw")))


# -- lines -----------------------------------------------------------------------------------------


def problems(*targets: tuple[str, str], embedded: bool = False) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Lines(targets, embedded=embedded).load()
    return caught.value.details()


def test_lines_give_targets_and_settings() -> None:
    lines = Lines((("web", "svc/nginx 8080:80 -n shop"), ("db", "sts/pg :5432")), "c", "n")
    web = Target("web", Kind.SERVICE, "nginx", (Port(80, 8080),), namespace="shop")
    db = Target("db", Kind.STATEFULSET, "pg", (Port(5432, 0),))
    assert lines.load() == Config((web, db), context="c", namespace="n")
    assert lines.file is None
    local = Lines((("a", "ip/127.0.0.1 :1"),), embedded=True).load()
    assert local.agent == AgentConfig(embedded=True)


def test_the_problems_of_all_files_are_reported_at_once_with_their_files() -> None:
    found = problems(("a", "svc/x"), ("b", "nope"), ("c", ""), ("d", "svc/x :80 -n A_B"))
    messages = [line for line in found if not line.startswith("  hint")]
    assert [line.split("`")[1] for line in messages] == ["a", "b", "c", "d"]
    assert "<lines>: `c`: no target" in messages
    assert len(found) == 2 * len(messages)


def test_a_repeated_name_or_address_is_a_problem() -> None:
    assert problems(("a", "svc/x :80"), ("a", "svc/y :80"))[0] == "<lines>: `a`: defined twice"
    assert problems(("a", "svc/x 80"), ("b", "svc/y 80")) == [
        "<lines>: `b`: `127.0.0.1:80/tcp` is taken by `a`",
        "  hint: leave the local port empty (`:80`) for a free one",
    ]


def test_lines_without_targets_are_an_error() -> None:
    assert problems()[0] == "<lines>: no targets"


def test_an_embedded_agent_has_no_cluster() -> None:
    assert "is in a cluster" in problems(("a", "svc/x :80"), embedded=True)[0]


def test_a_text_is_its_own_name() -> None:
    text = "svc/nginx   8080:80\n\n  # no target\nsts/pg :5432  # the database\n"
    assert named([text, "ip/1.2.3.4 :1", " "], {"web": "svc/web :80"}) == (
        ("svc/nginx 8080:80", "svc/nginx 8080:80"),
        ("sts/pg :5432", "sts/pg :5432"),
        ("ip/1.2.3.4 :1", "ip/1.2.3.4 :1"),
        ("web", "svc/web :80"),
    )
