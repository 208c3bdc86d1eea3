from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from krelay.cluster.auth.files import read_pem
from krelay.cluster.auth.kubeconfig import Login, Overrides, load
from krelay.errors import CredentialsError


def write(path: Path, **body: Any) -> str:
    """A kubeconfig from `contexts={name: context}`, `clusters=…`, `users=…`, `current=…`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    out: dict[str, Any] = {"apiVersion": "v1", "kind": "Config"}
    for kind in ("contexts", "clusters", "users"):
        if kind in body:
            out[kind] = [{"name": n, kind[:-1]: entry} for n, entry in body[kind].items()]
    if "current" in body:
        out["current-context"] = body["current"]
    path.write_text(json.dumps(out))
    return str(path)


def listed(*paths: str | Path) -> dict[str, str]:
    return {"KUBECONFIG": os.pathsep.join(map(str, paths))}


ONE = {
    "contexts": {"dev": {"cluster": "c", "user": "u", "namespace": "team"}},
    "clusters": {"c": {"server": "https://dev.test:6443/"}},
    "users": {"u": {"token": "secret"}},
    "current": "dev",
}


def test_the_current_context_is_loaded(tmp_path: Path) -> None:
    login = load(environ=listed(write(tmp_path / "a", **ONE)))
    assert (login.context, login.namespace, login.server) == (
        "dev",
        "team",
        "https://dev.test:6443",
    )
    assert login.user == {"token": "secret"}
    assert "secret" not in repr(login)


def test_a_file_that_kubectl_wrote_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(
        "apiVersion: v1\nkind: Config\npreferences: {}\ncurrent-context: dev # mine\n"
        "clusters:\n- name: c\n  cluster:\n    server: https://dev.test/k8s/clusters/c-1/\n"
        "contexts:\n- context:\n    cluster: c\n  name: dev\n"
        "- context: {cluster: c}\n  name: '12'\n"
        "users: null\n"
    )
    login = load(kubeconfig=str(path), environ={})
    assert login == Login("https://dev.test/k8s/clusters/c-1", "default", login.cluster, {}, "dev")
    assert load("12", str(path), environ={}).context == "12"


def test_the_default_path_is_in_the_home_folder(tmp_path: Path) -> None:
    write(tmp_path / ".kube/config", **ONE)
    assert load(environ={"HOME": str(tmp_path)}).context == "dev"
    assert load(environ={"HOME": str(tmp_path), "KUBECONFIG": ""}).context == "dev"


def test_the_first_current_context_wins(tmp_path: Path) -> None:
    a = write(tmp_path / "a", contexts={"x": {"cluster": "c"}})
    b = write(tmp_path / "b", contexts={"y": {"cluster": "c"}}, current="y")
    c = write(tmp_path / "c", **ONE)
    assert load(environ=listed(a, b, c)).context == "y"


def test_empty_names_are_none(tmp_path: Path) -> None:
    write(tmp_path / ".kube/config", **ONE)
    assert load("", "", environ={"HOME": str(tmp_path)}).context == "dev"


def test_missing_and_empty_files_are_skipped(tmp_path: Path) -> None:
    empty, comment = tmp_path / "empty", tmp_path / "comment"
    empty.write_text("")
    comment.write_text("# nothing\n---\n\n")
    environ = listed(tmp_path / "none", empty, comment, "", write(tmp_path / "a", **ONE))
    assert load(environ=environ).context == "dev"


def test_paths_are_relative_to_their_own_file(tmp_path: Path) -> None:
    a = write(
        tmp_path / "one" / "a",
        contexts={"x": {"cluster": "c", "user": "u"}},
        clusters={"c": {"server": "https://h", "certificate-authority": "ca.pem"}},
        current="x",
    )
    b = write(
        tmp_path / "two" / "b",
        users={
            "u": {
                "client-certificate": "me/cert.pem",
                "client-key": "/abs/key.pem",
                "tokenFile": "../token",
                "exec": {"command": "bin/login", "apiVersion": "v1beta1", "args": ["./x"]},
            }
        },
    )
    login = load(environ=listed(a, b))
    assert login.cluster["certificate-authority"] == str(tmp_path / "one" / "ca.pem")
    assert login.user["client-certificate"] == str(tmp_path / "two" / "me/cert.pem")
    assert login.user["client-key"] == "/abs/key.pem"
    assert Path(login.user["tokenFile"]).resolve() == tmp_path / "token"
    assert login.user["exec"] == {
        "command": str(tmp_path / "two" / "bin/login"),
        "apiVersion": "v1beta1",
        "args": ["./x"],
    }


def test_a_command_without_a_slash_is_looked_up_in_path(tmp_path: Path) -> None:
    user = {"exec": {"command": "aws", "apiVersion": "x"}}
    path = write(tmp_path / "a", **{**ONE, "users": {"u": user}})
    assert load(environ=listed(path)).user["exec"]["command"] == "aws"


def test_files_are_never_written(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a", **ONE))
    before = path.read_bytes(), path.stat().st_mtime_ns
    path.chmod(0o400)
    load(environ=listed(path))
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_an_unreadable_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match=f"cannot read {tmp_path}: Is a directory"):
        load(environ=listed(tmp_path))
    path = write(tmp_path / "a:b", **ONE)
    assert load(kubeconfig=path, environ={}).context == "dev"


names = st.sampled_from(["a", "b", "c"])
files = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "clusters": st.dictionaries(names, st.integers(1, 9)),
            "current": st.sampled_from(["a", "b", "c", ""]),
        },
    ),
    min_size=1,
    max_size=4,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(files=files, context=st.none() | names)
def test_the_first_file_to_name_an_entry_wins(
    tmp_path: Path, files: list[dict[str, Any]], context: str | None
) -> None:
    paths = []
    for number, body in enumerate(files):
        clusters = (
            {n: {"server": f"https://{n}.test:{p}"} for n, p in body["clusters"].items()}
            if ("clusters" in body)
            else {}
        )
        contexts = {n: {"cluster": n} for n in clusters}
        more = {"current": body["current"]} if "current" in body else {}
        paths.append(write(tmp_path / str(number), clusters=clusters, contexts=contexts, **more))
    wanted = context or next((f["current"] for f in files if f.get("current")), None)
    first = next((f["clusters"][wanted] for f in files if wanted in f.get("clusters", {})), None)
    if first is None:
        with pytest.raises(CredentialsError):
            load(context, environ=listed(*paths))
    else:
        login = load(context, environ=listed(*paths))
        assert (login.context, login.server) == (wanted, f"https://{wanted}.test:{first}")


def refused(message: str, hint: str | None = None, **arguments: Any) -> None:
    with pytest.raises(CredentialsError) as caught:
        load(**arguments)
    assert caught.value.message == message
    if hint is not None:
        assert caught.value.hint == hint


def test_an_unknown_context_names_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path / "a", **{**ONE, "contexts": {"dev": {}, "prod": {}}})
    refused(
        'no context "prdo" in kubeconfig',
        'did you mean "prod"? known: dev, prod',
        context="prdo",
        environ=listed(path),
    )
    refused('no context "qqq" in kubeconfig', "known: dev, prod", context="qqq", kubeconfig=path)


def test_an_error_lists_at_most_ten_contexts(tmp_path: Path) -> None:
    path = write(tmp_path / "a", **{**ONE, "contexts": {f"c{n:02}": {} for n in range(14)}})
    with pytest.raises(CredentialsError) as caught:
        load("zzz", path, environ={})
    assert caught.value.hint is not None
    assert caught.value.hint.endswith("c09 and 4 more")


def test_a_missing_current_context_is_an_error_with_a_hint(tmp_path: Path) -> None:
    path = write(tmp_path / "a", **{**ONE, "current": ""})
    refused(
        "kubeconfig has no current-context",
        "name one with --context; known: dev",
        environ=listed(path),
    )


def test_a_context_with_an_unknown_cluster_or_user_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a", **{**ONE, "clusters": {"d": {}}})
    refused('no cluster "c" in kubeconfig, which context "dev" names', "known: d", kubeconfig=path)
    path = write(tmp_path / "a", **{**ONE, "users": {}})
    refused('no user "u" in kubeconfig, which context "dev" names', "known: none", kubeconfig=path)
    path = write(tmp_path / "a", **{**ONE, "clusters": {"c": {}}})
    refused('kubeconfig has no server for context "dev"', kubeconfig=path)


def test_a_missing_kubeconfig_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError) as caught:
        load(environ={"HOME": str(tmp_path)}, service_account=tmp_path)
    assert str(tmp_path / ".kube/config") in caught.value.message
    assert caught.value.hint is not None
    assert "KUBECONFIG" in caught.value.hint
    refused(f"no kubeconfig at {tmp_path / 'none'}", kubeconfig=str(tmp_path / "none"))


@pytest.mark.parametrize(
    "text",
    ["- a\n- b\n", "hello", "clusters: [", "contexts: {a: b}", "\x00"],
)
def test_a_file_that_is_no_kubeconfig_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(
        CredentialsError, match=r"is not a kubeconfig: .|kubeconfig .*(is missing|expected)"
    ) as caught:
        load(kubeconfig=str(path), environ={})
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("token", "line"),
    [
        ("*hunter2", 3),
        ("!!int hunter2", 3),
        ("@hunter2", 3),
        ('"hunter2\\q"', 3),
        ("'hunter2", 4),
        ("{hunter2: , : }]", 3),
        ("hunter2\n   x: y", 4),
        ("hunter2\x01", 0),
    ],
)
def test_an_error_does_not_repeat_a_file_that_is_not_yaml(
    tmp_path: Path, token: str, line: int
) -> None:
    path = tmp_path / "config"
    path.write_text(f"users:\n- name: u\n  token: {token}\n")
    with pytest.raises(CredentialsError, match="is not a kubeconfig: not YAML") as caught:
        load(kubeconfig=str(path), environ={})
    assert f"line {line}," in caught.value.message or not line
    assert "hunter2" not in "".join(caught.value.report())
    assert caught.value.__cause__ is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(data=st.binary(max_size=60))
def test_any_bytes_load_or_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "config"
    path.write_bytes(data)
    with pytest.raises(CredentialsError):
        load(kubeconfig=str(path), environ={})


@pytest.mark.parametrize("server", ["ftp://x", "https://", "https://h:99999", "https://[::1", "//"])
def test_a_server_that_is_not_a_url_is_an_error(tmp_path: Path, server: str) -> None:
    path = write(tmp_path / "a", **{**ONE, "clusters": {"c": {"server": server}}})
    with pytest.raises(CredentialsError, match=r"is not the URL|has no server"):
        load(kubeconfig=path, environ={})


def test_an_override_wins_over_kubeconfig(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a",
        **{
            **ONE,
            "clusters": {
                "c": {
                    "server": "https://dev.test",
                    "tls-server-name": "n",
                    "certificate-authority-data": "eA==",
                },
                "d": {"server": "https://other.test", "tls-server-name": "n"},
            },
            "users": {"u": {"tokenFile": "t"}, "v": {"token": "v", "as": "x"}, "n": {}},
        },
    )

    def of(**flags: Any) -> Login:
        return load(kubeconfig=path, overrides=Overrides(**flags), environ={})

    assert of(cluster="d").server == "https://other.test"
    assert of(user="v").user["token"] == "v"
    assert of(token="t").user == {"token": "t"}
    assert of(as_="y", as_group=("g", "h")).user["as-groups"] == ["g", "h"]
    assert of(as_="y", as_uid="7").user["as-uid"] == "7"
    extra = of(as_="y", as_user_extra=(("k", "v"), ("k", "w"))).user["as-user-extra"]
    assert extra == {"k": ["v", "w"]}
    assert of(user="n", username="n", password="p").user["password"] == "p"
    with pytest.raises(CredentialsError, match="more than one way to log in"):
        of(username="n", password="p")
    own = of(client_certificate="c.pem", client_key="/k.pem").user
    assert own["client-certificate"] == os.path.abspath("c.pem")
    assert own["client-key"] == "/k.pem"
    assert of(server="https://third.test/").server == "https://third.test"
    assert of(server="https://third.test").cluster["tls-server-name"] is None
    assert of(tls_server_name="m").cluster["tls-server-name"] == "m"
    assert of(insecure_skip_tls_verify=True).cluster["insecure-skip-tls-verify"] is True
    ca = of(certificate_authority="ca.pem").cluster
    assert ca["certificate-authority"] == os.path.abspath("ca.pem")
    assert "certificate-authority-data" not in ca
    with pytest.raises(CredentialsError, match='no user "w" in kubeconfig$'):
        of(user="w")


def test_a_server_alone_needs_no_kubeconfig(tmp_path: Path) -> None:
    login = load(overrides=Overrides(server="http://h:8001"), environ={"HOME": str(tmp_path)})
    assert (login.server, login.context, login.namespace) == ("http://h:8001", None, "default")


def test_read_pem_prefers_data_over_a_file(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(b"file")
    data = base64.b64encode(b"data").decode()
    assert read_pem({"ca": str(file), "ca-data": data}, "ca") == b"data"
    assert read_pem({"ca": str(file), "ca-data": ""}, "ca") == b"file"
    assert read_pem({}, "ca") is None
    with pytest.raises(CredentialsError, match="ca-data is not base64"):
        read_pem({"ca-data": "a"}, "ca")
    with pytest.raises(CredentialsError, match=r"ca: cannot read .*: No such file"):
        read_pem({"ca": str(tmp_path / "none")}, "ca")
    with pytest.raises(CredentialsError, match="ca: cannot read a.*: the path contains a NUL"):
        read_pem({"ca": "a\0b"}, "ca")


FIELDS = [
    ("cluster", "server", 5, "expected a text, got a number"),
    (
        "cluster",
        "insecure-skip-tls-verify",
        "false",
        'expected true or false, got the text "false"',
    ),
    ("cluster", "insecure-skip-tls-verify", 0, "expected true or false, got the number 0"),
    ("cluster", "tls-server-name", True, "expected a text, got true"),
    ("cluster", "certificate-authority", ["a"], "expected a text, got a list"),
    ("cluster", "certificate-authority-data", 5, "expected a text, got a number"),
    ("cluster", "proxy-url", {}, "expected a text, got an object"),
    ("user", "token", 12345, "expected a text, got a number"),
    ("user", "tokenFile", False, "expected a text, got false"),
    ("user", "username", 5, "expected a text, got a number"),
    ("user", "password", 5, "expected a text, got a number"),
    ("user", "as-groups", "admins", "expected a list, got a text"),
    ("user", "as-user-extra", {"a": "b"}, "a: expected a list, got a text"),
    ("user", "client-key-data", ["x"], "expected a text, got a list"),
    ("user", "exec", "login", "expected an object, got a text"),
    ("user", "exec", {"args": "x"}, "args: expected a list, got a text"),
    ("user", "exec", {"env": {"A": "b"}}, "env: expected a list, got an object"),
    ("user", "exec", {"env": [{"name": "A", "value": 1}]}, "env[0].value: expected a text"),
    ("user", "exec", {"provideClusterInfo": "true"}, "provideClusterInfo: expected true or false"),
    ("user", "exec", {"interactiveMode": 5}, "interactiveMode: expected a text"),
    ("user", "auth-provider", {"config": {"client-id": 5}}, 'config."client-id": expected a text'),
    ("cluster", "certificate-authority", "a\0", "expected a text without"),
    ("user", "client-certificate", "a\0", "expected a text without"),
    ("user", "client-key", "a\0", "expected a text without"),
    ("user", "tokenFile", "a\0", "expected a text without"),
    ("user", "exec", {"command": "a\0"}, "command: expected a text without"),
    ("user", "exec", {"args": ["a\0"]}, "args[0]: expected a text without"),
    ("user", "exec", {"env": [{"name": "a=b"}]}, 'env[0].name: expected a text without "="'),
    ("user", "exec", {"env": [{"name": "a\0"}]}, "env[0].name: expected a text without"),
    ("user", "exec", {"env": [{"name": "a", "value": "\0"}]}, "env[0].value: expected a text"),
    ("context", "namespace", 5, "expected a text, got a number"),
    ("context", "cluster", [], "expected a text, got a list"),
    ("context", "user", {}, "expected a text, got an object"),
]


@pytest.mark.parametrize(("entry", "field", "value", "message"), FIELDS)
@pytest.mark.parametrize("used", [True, False])
def test_a_field_of_the_wrong_type_is_named(
    tmp_path: Path, entry: str, field: str, value: Any, message: str, used: bool
) -> None:
    """As kubectl, krelay refuses the file even if no context uses the entry."""
    name = {"cluster": "c", "user": "u", "context": "here"}[entry] if used else "other"
    body: dict[str, Any] = {
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": "https://h"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
    }
    entries = [item for item in body[f"{entry}s"] if item["name"] != name]
    body[f"{entry}s"] = [*entries, {"name": name, entry: {field: value}}]
    path = tmp_path / "config"
    path.write_text(json.dumps(body))
    with pytest.raises(CredentialsError) as caught:
        load(kubeconfig=str(path), environ={})
    text = str(caught.value)
    assert text.startswith(f'kubeconfig {path}: {entry} "{name}": {field}')
    assert message in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("current-context: 5", "current-context: expected a text, got a number"),
        ("clusters: 5", "clusters: expected a list, got a number"),
        ("users: [5]", r"users\[0\]: expected an object, got a number"),
        ("contexts: [{name: a, context: 5}]", 'context "a": expected an object, got a number'),
        ("contexts: [{name: [a]}]", r"contexts\[0\]: name: expected a text, got a list"),
    ],
)
def test_a_section_of_the_wrong_type_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(CredentialsError, match=message):
        load(kubeconfig=str(path), environ={})


@pytest.mark.parametrize("server", ["HTTPS://h:1/x/", "hTTp://h:1"])
def test_the_scheme_of_the_server_becomes_lower_case(tmp_path: Path, server: str) -> None:
    login = load(overrides=Overrides(server=server), environ={"HOME": str(tmp_path)})
    assert login.server == server.lower().rstrip("/")


def test_a_password_in_the_servers_url_is_not_shown(tmp_path: Path) -> None:
    flags = Overrides(server="https://me:hunter2@h/x")
    login = load(overrides=flags, environ={"HOME": str(tmp_path)})
    assert login.server == login.address == "https://h/x"
    assert (login.user["username"], login.user["password"]) == ("me", "hunter2")
    assert "hunter2" not in f"{login} {login!r} {login.cluster}"


@pytest.mark.parametrize(
    "server",
    [
        "https://me:hunter2@h:x",
        "ftp://me:hunter2@h",
        "https://[me:hunter2@h",
        "https://me:hunter2\uff20h",
    ],
)
def test_an_error_does_not_repeat_a_bad_url_with_its_password(tmp_path: Path, server: str) -> None:
    with pytest.raises(CredentialsError, match=r"^kubeconfig: the server is not the URL") as caught:
        load(overrides=Overrides(server=server), environ={"HOME": str(tmp_path)})
    assert "hunter2" not in "".join(caught.value.report())


@pytest.mark.process
def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    script = "import sys, krelay.cluster; print('aiohttp' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
