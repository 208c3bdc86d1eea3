"""RBAC: the least Roles that a config needs, for `krelay rbac`. Pure.

docs/rbac.md lists krelay's requests. Objects that krelay watches by name are named in the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from krelay.cluster.agent_job import job_manifest
from krelay.cluster.objects import RESOURCES
from krelay.model import Config, Kind, Target, Transport

_API = "rbac.authorization.k8s.io"
_WATCH = ["list", "watch"]

Rule = dict[str, Any]
Subject = Mapping[str, str]


def roles(
    config: Config,
    namespace_of: Callable[[str | None], str],
    *,
    subjects: Sequence[Subject] = (),
    optional: bool = False,
) -> dict[str | None, list[dict[str, Any]]]:
    """Return the Roles by context, one for each namespace.

    With `subjects`, a RoleBinding follows each Role. `namespace_of` returns a context's own
    namespace. `optional` adds rights that only make tunnels faster or errors clearer.
    """
    found: dict[str | None, dict[str, list[Rule]]] = {}
    for target in config.targets:
        context = target.context or config.context
        own = config.namespace or namespace_of(context)
        namespace = config.agent.namespace or own
        manifest, _ = job_manifest(config.agent, namespace=namespace, key_sha256="")
        agent = str(manifest["metadata"]["namespace"])  # a patch may have changed it
        rules = found.setdefault(context, {}).setdefault(agent, [])
        wanted = _agent_rules(config.tunnel.transport, optional=optional)
        rules += (rule for rule in wanted if rule not in rules)
        namespace = target.namespace or own
        found[context].setdefault(namespace, []).extend(_target_rules(target))
    return {
        context: [
            document
            for namespace, rules in namespaces.items()
            if rules
            for document in _documents(namespace, _join(rules), subjects)
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
        # A WebSocket is a get, a plain upgrade a create; since Kubernetes 1.35 both are a create.
        _rule("", "pods/portforward", ["get", "create"]),
    ]
    faster = [_rule("", "pods/proxy", ["get"])]
    if transport is Transport.PROXY:
        needed += faster
    if not optional:
        return needed
    clearer = [_rule("", "events", _WATCH), _rule("batch", "jobs", _WATCH)]
    return [*needed, *(faster if transport is Transport.AUTO else ()), *clearer]


def _target_rules(target: Target) -> list[Rule]:
    if not target.kind.in_cluster:
        return []
    version, resource = RESOURCES[target.kind]
    rules = [_rule(version.rpartition("/")[0], resource, _WATCH, target.resource)]
    if target.kind is Kind.SERVICE:
        rules.append(_rule("discovery.k8s.io", "endpointslices", _WATCH))
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
    namespace: str, rules: list[Rule], subjects: Sequence[Subject]
) -> list[dict[str, Any]]:
    metadata = {"name": "krelay", "namespace": namespace}
    head = {"apiVersion": f"{_API}/v1"}
    role = {**head, "kind": "Role", "metadata": metadata, "rules": rules}
    binding = {
        **head,
        "kind": "RoleBinding",
        "metadata": metadata,
        "roleRef": {"apiGroup": _API, "kind": "Role", "name": "krelay"},
        "subjects": [dict(subject) for subject in subjects],
    }
    return [role, binding] if subjects else [role]
