"""Odd kubeconfigs, and what kubectl 1.34 does with each: whom it reaches, as whom, or its error.

In a text, `@https@` and the other servers of the recorder stand for their ports, `@dir@` for the
folder of the files, `@pki@` for the one of the certificates, `@ca@`, `@cert@`, `@key@` for their
content in base64, and `@NAME.pem@` for the content of one.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.cluster.auth.recorder import PKI, Seen


@dataclass(frozen=True)
class Odd:
    """A kubeconfig and its answers.

    `kubectl` is what the server saw of kubectl, or a pattern of its error. `krelay` is the same for
    krelay where that differs: always for an error, which has other words, and else with the
    reason in `why`. `files` are further files by name; a name that ends in `!` is a program.
    """

    config: str | bytes
    kubectl: Seen | str = field(default_factory=lambda: Seen(authorization="Bearer t"))
    krelay: Seen | str | None = None
    why: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    explicit: bool = False

    def lay_out(self, folder: Path, ports: Mapping[str, int]) -> dict[str, str]:
        """Write the files; return the environment of a client."""
        for name, text in {"config": self.config, **self.files}.items():
            path = folder / name.removesuffix("!")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_fill(text, folder, ports))
            path.chmod(0o755 if name.endswith("!") else 0o600)
        env = {
            "HOME": str(folder),
            "PATH": "/usr/bin:/bin",
            "KUBECONFIG": "@dir@/config",
            **self.env,
        }
        return {name: _fill(value, folder, ports).decode() for name, value in env.items()}

    def expected(self, answer: Seen | str, folder: Path, ports: Mapping[str, int]) -> Seen | str:
        """Return an answer with what stands for ports and certificates replaced."""
        if isinstance(answer, str) or not answer.exec_info:
            return answer
        info = json.loads(_fill(json.dumps(answer.exec_info), folder, ports))
        return replace(answer, exec_info=info)


def _fill(text: str | bytes, folder: Path, ports: Mapping[str, int]) -> bytes:
    if isinstance(text, bytes):
        coding = "utf-16" if text.startswith(b"\xff\xfe") else "latin-1"
        return _fill(text.decode(coding), folder, ports).decode().encode(coding)
    known = {name: str(port) for name, port in ports.items()}
    known |= {"dir": str(folder), "pki": str(PKI)}
    for name, file in (("ca", "ca.pem"), ("cert", "client.pem"), ("key", "client-key.pem")):
        known[name] = base64.b64encode((PKI / file).read_bytes()).decode()
    known["ca folded"] = "\n      ".join(re.findall(".{1,60}", known["ca"]))
    for path in PKI.glob("*.pem"):
        known[path.name] = path.read_text()
        known[f"crlf {path.name}"] = path.read_text().replace("\n", "\r\n")
        known[f"{path.name} as JSON"] = json.dumps(path.read_text())[1:-1]
    return re.sub("@([^@:\n]+)@", lambda found: known.get(found[1], found[0]), text).encode()


def seen(authorization: str = "Bearer t", **changes: Any) -> Seen:
    return Seen(authorization=authorization, **changes)


CA = 'certificate-authority: "@pki@/ca.pem"'


def config(
    user: str = "token: t",
    *,
    server: str = "https://127.0.0.1:@https@",
    cluster: str = CA,
    context: str = "cluster: c, user: u",
    top: str = "",
) -> str:
    """Return a kubeconfig of one context; the arguments are fields in YAML's flow style."""
    return f"""apiVersion: v1
kind: Config
current-context: dev
clusters:
- name: c
  cluster: {{server: "{server}", {cluster}}}
users:
- name: u
  user: {{{user}}}
contexts:
- name: dev
  context: {{{context}}}
{top}"""


def plugin(
    answer: str = '{"token": "plugin"}', version: str = "v1", kind: str = "ExecCredential"
) -> str:
    """Return a program that answers as an exec plugin."""
    api = f"client.authentication.k8s.io/{version}"
    return f"""#!/bin/sh
printf '%s\\n' '{{"apiVersion": "{api}", "kind": "{kind}", "status": {answer}}}'
"""


TELLS = """#!/bin/sh
info=$(printf %s "$KUBERNETES_EXEC_INFO" | base64 | tr -d '\\n')
echo '{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",'
echo '"status": {"token": "info.'"$info"'"}}'
"""
"""A plugin whose token is what it was told of the cluster."""


def exec_user(
    fields: str = "", command: str = "./plugin", version: str = "v1", mode: str = "Never"
) -> str:
    """Return a user with an exec plugin, in flow style."""
    api = f"client.authentication.k8s.io/{version}"
    shown = f", interactiveMode: {mode}" if mode else ""
    return f'exec: {{command: "{command}", apiVersion: {api}{shown}{fields}}}'


BLOCK = """
clusters:
- name: c
  cluster:
    server: https://127.0.0.1:@https@
    certificate-authority-data: @ca@
contexts: [{name: dev, context: {cluster: c, user: u}}]
users: [{name: u, user: {token: t}}]
current-context: dev
"""
PAIR = 'client-certificate: "@pki@/client.pem", client-key: "@pki@/client-key.pem"'
DATA = "client-certificate-data: @cert@, client-key-data: @key@"
SKIP = "insecure-skip-tls-verify: true"
HERE = "the server is on this machine only by chance: krelay asks for one by name"


def table() -> dict[str, Odd]:
    return {
        # Files and their lists.
        "plain": Odd(config()),
        "explicit": Odd(config(), explicit=True),
        "empty": Odd("", "localhost:8080 was refused", "no kubeconfig", HERE),
        "comments only": Odd(
            "# nothing\n---\n", "localhost:8080 was refused", "no kubeconfig", HERE
        ),
        "null": Odd("null\n", "localhost:8080 was refused", "no kubeconfig", HERE),
        "missing": Odd(
            "",
            "localhost:8080 was refused",
            "no kubeconfig",
            HERE,
            env={"KUBECONFIG": "@dir@/none"},
        ),
        "explicit and missing": Odd(
            "", "no such file", "no kubeconfig at", explicit=True, env={"KUBECONFIG": "@dir@/none"}
        ),
        "list of nothing": Odd(
            config(),
            "localhost:8080 was refused",
            "no kubeconfig",
            HERE,
            env={"KUBECONFIG": "::"},
            files={".kube/config": config()},
        ),
        "list with holes": Odd(
            config(),
            env={"KUBECONFIG": "@dir@/none::@dir@/empty:@dir@/config:@dir@/config:"},
            files={"empty": ""},
        ),
        "explicit path is no list": Odd(
            config(),
            "no such file",
            "no kubeconfig at",
            explicit=True,
            env={"KUBECONFIG": "@dir@/config:@dir@/config"},
        ),
        "first file of a list wins": Odd(
            config("token: second").replace("current-context: dev", "current-context: other"),
            seen("Bearer first"),
            files={"first": "current-context: dev\nusers:\n- name: u\n  user: {token: first}\n"},
            env={"KUBECONFIG": "@dir@/first:@dir@/config"},
        ),
        "whole entries win": Odd(
            config(),
            "Please enter Username",
            Seen(),
            "krelay asks for no user name: it goes on as anonymous, as client-go's other users do",
            files={"first": "users:\n- name: u\n  user: {}\n"},
            env={"KUBECONFIG": "@dir@/first:@dir@/config"},
        ),
        "one bad file of a list": Odd(
            config(),
            "error loading config file .*bad",
            "bad is not a kubeconfig",
            files={"bad": "clusters: [\n"},
            env={"KUBECONFIG": "@dir@/config:@dir@/bad"},
        ),
        "relative paths": Odd(
            config(cluster="certificate-authority: sub/ca.pem", user="tokenFile: ./t"),
            seen("Bearer from-file"),
            files={"sub/ca.pem": "@ca.pem@", "t": "from-file\n"},
        ),
        "relative paths of each file": Odd(
            config(cluster="certificate-authority: sub/ca.pem", context="cluster: c, user: v"),
            seen("Bearer far"),
            files={
                "sub/ca.pem": "@ca.pem@",
                "far/users": "users: [{name: v, user: {tokenFile: t}}]",
                "far/t": "far",
            },
            env={"KUBECONFIG": "@dir@/config:@dir@/far/users"},
        ),
        "home": Odd("", files={".kube/config": config()}, env={"KUBECONFIG": ""}),
        "tilde": Odd(
            config(),
            "localhost:8080 was refused",
            "no kubeconfig",
            HERE,
            env={"KUBECONFIG": "~/config"},
        ),
        "directory": Odd("", "is a directory", "Is a directory", env={"KUBECONFIG": "@dir@"}),
        "of another kind": Odd(
            config().replace("kind: Config", "kind: ConfigMap"), 'no kind "ConfigMap"', "kind"
        ),
        "of another version": Odd(
            config().replace("apiVersion: v1", "apiVersion: v2"), 'no kind "Config"', "apiVersion"
        ),
        "without kind and version": Odd(config().removeprefix("apiVersion: v1\nkind: Config\n")),
        "null kind and version": Odd(
            config().replace("apiVersion: v1", "apiVersion: null").replace("Config", "~")
        ),
        # Their text.
        "byte order mark": Odd("\ufeff" + config()),
        "UTF-16": Odd(config().encode("utf-16")),
        "CRLF": Odd(config().replace("\n", "\r\n")),
        "latin-1": Odd(
            config("token: t, username: ''").encode() + b"# \xe9\n", "yaml: ", "not YAML"
        ),
        "JSON with tabs": Odd(
            '{\n\t"current-context": "dev",\n\t"contexts": [\n\t\t'
            '{"name":"dev","context":{"cluster":"c","user":"u"}}],\n'
            '\t"clusters":[{"name":"c","cluster":{\n\t\t"server":"https://127.0.0.1:@https@",\n'
            '\t\t"certificate-authority":\t"@pki@/ca.pem"}}],\n'
            '\t"users":[{"name":"u","user":{"token":"t"}}]}\n'
        ),
        "block with tabs": Odd(
            "users:\n\t- name: u\n", "cannot start any token", "not YAML at line 2"
        ),
        "two documents": Odd(config() + "---\ncurrent-context: other\n"),
        "broken second document": Odd(config() + "---\n{[\n"),
        "empty first document": Odd(
            "---\n---\n" + config(), "localhost:8080 was refused", "no kubeconfig", HERE
        ),
        "directives": Odd("%YAML 1.1\n---\n" + config() + "...\n"),
        "anchors and merge keys": Odd(
            config("<<: *me").replace("clusters:", "x: &me {token: t}\nclusters:", 1)
        ),
        "merge after a field": Odd(
            config("token: mine, <<: *me").replace("clusters:", "x: &me {token: t}\nclusters:", 1)
        ),
        "merge before a field": Odd(
            config("<<: *me, token: t").replace("clusters:", "x: &me {token: theirs}\nclusters:", 1)
        ),
        "merge of a list": Odd(
            config("<<: [*a, *b]").replace(
                "clusters:", "x: &a {token: t}\ny: &b {token: b, as: x}\nclusters:", 1
            ),
            seen(impersonate=(("impersonate-user", "x"),)),
        ),
        "alias of itself": Odd("x: &x [*x]\n" + config(), "contains itself", "not YAML"),
        "unknown tags": Odd(config("token: !secret t").replace("clusters:", "clusters: !list", 1)),
        "tag of text": Odd(config("token: !!str 12"), seen("Bearer 12")),
        "tag of bytes": Odd(config("token: !!binary dA==")),
        "wrong tag": Odd(config("token: !!int x"), "cannot decode", "not YAML"),
        "duplicate key": Odd(config("token: a, token: t")),
        "nested deep": Odd("x: " + "[" * 11_000, "exceeded max depth", "nested too deep|not YAML"),
        "literal data": Odd(BLOCK.replace("@ca@", "|\n      @ca folded@")),
        "folded data": Odd(
            BLOCK.replace("@ca@", ">\n      @ca folded@"), "illegal base64", "base64"
        ),
        "number sign in a word": Odd(config("token: t#x"), seen("Bearer t#x")),
        "surrogate pair": Odd(
            config(top='x: "\\uD83D\\uDE00"\n'), "invalid Unicode character", "not YAML"
        ),
        "control character": Odd("# \x01\n" + config(), "control characters", "not YAML"),
        # The types of fields.
        "null lists": Odd(config(top="preferences: null\nextensions: null\n")),
        "null entries": Odd(
            config()
            .replace("users:\n", "users:\n- null\n")
            .replace("contexts:\n", "contexts:\n-\n")
        ),
        "two null entries": Odd(
            config().replace("users:\n", "users: \n- null\n- null\n"), "duplicate name", "twice"
        ),
        "null bodies": Odd(config().replace("users:\n", "users:\n- name: x\n  user:\n- name: z\n")),
        "duplicate name": Odd(
            config().replace("users:\n", "users:\n- name: u\n  user: {token: a}\n"),
            "duplicate name",
            "twice",
        ),
        "duplicate name of another kind": Odd(
            config().replace("users:\n", "users:\n- name: c\n  user: {token: a}\n")
        ),
        "number as a name": Odd(
            config().replace("name: u", "name: 12"), "cannot unmarshal number", "expected a text"
        ),
        "date as a name": Odd(
            config(context="cluster: c, user: 2024-01-02").replace("name: u", "name: 2024-01-02")
        ),
        "time as a name": Odd(
            config(context="cluster: c, user: 12:30:45").replace("name: u", "name: 12:30:45")
        ),
        "y as a name": Odd(
            config().replace("name: u", "name: y"), "cannot unmarshal bool", "expected a text"
        ),
        "exponent as a token": Odd(
            config("token: 1e3"), "cannot unmarshal number", "expected a text"
        ),
        "octal as a token": Odd(config("token: 007"), "cannot unmarshal number", "expected a text"),
        "version as a token": Odd(config("token: 1.2.3"), seen("Bearer 1.2.3")),
        "boolean as text": Odd(
            config(cluster='insecure-skip-tls-verify: "true"'),
            "cannot unmarshal string",
            "expected true or false",
        ),
        "boolean as yes": Odd(config(cluster="insecure-skip-tls-verify: yes")),
        "wrong type in an unused entry": Odd(
            config().replace("users:\n", "users:\n- name: x\n  user: {token: [a]}\n"),
            "cannot unmarshal array",
            "expected a text",
        ),
        "bad base64 in an unused entry": Odd(
            config().replace("users:\n", "users:\n- name: x\n  user: {client-key-data: '???'}\n"),
            "illegal base64",
            "base64",
        ),
        "field of another case": Odd(
            config("Token: t"),
            "Please enter Username",
            Seen(),
            "krelay asks for no user name",
        ),
        "unknown fields": Odd(config("token: t, color: [1]", top="colors: 5\n")),
        "preferences of a wrong type": Odd(
            config(top="preferences: [1]\n"), "cannot unmarshal", "preferences"
        ),
        "extensions": Odd(
            config(
                cluster=f"{CA}, extensions: [{{name: minikube.sigs.k8s.io, extension: "
                "{last-update: 2024-01-02, provider: !x 5}}, {name: m, extension: ~}, {name: s}]",
                top="extensions: [{name: a, extension: null}]\n",
            )
        ),
        "extension that is a text": Odd(
            config(cluster=f"{CA}, extensions: [{{name: a, extension: x}}]"),
        ),
        "extension twice": Odd(
            config(cluster=f"{CA}, extensions: [{{name: a, extension: {{}}}}, {{name: a}}]"),
            "duplicate name",
            "twice",
        ),
        # Contexts.
        "no current context": Odd(
            config().replace("current-context: dev\n", ""),
            "localhost:8080 was refused",
            "no current-context",
            HERE,
        ),
        "current context unknown": Odd(
            config().replace("current-context: dev", "current-context: x"),
            "context was not found",
            'no context "x"',
        ),
        "context without a user": Odd(
            config(context="cluster: c"),
            "Please enter Username",
            Seen(),
            "krelay asks for no user name",
        ),
        "context of an unknown user": Odd(
            config(context="cluster: c, user: x"),
            "Please enter Username",
            'no user "x"',
            "kubectl asks for a user name: the user is missing",
        ),
        "context without a cluster": Odd(
            config(context="user: u"), "localhost:8080 was refused", "has no server", HERE
        ),
        "context of an unknown cluster": Odd(
            config(context="cluster: x, user: u"),
            "localhost:8080 was refused",
            'no cluster "x"',
            HERE,
        ),
        "KUBERNETES_MASTER": Odd(
            config(context="user: u"),
            Seen(scheme="http"),
            env={"KUBERNETES_MASTER": "http://127.0.0.1:@http@"},
        ),
        # The server.
        "http": Odd(config(server="http://127.0.0.1:@http@", cluster=""), Seen(scheme="http")),
        "path": Odd(
            config(server="https://127.0.0.1:@https@/k8s/c-1"), seen(path="/k8s/c-1/version")
        ),
        "path with a slash": Odd(
            config(server="https://127.0.0.1:@https@/k8s/"), seen(path="/k8s/version")
        ),
        "root with a slash": Odd(config(server="https://127.0.0.1:@https@/")),
        "two slashes": Odd(
            config(server="https://127.0.0.1:@https@//a//b//"), seen(path="/a/b/version")
        ),
        "dots in the path": Odd(
            config(server="https://127.0.0.1:@https@/a/../b/./"), seen(path="/b/version")
        ),
        "escapes in the path": Odd(
            config(server="https://127.0.0.1:@https@/a%20b%2Fc"), seen(path="/a%20b/c/version")
        ),
        "query and fragment": Odd(config(server="https://127.0.0.1:@https@/?a=b#c")),
        "path and query": Odd(
            config(server="https://127.0.0.1:@https@/p?a=b#c"), seen(path="/p/version")
        ),
        "upper case": Odd(config(server="HTTPS://127.0.0.1:@https@")),
        "name": Odd(
            config(server="https://localhost:@https@"), seen(host="localhost", sni="localhost")
        ),
        "trailing dot": Odd(
            config(server="https://kube.test.:@https@"),
            seen(host="kube.test.", sni="kube.test", via=("proxy",)),
            seen(host="kube.test", sni="kube.test", via=("proxy",)),
            "aiohttp leaves out the dot in the Host header, as browsers do",
            env={"HTTPS_PROXY": "http://127.0.0.1:@proxy@"},
        ),
        "tls-server-name": Odd(
            config(cluster=f"{CA}, tls-server-name: kube.test"),
            seen(sni="kube.test"),
        ),
        "tls-server-name with a dot": Odd(
            config(cluster=f"{CA}, tls-server-name: kube.test."),
            seen(sni="kube.test"),
        ),
        "wrong tls-server-name": Odd(
            config(cluster=f"{CA}, tls-server-name: other.test"),
            "certificate is valid for",
            "not trusted",
        ),
        "IPv6": Odd(config(server="https://[::1]:@https6@", cluster=SKIP), seen(host="[::1]")),
        "without a scheme": Odd(config(server="127.0.0.1:@http@", cluster=""), Seen(scheme="http")),
        "without a scheme but with an authority": Odd(
            config(server="127.0.0.1:@http@"), Seen(scheme="http")
        ),
        "name without a scheme": Odd(
            config(server="localhost:@http@", cluster=""), Seen(scheme="http", host="localhost")
        ),
        "without a scheme but with a path": Odd(
            config(server="127.0.0.1:@http@/x", cluster=""),
            "host must be a URL or a host:port pair",
            "not the URL",
        ),
        "another scheme": Odd(
            config(server="ftp://127.0.0.1:@http@"), "unsupported protocol scheme", "not the URL"
        ),
        "space before": Odd(
            config(server=" https://127.0.0.1:@https@"), "invalid character", "not the URL"
        ),
        "empty port": Odd(
            config(server="https://127.0.0.1:"),
            "127.0.0.1(:443)? was refused",
            "connection refused",
        ),
        "port out of range": Odd(
            config(server="https://127.0.0.1:99999"), "invalid port", "not the URL"
        ),
        "port 0": Odd(config(server="https://127.0.0.1:0"), "was refused|0", "not the URL"),
        "user in the URL": Odd(
            config("", server="https://me:p%40ss@127.0.0.1:@https@"),
            "Please enter Username",
            seen("Basic bWU6cEBzcw=="),
            "kubectl asks for a user name although it has one",
        ),
        "user in the URL and a token": Odd(
            config(server="https://me:p%40ss@127.0.0.1:@https@"), seen("Basic bWU6cEBzcw==")
        ),
        "user in the URL and a plugin": Odd(
            config(exec_user(), server="https://me:pw@127.0.0.1:@https@"),
            seen("Basic bWU6cHc="),
            files={"plugin!": plugin()},
        ),
        "user without a password in the URL": Odd(
            config(server="https://me@127.0.0.1:@https@"), seen("Basic bWU6")
        ),
        "user in a URL without TLS": Odd(
            config("", server="http://me:pw@127.0.0.1:@http@", cluster=""),
            Seen(scheme="http", authorization="Basic bWU6cHc="),
            Seen(scheme="http"),
            "krelay sends no password without TLS",
        ),
        "space in the path": Odd(
            config(server="https://127.0.0.1:@https@/a b"), seen(path="/a%20b/version")
        ),
        "bad escape in the path": Odd(
            config(server="https://127.0.0.1:@https@/%zz"), "invalid URL escape", "not the URL"
        ),
        "name in place of the address": Odd(
            config(server="https://localhost:@https@", cluster=f"{CA}, tls-server-name: 127.0.0.1"),
            seen(host="localhost"),
        ),
        # Trust.
        "data": Odd(config(cluster="certificate-authority-data: @ca@")),
        "data and file": Odd(
            config(
                cluster='certificate-authority-data: @ca@, certificate-authority: "@pki@/ca.pem"'
            ),
            "both specified",
            "both",
        ),
        "empty data and a file": Odd(
            config(cluster='certificate-authority-data: "", certificate-authority: "@pki@/ca.pem"')
        ),
        "data and an empty file": Odd(
            config(cluster='certificate-authority-data: @ca@, certificate-authority: ""')
        ),
        "insecure": Odd(config(cluster=SKIP)),
        "insecure with an authority": Odd(
            config(cluster=f'{SKIP}, certificate-authority: "@pki@/ca.pem"'),
            "root certificates file with the insecure flag",
            "insecure-skip-tls-verify",
        ),
        "insecure with data": Odd(
            config(cluster=f"{SKIP}, certificate-authority-data: @ca@"),
            "root certificates file with the insecure flag",
            "insecure-skip-tls-verify",
        ),
        "data and file over http": Odd(
            config(
                server="http://127.0.0.1:@http@",
                cluster='certificate-authority-data: @ca@, certificate-authority: "@pki@/ca.pem"',
            ),
            "both specified",
            "both",
        ),
        "insecure with an authority over http": Odd(
            config(
                server="http://127.0.0.1:@http@",
                cluster=f'{SKIP}, certificate-authority: "@pki@/ca.pem"',
            ),
            Seen(scheme="http"),
        ),
        "certificate without a key over http": Odd(
            config("client-certificate-data: @cert@", server="http://127.0.0.1:@http@", cluster=""),
            "client-key must be specified",
            "no client-key",
        ),
        "no authority": Odd(
            config(cluster=""), "certificate signed by unknown authority", "not trusted"
        ),
        "missing authority": Odd(
            config(cluster="certificate-authority: none"),
            "unable to read certificate-authority",
            "cannot read",
        ),
        "authority that is empty": Odd(
            config(cluster="certificate-authority: e"),
            "signed by unknown authority",
            "not trusted",
            files={"e": ""},
        ),
        "authority that is none": Odd(
            config(cluster="certificate-authority: e"),
            "unable to (parse|load)",
            "bad certificate-authority",
            files={"e": "none"},
        ),
        "bundle with comments": Odd(
            config(cluster="certificate-authority: e"),
            files={"e": "# mine\nsubject=CN=x\n@other-ca.pem@\n\n   text\n@ca.pem@trailing"},
        ),
        "bundle in CRLF": Odd(
            config(cluster="certificate-authority: e"), files={"e": "@crlf ca.pem@"}
        ),
        "bundle with a broken certificate": Odd(
            config(cluster="certificate-authority: e"),
            files={
                "e": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n@ca.pem@",
            },
        ),
        "bundle with a key": Odd(
            config(cluster="certificate-authority: e"), files={"e": "@client-key.pem@@ca.pem@"}
        ),
        "bundle of two with one subject": Odd(
            config(cluster="certificate-authority: e"),
            files={"e": "@twin-ca.pem@@other-ca.pem@@ca.pem@"},
        ),
        "bundle of two with one subject that signed nothing": Odd(
            config(cluster="certificate-authority: e"),
            "certificate signed by unknown authority|ECDSA verification failure",
            "not trusted",
            files={"e": "@twin-ca.pem@@twin-ca.pem@"},
        ),
        # The user.
        "certificate": Odd(config(PAIR), Seen(certificate="dev")),
        "certificate as data": Odd(config(DATA), Seen(certificate="dev")),
        "certificate as data and file": Odd(config(f"{PAIR}, {DATA}"), "both specified", "both"),
        "certificate as data, key as file": Odd(
            config('client-certificate-data: @cert@, client-key: "@pki@/client-key.pem"'),
            Seen(certificate="dev"),
        ),
        "certificate without a key": Odd(
            config("client-certificate-data: @cert@"),
            "client-key must be specified",
            "no client-key",
        ),
        "key without a certificate": Odd(config("client-key-data: @key@, token: t")),
        "missing key": Odd(
            config("client-certificate-data: @cert@, client-key: none"),
            "unable to read client-key",
            "cannot read",
        ),
        "key of another certificate": Odd(
            config('client-certificate-data: @cert@, client-key: "@pki@/server-key.pem"'),
            "private key does not match",
            "bad client certificate or key",
        ),
        "key with a passphrase": Odd(
            config('client-certificate-data: @cert@, client-key: "@pki@/client-locked-key.pem"'),
            "failed to (parse|find)|tls:",
            "encrypted",
        ),
        "certificate and key in one file": Odd(
            config("client-certificate: both, client-key: both"),
            Seen(certificate="dev"),
            files={"both": "@client-key.pem@@client.pem@"},
        ),
        "certificate file with another key": Odd(
            config('client-certificate: both, client-key: "@pki@/client-key.pem"'),
            Seen(certificate="dev"),
            files={"both": "@server-key.pem@@client.pem@"},
        ),
        "certificate with text around": Odd(
            config("client-certificate: c, client-key: k"),
            Seen(certificate="dev"),
            files={
                "c": "Bag Attributes\n  x: y\n@crlf client.pem@",
                "k": "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n"
                "-----END EC PARAMETERS-----\n@client-key.pem@",
            },
        ),
        "certificate and token": Odd(config(f"{DATA}, token: t"), seen(certificate="dev")),
        "certificate over http": Odd(
            config(f"{DATA}, token: t", server="http://127.0.0.1:@http@", cluster=""),
            Seen(scheme="http"),
        ),
        "token with a line end": Odd(
            config('token: "t\\n"'), "invalid header field value", "invalid characters"
        ),
        "token with a space": Odd(
            config('token: " t"'),
            seen("Bearer  t"),
            "invalid characters",
            "a token has no spaces (RFC 6750): something else was pasted",
        ),
        "empty token": Odd(config('token: "", username: me, password: pw'), seen("Basic bWU6cHc=")),
        "token and basic": Odd(
            config("token: t, username: me, password: pw"),
            "more than one authentication method",
            "more than one",
        ),
        "token file and basic": Odd(
            config("tokenFile: t, username: me, password: pw"),
            "may be set, but not both",
            "more than one",
            files={"t": "t"},
        ),
        "token file": Odd(config("tokenFile: t"), files={"t": "  t \n"}),
        "token file beats token": Odd(config("tokenFile: t, token: old"), files={"t": "t"}),
        "token if its file is missing": Odd(config("tokenFile: none, token: t")),
        "token if its file is empty": Odd(config("tokenFile: e, token: t"), files={"e": " \n"}),
        "missing token file": Odd(config("tokenFile: none"), "no such file", "cannot read"),
        "empty token file": Odd(
            config("tokenFile: e"), "Please enter Username", "is empty", files={"e": ""}
        ),
        "basic": Odd(config("username: me, password: 'p:w'"), seen("Basic bWU6cDp3")),
        "user name alone": Odd(config("username: me"), seen("Basic bWU6")),
        "password alone": Odd(
            config("password: pw"), "Please enter Username", Seen(), "krelay asks for no user name"
        ),
        "token and an unused plugin": Odd(
            config("token: t, " + exec_user()), files={"plugin!": plugin("null")}
        ),
        "impersonation": Odd(
            config(
                "token: t, as: jane, as-uid: '7', as-groups: [b, a],"
                " as-user-extra: {scopes: [r, s], Acme/P: [z]}"
            ),
            seen(
                impersonate=(
                    ("impersonate-extra-acme/p", "z"),
                    ("impersonate-extra-scopes", "r"),
                    ("impersonate-extra-scopes", "s"),
                    ("impersonate-group", "a"),
                    ("impersonate-group", "b"),
                    ("impersonate-uid", "7"),
                    ("impersonate-user", "jane"),
                )
            ),
        ),
        "impersonation over http": Odd(
            config("token: t, as: jane", server="http://127.0.0.1:@http@", cluster=""),
            Seen(scheme="http", impersonate=(("impersonate-user", "jane"),)),
        ),
        "impersonation of odd names": Odd(
            config("token: t, as: jürgen, as-user-extra: {'a b%c/d': [é], k: null, l: [null]}"),
            seen(
                impersonate=(
                    ("impersonate-extra-a b%c/d", "é"),
                    ("impersonate-extra-l", ""),
                    ("impersonate-user", "jürgen"),
                )
            ),
        ),
        "impersonation with a line end": Odd(
            config('token: t, as: "a\\nb"'), "invalid header field value", "a header cannot carry"
        ),
        "groups without a user": Odd(
            config("token: t, as-groups: [a]"), "without impersonating a user", "need `as`"
        ),
        "empty groups": Odd(config("token: t, as: '', as-groups: [], as-user-extra: {}")),
        "null group": Odd(
            config("token: t, as: a, as-groups: [null]"),
            seen(impersonate=(("impersonate-group", ""), ("impersonate-user", "a"))),
        ),
        # Exec plugins.
        "plugin": Odd(config(exec_user()), seen("Bearer plugin"), files={"plugin!": plugin()}),
        "plugin with nulls": Odd(
            config(
                exec_user(
                    ", args: null, env: null, installHint: null, provideClusterInfo: null",
                    version="v1beta1",
                    mode="",
                )
            ),
            seen("Bearer plugin"),
            files={"plugin!": plugin(version="v1beta1")},
        ),
        "plugin with arguments": Odd(
            config(
                exec_user(
                    ", args: [null, a b, '$HOME'],"
                    " env: [{name: A, value: x}, {name: A, value: z}, {name: B}]"
                )
            ),
            seen("Bearer 3.-a_b-$HOME-z-"),
            files={
                "plugin!": """#!/bin/sh
words=$(echo "$1-$2-$3-$A-$B" | tr " " _)
exec cat <<END
{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
"status": {"token": "$#.$words"}}
END
"""
            },
        ),
        "plugin of v1 without a mode": Odd(
            config(exec_user(mode="")),
            "interactiveMode must be specified",
            "interactiveMode",
            files={"plugin!": plugin()},
        ),
        "plugin of v1alpha1": Odd(
            config(exec_user(version="v1alpha1")),
            "invalid apiVersion",
            "apiVersion",
            files={"plugin!": plugin(version="v1alpha1")},
        ),
        "plugin without a version": Odd(
            config("exec: {command: ./plugin, interactiveMode: Never}"),
            "apiVersion must be specified",
            "apiVersion",
        ),
        "plugin with a wrong mode": Odd(
            config(exec_user(mode="Sometimes")), "invalid interactiveMode", "Sometimes"
        ),
        "plugin that always asks": Odd(
            config(exec_user(mode="Always")),
            "standard input is not a terminal",
            "not a terminal",
            files={"plugin!": plugin()},
        ),
        "plugin of the path": Odd(
            config(exec_user(command="plugin")),
            seen("Bearer plugin"),
            files={"plugin!": plugin()},
            env={"PATH": "@dir@:/usr/bin:/bin"},
        ),
        "missing plugin": Odd(
            config(exec_user(command="no-plugin")), "executable no-plugin not found", "cannot run"
        ),
        "failing plugin": Odd(
            config(exec_user()),
            "failed with exit code 3",
            "failed with status 3",
            files={"plugin!": "#!/bin/sh\nexit 3\n"},
        ),
        "plugin that answers in another version": Odd(
            config(exec_user()),
            "returned version",
            "answered in",
            files={"plugin!": plugin(version="v1beta1")},
        ),
        "plugin that answers another kind": Odd(
            config(exec_user()),
            "no kind|decoding stdout",
            "kind",
            files={"plugin!": plugin(kind="Token")},
        ),
        "plugin that answers in YAML": Odd(
            config(exec_user()),
            seen("Bearer plugin"),
            files={
                "plugin!": """#!/bin/sh
echo 'apiVersion: client.authentication.k8s.io/v1'
echo 'kind: ExecCredential'
echo 'status: {token: plugin}'
"""
            },
        ),
        "plugin without a status": Odd(
            config(exec_user()),
            "didn't return a status",
            "status",
            files={"plugin!": plugin("null")},
        ),
        "plugin with an empty status": Odd(
            config(exec_user()),
            "didn't return a token",
            "neither a token",
            files={"plugin!": plugin("{}")},
        ),
        "plugin with half a pair": Odd(
            config(exec_user()),
            "only certificate or key",
            "neither a token",
            files={"plugin!": plugin('{"token": "x", "clientKeyData": "x"}')},
        ),
        "plugin with a certificate": Odd(
            config(exec_user()),
            Seen(certificate="dev"),
            files={
                "plugin!": plugin(
                    '{"clientCertificateData": "@client.pem as JSON@",'
                    ' "clientKeyData": "@client-key.pem as JSON@"}'
                )
            },
        ),
        "certificate beside a plugin": Odd(
            config(f"{DATA}, {exec_user()}"), Seen(certificate="dev"), files={"plugin!": plugin()}
        ),
        "basic beside a plugin": Odd(
            config(f"username: me, password: pw, {exec_user()}"),
            seen("Basic bWU6cHc="),
            files={"plugin!": plugin()},
        ),
        "plugin that gets no cluster": Odd(
            config(exec_user()),
            seen("Bearer info", exec_info={"interactive": False}),
            files={"plugin!": TELLS},
        ),
        "plugin that gets the cluster": Odd(
            config(
                exec_user(", provideClusterInfo: true"),
                cluster=f"{CA}, tls-server-name: kube.test, disable-compression: true, extensions: "
                "[{name: client.authentication.k8s.io/exec, extension: "
                "{audience: a, m: 1e3, d: 2024-01-02}}]",
                server="https://127.0.0.1:@https@/p/",
            ),
            seen(
                "Bearer info",
                path="/p/version",
                sni="kube.test",
                exec_info={
                    "interactive": False,
                    "cluster": {
                        "server": "https://127.0.0.1:@https@/p/",
                        "tls-server-name": "kube.test",
                        "disable-compression": True,
                        "certificate-authority-data": "@ca@",
                        "config": {"audience": "a", "d": "2024-01-02", "m": 1000},
                    },
                },
            ),
            files={"plugin!": TELLS},
        ),
        "plugin that gets an insecure cluster": Odd(
            config(
                exec_user(", provideClusterInfo: true"),
                cluster=f'{SKIP}, proxy-url: "http://a:b@127.0.0.1:@proxy@"',
            ),
            seen(
                "Bearer info",
                via=("proxy a:b",),
                exec_info={
                    "interactive": False,
                    "cluster": {
                        "server": "https://127.0.0.1:@https@",
                        "insecure-skip-tls-verify": True,
                        "proxy-url": "http://a:b@127.0.0.1:@proxy@",
                        "config": None,
                    },
                },
            ),
            files={"plugin!": TELLS},
        ),
        "plugin over http": Odd(
            config(exec_user(), server="http://127.0.0.1:@http@", cluster=""),
            Seen(scheme="http"),
            files={"plugin!": plugin()},
        ),
        "variable without a name": Odd(
            config(exec_user(", env: [null]")), "env variable name must be specified", "name"
        ),
        "plugin that names no kind": Odd(
            config(exec_user()),
            seen("Bearer plugin"),
            files={"plugin!": plugin().replace('"kind": "ExecCredential", ', "")},
        ),
        "plugin with text before": Odd(
            config(exec_user()),
            "decoding stdout",
            "did not answer with an ExecCredential",
            files={"plugin!": plugin().replace("printf", "echo hello; printf")},
        ),
        "plugin with text after": Odd(
            config(exec_user()),
            "after top-level value",
            "did not answer with an ExecCredential",
            files={"plugin!": plugin() + "echo bye\n"},
        ),
        "plugin with an odd time": Odd(
            config(exec_user()),
            seen("Bearer p"),
            files={
                "plugin!": plugin(
                    '{"token": "p", "expirationTimestamp": "2099-01-02T03:04:05.678+02:00"}'
                )
            },
        ),
        "plugin without a time": Odd(
            config(exec_user()),
            seen("Bearer p"),
            files={"plugin!": plugin('{"token": "p", "expirationTimestamp": null}')},
        ),
        "plugin with a bad time": Odd(
            config(exec_user()),
            "parsing time",
            "expirationTimestamp: expected a time",
            files={"plugin!": plugin('{"token": "p", "expirationTimestamp": "soon"}')},
        ),
        "plugin that is no program": Odd(
            config(exec_user()),
            "permission denied",
            "Permission denied",
            files={"plugin": plugin()},
        ),
        "plugin in a folder with a space": Odd(
            config(exec_user(command="a b/plugin")),
            seen("Bearer plugin"),
            files={"a b/plugin!": plugin()},
        ),
        # Auth providers.
        "removed auth-provider": Odd(
            config("auth-provider: {name: gcp}"),
            "gcp auth plugin has been removed",
            "auth-provider",
        ),
        "unknown auth-provider": Odd(
            config("auth-provider: {name: x}"), "no Auth Provider found", "auth-provider"
        ),
        "null auth-provider": Odd(config("token: t, auth-provider: null, exec: null")),
        "token beside an unknown auth-provider": Odd(
            config("token: t, auth-provider: {name: x}"), "no Auth Provider found", "auth-provider"
        ),
        "auth-provider and plugin": Odd(
            config("auth-provider: {name: oidc}, " + exec_user()),
            "cannot be provided in combination",
            "auth-provider",
        ),
        # Proxies.
        "http proxy": Odd(
            config(cluster=f'{CA}, proxy-url: "http://me:p%40s@127.0.0.1:@proxy@"'),
            seen(via=("proxy me:p@s",)),
        ),
        "https proxy": Odd(
            config(cluster=f'{CA}, proxy-url: "https://127.0.0.1:@tlsproxy@"'),
            seen(via=("tlsproxy",)),
        ),
        "https proxy to a server of another name": Odd(
            config(
                server="https://other.localhost:@https@",
                cluster=f'{CA}, proxy-url: "https://127.0.0.1:@tlsproxy@"',
            ),
            "certificate is valid for",
            "not trusted",
        ),
        "socks5 proxy": Odd(
            config(cluster=f'{CA}, proxy-url: "socks5://me:pw@127.0.0.1:@socks@"'),
            seen(via=("socks me:pw",)),
        ),
        "http server by a proxy": Odd(
            config(server="http://kube.test", cluster='proxy-url: "http://127.0.0.1:@proxy@"'),
            Seen(scheme="http", host="kube.test", via=("proxy",)),
        ),
        "socks5h proxy": Odd(
            config(cluster=f'{CA}, proxy-url: "socks5h://127.0.0.1:@socks@"'),
            "unsupported scheme",
            "proxy-url",
        ),
        "proxy without a scheme": Odd(
            config(cluster=f'{CA}, proxy-url: "127.0.0.1:@proxy@"'),
            "could not parse|unsupported scheme",
            "proxy-url",
        ),
        "proxy in upper case": Odd(
            config(cluster=f'{CA}, proxy-url: "HTTP://127.0.0.1:@proxy@"'),
            seen(via=("proxy",)),
        ),
        "proxy beats the environment": Odd(
            config(cluster=f'{CA}, proxy-url: "http://me@127.0.0.1:@proxy@"'),
            seen(via=("proxy me:",)),
            env={"HTTPS_PROXY": "http://127.0.0.1:1", "NO_PROXY": "*"},
        ),
        "socks4 proxy": Odd(
            config(cluster=f'{CA}, proxy-url: "socks4://127.0.0.1:1"'),
            "unsupported scheme",
            "proxy-url",
        ),
        "empty proxy": Odd(config(cluster=f'{CA}, proxy-url: ""')),
        "proxy of the environment": Odd(
            config(server="https://kube.test:@https@"),
            seen(host="kube.test", sni="kube.test", via=("proxy",)),
            env={"HTTPS_PROXY": "127.0.0.1:@proxy@"},
        ),
    }
