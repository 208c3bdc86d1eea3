"""RBAC: the least Roles that a config needs, for `krelay rbac`. Pure.

docs/rbac.md lists krelay's requests. Objects that krelay watches by name are named in the rules.
Unless the user chooses a name, that of a bound Role tells its subjects and rules apart from all
others, so that applying one set of Roles never takes rights from another user, or for another file.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from krelay.cluster.agent_job import job_manifest
from krelay.cluster.objects import RESOURCES
from krelay.model import Config, Kind, Target, Transport, Via

_API = "rbac.authorization.k8s.io"
_WATCH = ["list", "watch"]

_LONGEST_WORDS = 63
"""Characters of a subject's name in the name of a Role."""

Rule = dict[str, Any]
Subject = Mapping[str, str]

# A WebSocket is a get, a plain upgrade a create; since Kubernetes 1.35 both are a create.
_FORWARD: Rule = {
    "apiGroups": [""],
    "resources": ["pods/portforward"],
    "verbs": ["get", "create"],
}


def roles(
    config: Config,
    namespace_of: Callable[[str | None], str],
    *,
    subjects: Sequence[Subject] = (),
    optional: bool = False,
    name: str | None = None,
) -> dict[str | None, list[dict[str, Any]]]:
    """Return the Roles by context, one for each namespace.

    With `subjects`, a RoleBinding follows each Role. `namespace_of` returns a context's own
    namespace. `name` is the name of Roles and RoleBindings. `optional` adds rights that only make
    tunnels faster or errors clearer.
    """
    found: dict[str | None, dict[str, list[Rule]]] = {}
    for target in config.targets:
        context = target.context or config.context
        own = config.namespace or ""
        if not own and not (target.namespace and config.agent.namespace):
            own = namespace_of(context)
        rules = found.setdefault(context, {})
        if target.via is not Via.DIRECT:
            place = config.agent.namespace or own
            manifest, _ = job_manifest(config.agent, namespace=place, key_sha256="")
            place = str(manifest["metadata"]["namespace"])  # a patch may have changed it
            rules.setdefault(place, []).extend(
                _agent_rules(config.tunnel.transport, optional=optional)
            )
        direct = [_FORWARD] if target.via is Via.DIRECT else []
        needed = [*_target_rules(target, optional=optional), *direct]
        rules.setdefault(target.namespace or own, []).extend(needed)
    return {
        context: [
            document
            for namespace, rules in namespaces.items()
            if rules
            for document in _documents(namespace, _join(rules), subjects, name)
        ]
        for context, namespaces in found.items()
    }


def is_faster_with_more(config: Config) -> bool:
    """Return whether a right that `config` does not need makes its tunnels faster."""
    return config.tunnel.transport is Transport.AUTO


def _agent_rules(transport: Transport, *, optional: bool) -> list[Rule]:
    needed = [
        _rule("batch", "jobs", ["create", "delete"]),
        _rule("", "pods", _WATCH),
        _FORWARD,
    ]
    faster = [_rule("", "pods/proxy", ["get"])]
    if transport is Transport.PROXY:
        needed += faster
    if not optional:
        return needed
    clearer = [_rule("", "events", _WATCH), _rule("batch", "jobs", _WATCH)]
    return [*needed, *(faster if transport is Transport.AUTO else ()), *clearer]


def _target_rules(target: Target, *, optional: bool) -> list[Rule]:
    if not target.kind.in_cluster:
        return []
    version, resource = RESOURCES[target.kind]
    rules = [_rule(version.rpartition("/")[0], resource, _WATCH, target.resource)]
    if target.kind is Kind.SERVICE:
        rules.append(_rule("discovery.k8s.io", "endpointslices", _WATCH))
        if optional or not target.ready:
            rules.append(_rule("", "pods", _WATCH))
    elif target.kind is not Kind.POD:
        rules.append(_rule("", "pods", _WATCH))
    return rules


def _rule(group: str, resource: str, verbs: list[str], name: str | None = None) -> Rule:
    rule: Rule = {"apiGroups": [group], "resources": [resource], "verbs": verbs}
    return {**rule, "resourceNames": [name]} if name else rule


def _join(rules: list[Rule]) -> list[Rule]:
    """Join the rules for the same resource and verbs; a rule without names covers all names."""
    joined: dict[str, Rule] = {}
    for rule in rules:
        key = repr([rule["apiGroups"], rule["resources"], rule["verbs"]])
        other = joined.setdefault(key, dict(rule))
        if "resourceNames" not in rule:
            other.pop("resourceNames", None)
        elif "resourceNames" in other:
            names = [*other["resourceNames"], *rule["resourceNames"]]
            other["resourceNames"] = list(dict.fromkeys(names))
    return list(joined.values())


def _documents(
    namespace: str, rules: list[Rule], subjects: Sequence[Subject], name: str | None
) -> list[dict[str, Any]]:
    name = name or _name(rules, subjects)
    labels = {"app.kubernetes.io/managed-by": "krelay"}
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    head = {"apiVersion": f"{_API}/v1"}
    role = {**head, "kind": "Role", "metadata": metadata, "rules": rules}
    binding = {
        **head,
        "kind": "RoleBinding",
        "metadata": metadata,
        "roleRef": {"apiGroup": _API, "kind": "Role", "name": name},
        "subjects": [dict(subject) for subject in subjects],
    }
    return [role, binding] if subjects else [role]


def _name(rules: list[Rule], subjects: Sequence[Subject]) -> str:
    """Return a name that no other subjects or rules have; `krelay` without subjects."""
    if not subjects:
        return "krelay"
    return _slug(subjects[0]["name"], json.dumps([rules, list(map(dict, subjects))]))


def _slug(name: str, content: str) -> str:
    """Return a DNS name with the words of `name`, which differs for each `content`."""
    words = "-".join(re.findall(r"[a-z0-9]+", name.lower()))[:_LONGEST_WORDS]
    digest = hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()
    return "-".join(filter(None, ("krelay", words, digest[:8])))


def subject_option(user: str) -> tuple[str, str]:
    """Return the option of `krelay rbac` and kubectl, and its value, for the user of an error."""
    account = user.removeprefix("system:serviceaccount:")
    return ("--user", user or "NAME") if account == user else ("--serviceaccount", account)


def view_command(user: str, namespace: str) -> str:
    """Return the command that lets `user` list all that krelay lists in a namespace."""
    name = _slug(user.rpartition(":")[2], user)
    words = ["kubectl", "create", "rolebinding", name, "-n", namespace, "--clusterrole", "view"]
    return shlex.join([*words, *subject_option(user)])
