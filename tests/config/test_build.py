from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from krelay.config import load, parse
from krelay.config.build import build
from krelay.config.diff import diff
from krelay.config.files import Files
from krelay.config.validation import check
from krelay.config.yaml_reader import Node, read
from krelay.errors import ConfigError, Problem
from krelay.model import (
    AgentConfig,
    Config,
    Kind,
    Patch,
    Port,
    Protocol,
    StatusConfig,
    Transport,
    TunnelConfig,
)


def built(text: str) -> tuple[Config, list[Any], list[str]]:
    root, problems = read("apiVersion: krelay/v1\n" + text, {})
    assert problems == []
    assert isinstance(root, Node)
    left, _ = check(root)
    assert left is not None
    part = build(left, "x.yaml", Files({}))
    places = [(str(address), address.line, address.column) for address in part.listen_addresses]
    found = [f"{p.line}:{p.column} {p.message}" for p in sorted(part.problems)]
    return part.config, places, found


def config(text: str) -> Config:
    made, _, problems = built(text)
    assert problems == []
    return made


TARGETS = "\ntargets: {web: svc/web 80}\n"


def test_a_file_without_sections_has_the_defaults_of_the_model() -> None:
    for text in ("", "agent:\ntunnel:\ndefaults:\ncontext:\n"):
        made = config(text + TARGETS)
        assert (made.agent, made.tunnel) == (AgentConfig(), TunnelConfig())
        assert (made.context, made.namespace, made.path) == (None, None, "x.yaml")


def test_the_tunnel_section_is_built() -> None:
    text = (
        "tunnel: {sessions: 4.0, transport: spdy, openTimeout: 0, connectTimeout: 1.5, drain: 2m}"
    )
    assert config(text + TARGETS).tunnel == TunnelConfig(4, Transport.SPDY, 0.0, 1.5, 120.0)


def test_the_status_section_is_built() -> None:
    assert config("status:\n" + TARGETS).status == StatusConfig()
    assert config("status: {listen: 9527}" + TARGETS).status == StatusConfig(("127.0.0.1", 9527))
    token = "0123456789abcdef"
    made = config(f"status: {{listen: '[::]:0', token: '{token}'}}" + TARGETS).status
    assert made == StatusConfig(("::", 0), token)
    assert token not in repr(made)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            "0.0.0.0:80",
            "2:19 `0.0.0.0:80` is open to other machines, which requires a `status.token`",
        ),
        ("nowhere:80", "2:19 `nowhere` is not an address to listen on"),
        ("127.0.0.1", "2:19 `127.0.0.1` has no port"),
    ],
)
def test_an_invalid_status_address_is_a_problem(given: str, problem: str) -> None:
    made, _, problems = built(f"status: {{listen: '{given}'}}" + TARGETS)
    assert problems == [problem]


def test_the_agent_section_sets_every_field() -> None:
    made = config(
        """
agent:
  namespace: relays
  image: img
  labels: {a: b}
  annotations: {c: d}
  nodeSelector: {e: f}
  tolerations: [{key: k, operator: Exists}]
  resources: {limits: {cpu: 1, memory: 1.5e3, x: "2"}}
  idleTimeout: 90
  startTimeout: 10m
  embedded: false
  patches:
    - {patch: {spec: {a: null}}}
    - {type: merge, target: job, patch: {}}
    - {type: json, patch: [{op: add, path: /a, value: null}]}
"""
        + TARGETS
    ).agent
    assert made == AgentConfig(
        namespace="relays",
        image="img",
        labels={"a": "b"},
        annotations={"c": "d"},
        node_selector={"e": "f"},
        tolerations=({"key": "k", "operator": "Exists"},),
        resources={"limits": {"cpu": "1", "memory": "1500.0", "x": "2"}},
        idle_timeout=90.0,
        start_timeout=600.0,
        patches=(
            Patch({"spec": {"a": None}}),
            Patch({}, "merge", "job"),
            Patch(({"op": "add", "path": "/a", "value": None},), "json"),
        ),
    )


def test_the_options_apply_to_a_target() -> None:
    made = config(
        """
namespace: file
context: ctx
defaults: {listen: "[::1]"}
targets:
  a: svc/a 1
  b: svc/b 1 -n own -l localhost
  c: {target: svc/c, port: 1, namespace: own, context: other, listen: 127.0.0.1}
  d: {target: svc/d, port: 1, namespace: null, context: ~, listen: }
"""
    )
    assert [(t.namespace, t.context, t.listen) for t in made.targets] == [
        ("file", "ctx", "::1"),
        ("own", "ctx", "localhost"),
        ("own", "other", "127.0.0.1"),
        ("file", "ctx", "::1"),
    ]
    assert [(t.file, t.line, t.column) for t in made.targets] == [
        ("x.yaml", line, 3) for line in (7, 8, 9, 10)
    ]
    own = config("namespace: a\ncontext: b\ndefaults: {namespace: c, context: d}" + TARGETS)
    assert (own.namespace, own.context) == ("a", "b")
    assert (own.targets[0].namespace, own.targets[0].context) == ("c", "d")


def test_ports_come_with_their_places() -> None:
    made, listen_addresses, problems = built(
        """targets:
  a: svc/a 80 81:http
  b:
    target: Deployments.apps/b
    ports:
      - 90
      - 91:9100
      - {remote: 92}
      - {remote: "93", local: 0}
      - {remote: dns, local: 53, protocol: udp}
      - {remote: dns}
  c: {target: ip/::1, port: "94"}
  d: >-
    svc/d 95
"""
    )
    assert problems == []
    assert made.targets[1].kind is Kind.DEPLOYMENT
    assert made.targets[1].ports == (
        Port(90, 90),
        Port(9100, 91),
        Port(92, 92),
        Port(93, 0),
        Port("dns", 53, Protocol.UDP),
        Port("dns"),
    )
    assert listen_addresses == [
        ("127.0.0.1:80/tcp", 3, 12),
        ("127.0.0.1:81/tcp", 3, 15),
        ("127.0.0.1:90/tcp", 7, 9),
        ("127.0.0.1:91/tcp", 8, 9),
        ("127.0.0.1:92/tcp", 9, 9),
        ("127.0.0.1:0/tcp", 10, 9),
        ("127.0.0.1:53/udp", 11, 9),
        ("127.0.0.1:None/tcp", 12, 9),
        ("127.0.0.1:94/tcp", 13, 29),
        ("127.0.0.1:95/tcp", 14, 6),
    ]


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (
            "tunnel: {connectTimeout: 0s, openTimeout: 25h}" + TARGETS,
            [
                "2:26 `0s` is out of range",
                "2:43 `25h` is out of range",
            ],
        ),
        (
            "agent: {patches: [{type: json, patch: {}}, {patch: []}, {}]}" + TARGETS,
            [
                "2:39 a patch of type json is a list",
                "2:52 a list is a patch of type json",
            ],
        ),
        ("defaults: {listen: here}" + TARGETS, ["2:20 `here` is not an address to listen on"]),
        (
            "targets:\n  a: svc/a 0\n  b: 'x/b http'",
            [
                "3:12 port 0 is out of range",
                "4:7 `x` is not a type of target",
            ],
        ),
        ("targets:\n  a: |\n    svc/a 0\n", ["3:6 port 0 is out of range"]),
        (
            "targets: {a: {target: nope/a, ports: [http, 'x:y'], listen: here, namespace: b}}",
            [
                "2:23 `nope` is not a type of target",
                "2:46 the local port `x` is not a number",
                "2:61 `here` is not an address to listen on",
            ],
        ),
        (
            "targets: {a: {target: nope/a, ports: [{remote: http}, {remote: 0x50}]}}",
            [
                "2:23 `nope` is not a type of target",
            ],
        ),
        (
            "targets: {a: {target: ip/1.1.1.1, ports: [http, {remote: http}, {remote: 'a:b'}]}}",
            [
                "2:43 `http` is a port's name, and `ip/` has none",
                "2:58 `http` is a port's name, and `ip/` has none",
                "2:75 `a:b` is neither a port nor a port's name",
            ],
        ),
    ],
)
def test_a_problem_is_reported_at_its_place(text: str, problems: list[str]) -> None:
    assert built(text)[2] == problems


def test_a_value_that_the_schema_rejected_is_reported_once() -> None:
    for text in (
        "targets: {a: {ports: [80]}}",
        "targets: {a: {target: svc/a}}",
        "targets: {a: {target: svc/a, ports: [{local: 1}, 80]}}",
        "targets: 5",
        "targets: {a: 5}",
        "agent: {patches: [{type: json}]}" + TARGETS,
    ):
        assert built(text)[2] == []


def test_proxies_are_targets_of_a_kind_of_their_own() -> None:
    config = parse(
        "apiVersion: krelay/v1\ncontext: c\ndefaults: {listen: '::1'}\n"
        "proxies:\n  one:\n"
        "  two: {port: 0, listen: 127.0.0.1, context: other, username: me, password: '${PW}'}\n",
        "krelay.yaml",
        {"PW": "secret"},
    )
    one, two = config.targets
    assert (one.kind, one.name, one.listen, one.context) == (Kind.PROXY, "one", "::1", "c")
    assert (one.ports[0].local, one.credentials) == (1080, None)
    assert (two.listen, two.context, two.ports[0].local) == ("127.0.0.1", "other", 0)
    assert two.credentials == ("me", "secret")
    assert not one.kind.in_cluster


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("proxies: {p: {username: me}}", 2, "`username` without `password`"),
        ("proxies: {p: {password: pw}}", 2, "`password` without `username`"),
        ("proxies: {p: {port: 70000}}", 2, "out of range"),
        ("proxies: {}", 2, "is empty"),
        ("proxies: {p: {listen: 0.0.0.0}}", 2, "`0.0.0.0` is open to other machines"),
        ("proxies: {p: {listen: '::', insecure: false}}", 2, "`::` is open to other machines"),
        ("defaults: {listen: 10.0.0.1}\nproxies: {p: {}}", 3, "which requires a `username` and a"),
        ("proxies: {p: {username: me, password: 1}}", 2, "must be text, not a number"),
        ("proxies: {p: {}, q: {}}", 2, "is taken by target `p`"),
        ("targets: {p: ip/10.0.0.1 1}\nproxies: {p: {}}", 3, "the name `p` is taken"),
        ("targets: {t: ip/10.0.0.1 1080}\nproxies: {p: {}}", 3, "is taken by target `t`"),
        ("targets: {t: proxy/x 1080}", 2, "is not a type of target"),
    ],
)
def test_an_invalid_proxy_is_a_problem(text: str, line: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"apiVersion: krelay/v1\n{text}\n", "krelay.yaml", {})
    (problem,) = caught.value.problems
    assert problem.line == line
    assert message in problem.message


@pytest.mark.parametrize(
    "entry",
    [
        "{listen: 0.0.0.0, username: me, password: pw}",
        "{listen: 0.0.0.0, insecure: true}",
        "{listen: 127.0.0.9}",
        "{listen: localhost}",
        "{listen: '::1', insecure: false}",
    ],
)
def test_a_protected_proxy_may_listen_beyond_loopback(entry: str) -> None:
    (target,) = parse(f"apiVersion: krelay/v1\nproxies: {{p: {entry}}}\n", "x", {}).targets
    assert target.insecure is ("insecure: true" in entry)


def test_insecure_is_no_change_of_a_proxy() -> None:
    text = "apiVersion: krelay/v1\nproxies: {{p: {{insecure: {}}}}}\n"
    before, after = (parse(text.format(value), "x", {}) for value in ("false", "true"))
    assert not diff(before, after)


# -- patches of the agent --------------------------------------------------------------------------


ENTRY_LINE = 5


def config_of_patches(folder: Path, entry: str) -> Path:
    path = folder / "krelay.yaml"
    path.write_text(
        f"apiVersion: krelay/v1\ntargets: {{a: svc/a 80}}\nagent:\n  patches:\n    - {entry}\n"
    )
    return path


def problems(path: Path) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        load(str(path), environ={})
    assert caught.value.files[0] == str(path)
    return caught.value.problems


OPERATIONS = [{"op": "add", "path": "/spec/x", "value": {"y": None}}]


@pytest.mark.parametrize(
    ("words", "text", "patch"),
    [
        ("", "spec:\n  name: ${NAME}\n", Patch({"spec": {"name": "high"}})),
        ("type: merge, target: job", "{}", Patch({}, "merge", "job")),
        ("type: json", "- {op: add, path: /a}", Patch(({"op": "add", "path": "/a"},), "json")),
        ("type: json", json.dumps(OPERATIONS, indent=2), Patch(tuple(OPERATIONS), "json")),
        ("", json.dumps({"spec": {"a": 1}}, indent="\t"), Patch({"spec": {"a": 1}})),
    ],
)
def test_a_patch_from_a_file(tmp_path: Path, words: str, text: str, patch: Patch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "p").write_text(text)
    path = config_of_patches(tmp_path, f"{{file: 'sub/${{FILE}}', {words}}}")
    made = load(str(path), environ={"NAME": "high", "FILE": "p"})
    assert made.agent.patches == (patch,)
    assert made.files == (str(path), f"{tmp_path}/sub/p")


def test_one_file_may_serve_several_patches(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("metadata: {labels: {a: b}}")
    path = config_of_patches(
        tmp_path, "file: p\n    - {file: ./p, target: job}\n    - {file: p, type: merge}"
    )
    made = load(str(path), environ={})
    assert [patch.target for patch in made.agent.patches] == ["pod", "job", "pod"]
    assert made.files == (str(path), f"{tmp_path}/p", f"{tmp_path}/./p")


@pytest.mark.parametrize(
    ("words", "text", "expected"),
    [
        ("", "spec:\n  a: ]", [(2, 6, "`]` is unexpected")]),
        ("", b"a: b\nc: \xff", [(2, 4, "byte 0xff is not UTF-8")]),
        ("", b"#" * 1024 * 1025, [(0, 0, "the file is larger than 1 MiB")]),
        ("", "# nothing\n", [(1, 1, "the file is empty")]),
        ("", "a: 1\n---\nb: 2\n", [(2, 1, "a second document")]),
        ("", "a:\n  b: x${NO}y", [(2, 7, "the variable `NO` is not set")]),
        ("", "text", [(1, 1, "the file must be a mapping or a list, not the text `text`")]),
        ("", "\n- {op: add, path: /a}", [(2, 1, "a list is a patch of type json")]),
        ("type: json", "\n\na: b", [(3, 1, "a patch of type json is a list")]),
        (
            "type: json",
            "- {op: put, path: a}\n- {value: 1}\n- op: test\n  path: /a\n  values: 1\n",
            [
                (1, 8, "`[0].op` cannot be `put`"),
                (1, 19, "`[0].path` cannot be `a`"),
                (2, 3, "`[1]` has no `op`"),
                (2, 3, "`[1]` has no `path`"),
                (5, 3, "unknown key `values`"),
            ],
        ),
    ],
)
def test_a_problem_of_a_patch_file_has_its_path_and_place(
    tmp_path: Path, words: str, text: str | bytes, expected: list[Any]
) -> None:
    patch = tmp_path / "p.yaml"
    patch.write_bytes(text.encode() if isinstance(text, str) else text)
    found = problems(config_of_patches(tmp_path, f"{{file: p.yaml, {words}}}"))
    assert {problem.path for problem in found} == {str(patch)}
    assert [(p.line, p.column, p.message) for p in found] == expected


@pytest.mark.parametrize("name", ["none.yaml", ".", "~/p.yaml"])
def test_an_unreadable_patch_file_is_a_problem_of_its_entry(tmp_path: Path, name: str) -> None:
    path = config_of_patches(tmp_path, f"{{type: json, file: {name}}}")
    with pytest.raises(ConfigError) as caught:
        load(str(path), environ={})
    (problem,) = caught.value.problems
    assert (problem.path, problem.line, problem.column) == (None, ENTRY_LINE, 26)
    assert problem.message.startswith(f"cannot read '{tmp_path}/")
    assert ("`~`" in str(problem.hint)) == name.startswith("~")
    assert caught.value.files == (str(path), str(tmp_path) + f"/{name}")


def test_a_patch_without_patch_and_file_is_a_problem(tmp_path: Path) -> None:
    (problem,) = problems(config_of_patches(tmp_path, "{type: json}"))
    assert problem.message == "`agent.patches[0]` has neither `patch` nor `file`"


def test_the_number_of_files_is_limited(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("{}")
    path = config_of_patches(tmp_path, "\n    - ".join(["file: p"] * 101))
    found = problems(path)
    assert [(p.line, p.message) for p in found] == [
        (ENTRY_LINE + 99, "more than 100 files"),
        (ENTRY_LINE + 100, "more than 100 files"),
    ]


def test_a_target_may_wait_for_no_ready_pod_and_keep_its_clients(tmp_path: Path) -> None:
    file = tmp_path / "krelay.yaml"
    file.write_text(
        "apiVersion: krelay/v1\n"
        "defaults: {ready: false, affinity: client}\n"
        "targets:\n"
        "  short: svc/a 80\n"
        "  own: {target: svc/b, port: 81, ready: true, affinity: none}\n"
        "  empty: {target: svc/c, port: 82, ready: , affinity: }\n"
    )
    config = load(str(file), environ={})
    assert [(target.ready, str(target.affinity)) for target in config.targets] == [
        (False, "client"),
        (True, "none"),
        (False, "client"),
    ]
