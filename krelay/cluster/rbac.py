"""Rights: the Roles that one config needs and no more, for `krelay rbac`. Pure.

What krelay asks of a cluster is in docs/rbac.md; an object that is watched by its name is named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from krelay.cluster.agent_job import job_manifest
from krelay.model import Config, Kind, Target

_API = "rbac.authorization.k8s.io"
_SEE = ["list", "watch"]
_WORKLOADS = {
    Kind.DEPLOYMENT: ("apps", "deployments"),
    Kind.STATEFULSET: ("apps", "statefulsets"),
    Kind.DAEMONSET: ("apps", "daemonsets"),
    Kind.REPLICASET: ("apps", "replicasets"),
    Kind.JOB: ("batch", "jobs"),
}

Rule = dict[str, Any]
Subject = Mapping[str, str]


def roles(
    config: Config,
    namespace_of: Callable[[str | None], str],
    *,
    subjects: Sequence[Subject] = (),
    optional: bool = False,
) -> dict[str | None, list[dict[str, Any]]]:
    """The Roles by context, one for each namespace, and a RoleBinding for each if there are
    `subjects`.

    `namespace_of` has a context's own namespace. `optional`: also what only makes errors clearer.
    """
    found: dict[str | None, dict[str, list[Rule]]] = {}
    for target in config.targets:
        context = target.context or config.context
        own = config.namespace or namespace_of(context)
        agent = _agent_namespace(config, own)
        rules = found.setdefault(context, {}).setdefault(agent, [])
        rules += (rule for rule in _agent(optional=optional) if rule not in rules)
        place = target.namespace or own
        found[context].setdefault(place, []).extend(_target(target))
    return {
        context: [
            document
            for namespace, rules in namespaces.items()
            if rules
            for document in _documents(namespace, _joined(rules), subjects)
        ]
        for context, namespaces in found.items()
    }


def _agent_namespace(config: Config, namespace: str) -> str:
    """Where the agent goes, patches and all."""
    namespace = config.agent.namespace or namespace
    manifest, _ = job_manifest(config.agent, namespace=namespace, key_sha256="")
    return str(manifest["metadata"]["namespace"])


def _agent(*, optional: bool) -> list[Rule]:
    needed = [
        _rule("batch", "jobs", ["create", "delete"]),
        _rule("", "pods", _SEE),
        # The WebSocket is a get, the plain upgrade a create; from 1.35 on both are a create.
        _rule("", "pods/portforward", ["get", "create"]),
    ]
    clearer = [_rule("", "events", _SEE), _rule("batch", "jobs", _SEE)]
    return needed + clearer if optional else needed


def _target(target: Target) -> list[Rule]:
    if not target.kind.in_cluster:
        return []
    if target.kind is Kind.SERVICE:
        slices = _rule("discovery.k8s.io", "endpointslices", _SEE)
        return [_rule("", "services", _SEE, target.resource), slices]
    if target.kind is Kind.POD:
        return [_rule("", "pods", _SEE, target.resource)]
    group, resource = _WORKLOADS[target.kind]
    return [_rule(group, resource, _SEE, target.resource), _rule("", "pods", _SEE)]


def _rule(group: str, resource: str, verbs: list[str], name: str | None = None) -> Rule:
    rule: Rule = {"apiGroups": [group], "resources": [resource], "verbs": verbs}
    return {**rule, "resourceNames": [name]} if name else rule


def _joined(rules: list[Rule]) -> list[Rule]:
    """Each right once: names of one resource together, and none where all are allowed."""
    joined: list[Rule] = []
    for rule in rules:
        alike = [
            other
            for other in joined
            if all(other[key] == rule[key] for key in ("apiGroups", "resources", "verbs"))
        ]
        if not alike:
            joined.append(dict(rule))
            continue
        (other,) = alike
        if "resourceNames" not in rule:
            other.pop("resourceNames", None)
        elif "resourceNames" in other:
            names = [*other["resourceNames"], *rule["resourceNames"]]
            other["resourceNames"] = list(dict.fromkeys(names))
    return joined


def _documents(
    namespace: str, rules: list[Rule], subjects: Sequence[Subject]
) -> list[dict[str, Any]]:
    metadata = {"name": "krelay", "namespace": namespace}
    head = {"apiVersion": f"{_API}/v1"}
    documents = [{**head, "kind": "Role", "metadata": metadata, "rules": rules}]
    if subjects:
        documents.append(
            {
                **head,
                "kind": "RoleBinding",
                "metadata": metadata,
                "roleRef": {"apiGroup": _API, "kind": "Role", "name": "krelay"},
                "subjects": [dict(subject) for subject in subjects],
            }
        )
    return documents
