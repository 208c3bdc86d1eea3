from __future__ import annotations

import pytest

from krelay.config.validation import check, node_at
from krelay.config.yaml_reader import Node, read
from krelay.errors import Problem


def problems(text: str) -> list[Problem]:
    root, found = read("apiVersion: krelay/v1\n" + text, {})
    assert isinstance(root, Node)
    assert found == []
    return sorted(check(root)[1])


def one(text: str) -> tuple[str, str | None]:
    (problem,) = problems(text)
    return problem.message, problem.hint


TARGETS = "\ntargets: {web: svc/web 80}\n"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("NameSpace: a", "unknown key `NameSpace`", "did you mean `namespace`?"),
        ("openTimeout: 1", "unknown key `openTimeout`", "`openTimeout` belongs in `tunnel`"),
        (
            "tunnel: {zzz: 1}",
            "unknown key `zzz`",
            "known here: `sessions`, `transport`, `openTimeout`",
        ),
        ("tunnel: {agent: 1}", "unknown key `agent`", "known here:"),
        ("namespace: 1.5", "`namespace` must be text, not the number `1.5`", "in quotes"),
        ("namespace: true", "`namespace` must be text, not `true`", "in quotes"),
        ("namespace: [a]", "`namespace` must be text, not a list", "for example `shop`"),
        ("tunnel: {sessions: }", "`tunnel.sessions` is empty", "for example `4`"),
        ("tunnel: {sessions: {}}", "`tunnel.sessions` must be a whole number, not a mapping", "4"),
        ("tunnel: {transport: ws}", "`tunnel.transport` cannot be `ws`", "it is one of `auto`"),
        ("tunnel: {transport: Spdy}", "`tunnel.transport` cannot be `Spdy`", "mean `spdy`?"),
        ("tunnel: {transport: }", "`tunnel.transport` cannot be empty", "it is one of"),
        (
            "tunnel: {openTimeout: -1}",
            "`tunnel.openTimeout` is out of range: `-1`",
            "at least 0, at most 86400",
        ),
        (
            "tunnel: {connectTimeout: 0}",
            "`tunnel.connectTimeout` is out of range: `0`",
            "more than 0, at most 86400",
        ),
        ("context: ''", "`context` is empty", "for example `staging`"),
        ("agent: {labels: {a: }}", "`agent.labels.a` is empty", None),
        ("agent: {image: a b}", "`agent.image` cannot be `a b`", "no spaces"),
    ],
)
def test_words(text: str, message: str, hint: str | None) -> None:
    found = one(text + TARGETS)
    assert found[0] == message
    assert hint is found[1] if hint is None else hint in str(found[1])


def test_targets() -> None:
    assert one("")[0] == "the file has no `targets`"
    assert one("include: []")[0] == "`include` is empty"
    assert problems("include: [a.yaml]") == []
    assert one("include: [5]" + TARGETS)[0] == "`include[0]` must be text, not the number `5`"
    assert one("targets: {}") == (
        "`targets` is empty",
        'for example `{"web": "svc/nginx 8080:80"}`',
    )
    assert one("targets: {A: svc/a 80}")[0] == "`A` cannot be the name of a target"
    assert one("targets: {a: {target: svc/a}}")[0] == "`targets.a` has no `ports`"
    found = one("targets: {a: {target: svc/a, port: 1, ports: [2]}}")
    assert found[0] == "`targets.a` has both `port` and `ports`"
    text = "targets: {a: {target: svc/a, port: true}}"
    assert "must be a whole number, text or a mapping, not `true`" in one(text)[0]


def test_a_patch_is_here_or_in_a_file() -> None:
    for entry, word in (
        ("{}", "neither `patch` nor"),
        ("{file: a, patch: {}}", "both `patch` and"),
    ):
        found, hint = one(f"agent: {{patches: [{entry}]}}{TARGETS}")
        assert found == f"`agent.patches[0]` has {word} `file`"
        assert hint
    assert one(f"agent: {{patches: [{{file: }}]}}{TARGETS}") == (
        "`agent.patches[0].file` is empty",
        "for example `patch.yaml`",
    )


def test_a_missing_key_is_told_at_the_key_of_its_mapping_or_at_its_item() -> None:
    text = "targets:\n  a:\n    target: svc/a\n    ports:\n    - local: 1\n  b:\n    port: 1\n"
    found = problems(text)
    assert [(p.line, p.column) for p in found] == [(6, 7), (7, 3)]


def test_a_node_is_found_by_its_path() -> None:
    root, _ = read("a: [{b: 5}]", {})
    assert isinstance(root, Node)
    assert node_at(root, ()) is root
    assert node_at(root, ("a", 0, "b")).value == 5
